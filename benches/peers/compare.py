"""Our latency beside that of ONNX Runtime and tract, on the networks that `secateur export` writes.

The programs take turns: a round starts each once, and every ratio is the median over the rounds of the ratio within a
round, so that a clock or a neighbour that changes with time meets all of them. In brackets, the ratio's quartiles.

With --int8, models are also quantised, by `secateur quantize` and by ONNX Runtime's static quantiser (QDQ, per channel),
on the same pixels of one part of --images; on another part each is compared with its own f32 answers.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
TARGET = os.path.join(HERE, "..", "..", "target")
SECATEUR = os.environ.get("SECATEUR", os.path.join(TARGET, "release", "secateur"))
TRACT = os.path.join(TARGET, "peers", "release", "tract-latency")
NETWORKS = ["resnet18", "resnet50", "mobilenetv1_100", "mobilenetv2_100", "efficientnet_lite0"]
OURS, ORT = "ours", "ONNX Runtime"


def output(*command):
    """The JSON object on the last line of what a program prints."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: {done.stderr}")
    lines = done.stdout.strip().splitlines()
    return json.loads(lines[-1]) if lines else None


def ours(path, precision):
    fixed = ["--batch", "1", "--no-cold-start", "--json", "--precision", precision]
    return lambda threads, runs: [SECATEUR, "bench", path, *fixed, "--threads", threads, "--runs", runs]


def onnx_runtime(path):
    return lambda threads, runs: [sys.executable, os.path.join(HERE, "onnx_runtime.py"), path, threads, runs]


def tract(path):
    return lambda threads, runs: [TRACT, path, threads, runs]


def in_turns(programs, threads, options):
    """Median milliseconds of every program in every round."""
    times = {name: [] for name in programs}
    for _ in range(options.rounds):
        for name, command in programs.items():
            times[name].append(output(*command(str(threads), str(options.runs)))["median_ms"])
    return times


def ratio(times, name, other):
    ratios = [a / b for a, b in zip(times[name], times[other])]
    low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    return f"{middle:.2f} ({low:.2f}–{high:.2f})"


def row(cells):
    print("| " + " | ".join(cells) + " |", flush=True)


def table(title, head):
    print(f"\n{title}\n")
    row(head)
    row(["---"] * len(head))


def record(options, **fields):
    if options.jsonl:
        with open(options.jsonl, "a", encoding="utf-8") as file:
            file.write(json.dumps(fields) + "\n")


def f32(options, folder):
    programs = [OURS, ORT, "tract"]
    against = programs[1:]
    table("f32, batch 1", ["network", "channels", "threads", *(f"{p} ms" for p in programs), *(f"ours ÷ {p}" for p in against)])
    for arch in options.arch:
        for channels in options.channels:
            onnx, own = os.path.join(folder, "net.onnx"), os.path.join(folder, "net.safetensors")
            output(SECATEUR, "export", "--json", "--arch", arch, "--size", str(options.size), "--channels", str(channels),
                   "--onnx", onnx, "--safetensors", own)
            for threads in options.threads:
                times = in_turns({OURS: ours(own, "f32"), ORT: onnx_runtime(onnx), "tract": tract(onnx)}, threads, options)
                medians = [f"{statistics.median(times[p]):.2f}" for p in programs]
                row([arch, f"{channels:g}", str(threads), *medians, *(ratio(times, OURS, p) for p in against)])
                record(options, arch=arch, channels=channels, threads=threads, precision="f32", ms=times)


def int8(options, folder):
    import eight_bits  # Needs more packages than latency does.

    names = ["ours f32", "ours int8", "ONNX Runtime f32", "ONNX Runtime int8"]
    pairs = [(names[1], names[0]), (names[3], names[2]), (names[1], names[3])]
    head = ["model", "threads", *(f"{n} ms" for n in names), *(f"{a} ÷ {b}" for a, b in pairs)]
    rows, answers = [], []
    for name in options.int8:
        made = eight_bits.Models(name, options, folder, output, SECATEUR)
        answers += made.agreement()
        programs = dict(zip(names, [ours(made.own, "f32"), ours(made.own, "int8"),
                                    onnx_runtime(made.onnx), onnx_runtime(made.qdq)]))
        for threads in options.threads:
            times = in_turns(programs, threads, options)
            medians = [f"{statistics.median(times[n]):.2f}" for n in names]
            rows.append([os.path.basename(name), str(threads), *medians, *(ratio(times, a, b) for a, b in pairs)])
            record(options, model=name, threads=threads, precision="int8", ms=times)
    table("int8, batch 1", head)
    for cells in rows:
        row(cells)
    table("int8 answers beside each program's own f32 answers", ["model", "quantiser", "images", "same class", "error of logits"])
    for cells in answers:
        row(cells)
        record(options, answers=cells)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", nargs="*", default=NETWORKS, help="architectures, with random weights; none: only --int8")
    parser.add_argument("--channels", nargs="+", type=float, default=[1, 0.4], help="fractions of the channels that are left")
    parser.add_argument("--size", type=int, default=224, help="height and width of the input")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--runs", type=int, default=30, help="requests of a program in a round")
    parser.add_argument("--int8", nargs="+", default=[], metavar="MODEL", help="model files, or architectures with random weights")
    parser.add_argument("--images", help="folder of images for --int8")
    parser.add_argument("--jsonl", help="file to append every round's figures to")
    options = parser.parse_args()
    if options.int8 and not options.images:
        parser.error("--int8 needs --images")
    with tempfile.TemporaryDirectory() as folder:
        if options.arch:
            f32(options, folder)
        if options.int8:
            int8(options, folder)


if __name__ == "__main__":
    main()
