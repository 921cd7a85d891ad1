"""Long checks of the server, with wrk as the load: minutes each, so they are run by hand.

Usage: soak.py SECATEUR CHECK MODEL [OTHER]. CHECK is one of (changes of version under load are in tests/cli/serve/soak.rs)
  overhead   what HTTP adds to the engine's own time, request by request
  load       requests per second and latency at 1, 8 and 64 connections; OTHER is an image for /classify
  kills      kill -9 at 50 random moments while MODEL and OTHER are published and activated in turns
  idle       10000 idle connections
Prints one JSON object per measurement; exit code 1 if something is not as it should be. Needs only Python; SECONDS sets
how long a load lasts (10).
"""

import json
import os
import random
import re
import resource
import shutil
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time

SECATEUR, CHECK, *MODELS = sys.argv[1:]
SECONDS = int(os.environ.get("SECONDS", "10"))
FOLDER = tempfile.mkdtemp(prefix="secateur-soak-")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


PORT = free_port()


class Server:
    def __init__(self, *arguments):
        self.log = open(os.path.join(FOLDER, "serve.log"), "ab")
        command = [SECATEUR, "serve", "--listen", f"127.0.0.1:{PORT}", "--threads", os.environ.get("THREADS", "1")]
        self.started = time.monotonic()
        self.process = subprocess.Popen([*command, *arguments], stderr=self.log, stdout=self.log)

    def wait_ready(self, limit=60.0):
        while time.monotonic() - self.started < limit:
            try:
                if Client().get("/v2/health/ready")[0] == 200:
                    return time.monotonic() - self.started
            except OSError:
                pass
            time.sleep(0.005)
        raise SystemExit(f"not ready within {limit} s; see {self.log.name}")

    def rss(self):
        with open(f"/proc/{self.process.pid}/status") as status:
            return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmRSS"))

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


class Client:
    def __init__(self):
        self.socket = socket.create_connection(("127.0.0.1", PORT), timeout=30)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, head, body=b""):
        self.socket.sendall(head.encode() + b"\r\n\r\n" + body)
        data = b""
        while b"\r\n\r\n" not in data:
            part = self.socket.recv(65536)
            if not part:
                raise ConnectionError("closed")
            data += part
        head, _, rest = data.partition(b"\r\n\r\n")
        length = int(re.search(rb"content-length: (\d+)", head).group(1))
        while len(rest) < length:
            rest += self.socket.recv(65536)
        return int(head.split()[1]), head.decode(), rest

    def get(self, path):
        return self.send(f"GET {path} HTTP/1.1\r\nhost: x")

    def post(self, path, body=b"", header=""):
        return self.send(f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}{header}", body)


def say(**figures):
    print(json.dumps(figures), flush=True)


def binary_request():
    """A binary tensor of one image: the body and its header's length."""
    shape = json.loads(Client().get("/v2/models/model")[2])["inputs"][0]["shape"][1:]
    count = shape[0] * shape[1] * shape[2]
    values = struct.pack(f"<{count}f", *(random.gauss(0, 1) for _ in range(count)))
    tensor = {"name": "input", "datatype": "FP32", "shape": [1, *shape], "parameters": {"binary_data_size": len(values)}}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    return head + values, len(head), shape


def wrk_script(path, body, header):
    file = os.path.join(FOLDER, "body")
    with open(file, "wb") as out:
        out.write(body)
    headers = "".join(f'wrk.headers["{name}"] = "{value}"\n' for name, value in header.items())
    script = os.path.join(FOLDER, "wrk.lua")
    with open(script, "w") as out:
        out.write(f'wrk.method = "POST"\n{headers}local f = io.open("{file}", "rb")\nwrk.body = f:read("*all")\nf:close()\n')
    return ["-s", script, f"http://127.0.0.1:{PORT}{path}"]


def start_wrk(connections, seconds, target):
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "--timeout", "20s", *target]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def read_wrk(process):
    text = process.communicate()[0]
    unit = {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 6e4}
    line = lambda name: re.search(rf"\s{name}%?\s+([\d.]+)(us|ms|s|m)", text)
    ms = {f"p{p}_ms": float(line(p).group(1)) * unit[line(p).group(2)] for p in (50, 90, 99)}
    errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text)
    bad = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    failed = sum(map(int, errors.groups())) if errors else 0
    return {
        "requests": int(re.search(r"(\d+) requests in", text).group(1)),
        "per_second": float(re.search(r"Requests/sec:\s+([\d.]+)", text).group(1)),
        **{name: round(value, 3) for name, value in ms.items()},
        "failed": failed + (int(bad.group(1)) if bad else 0),
    }


def infer_target():
    body, length, shape = binary_request()
    return wrk_script("/v2/models/model/infer", body, {"Inference-Header-Content-Length": length}), shape


def overhead():
    server = Server("--model", MODELS[0], "--name", "model")
    server.wait_ready()
    body, length, shape = binary_request()
    client = Client()
    whole, engine = [], []
    for _ in range(int(os.environ.get("REQUESTS", "3000"))):
        start = time.perf_counter()
        status, head, _ = client.post("/v2/models/model/infer", body, f"\r\ninference-header-content-length: {length}")
        whole.append((time.perf_counter() - start) * 1e3)
        engine.append(float(re.search(r"compute;dur=([\d.]+)", head).group(1)))
        assert status == 200
    added = sorted(w - e for w, e in zip(whole, engine))
    median = statistics.median(added)
    say(check="overhead", shape=shape, median_ms=round(median, 3), p90_ms=round(added[int(0.9 * len(added))], 3),
        engine_median_ms=round(statistics.median(engine), 3), whole_median_ms=round(statistics.median(whole), 3))
    server.stop()
    return median <= 0.3


def load():
    server = Server("--model", MODELS[0], "--name", "model")
    server.wait_ready()
    target, shape = infer_target()
    targets = {"infer": target}
    if len(MODELS) > 1:
        with open(MODELS[1], "rb") as image:
            targets["classify"] = wrk_script("/classify", image.read(), {"Content-Type": "image/jpeg"})
    good = True
    for name in targets:
        for connections in (1, 8, 64):
            # The script of the other target shares the file.
            if name == "infer":
                target, _ = infer_target()
            else:
                with open(MODELS[1], "rb") as image:
                    target = wrk_script("/classify", image.read(), {"Content-Type": "image/jpeg"})
            result = read_wrk(start_wrk(connections, SECONDS, target))
            say(check="load", route=name, shape=shape, connections=connections, **result)
            good &= result["failed"] == 0
    server.stop()
    return good


def publish(store, file, *more):
    command = [SECATEUR, "models", "publish", "--store", store, "--name", "model", "--activate", *more, file]
    return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def kills():
    store = os.path.join(FOLDER, "store")
    assert publish(store, MODELS[0]).returncode == 0
    random.seed(1)
    restarts, versions = [], []
    for round_ in range(50):
        server = Server("--store", store)
        restarts.append(server.wait_ready())
        versions.append(json.loads(Client().get("/v2/models/model")[2])["versions"][0])
        # Publishers of their own, killed together with the server in the middle of whatever they do.
        script = 'while :; do for f in "$@"; do "$SECATEUR" models publish --store "$STORE" --name model --activate --keep 4 "$f"; done; done'
        publisher = subprocess.Popen(
            ["sh", "-c", script, "sh", *MODELS[:2]], env={**os.environ, "SECATEUR": SECATEUR, "STORE": store},
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )
        time.sleep(random.uniform(0.05, 1.0))
        os.killpg(publisher.pid, signal.SIGKILL)
        server.kill()
        publisher.wait()
    server = Server("--store", store)
    restarts.append(server.wait_ready())
    server.stop()
    verify = subprocess.run([SECATEUR, "models", "verify", "--store", store], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    say(check="kills", restarts=len(restarts), slowest_s=round(max(restarts), 3), median_s=round(statistics.median(restarts), 3),
        first_version=versions[0], last_version=versions[-1], verify_exit=verify.returncode)
    return max(restarts) <= 2.0 and verify.returncode == 0 and int(versions[-1]) > int(versions[0])


def idle():
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    server = Server("--model", MODELS[0], "--name", "model")
    server.wait_ready()
    before, held = server.rss(), []
    for number in range(10_000):
        held.append(socket.create_connection(("127.0.0.1", PORT), timeout=30))
        if number % 500 == 0:
            assert Client().get("/v2/health/live")[0] == 200
    status = Client().get("/v2/health/ready")[0]
    metrics = Client().get("/metrics")[2].decode()
    open_now = int(re.search(r"secateur_connections (\d+)", metrics).group(1))
    evicted = int(re.search(r"secateur_connections_evicted_total (\d+)", metrics).group(1))
    say(check="idle", connections=len(held), open=open_now, evicted=evicted, ready=status, rss_before=before, rss_with=server.rss())
    for one in held:
        one.close()
    good = status == 200 and server.process.poll() is None
    return server.stop() == 0 and good


outcome = {"overhead": overhead, "load": load, "kills": kills, "idle": idle}[CHECK]()
say(check=CHECK, good=bool(outcome))
if outcome:
    shutil.rmtree(FOLDER)
else:
    print(f"kept: {FOLDER}", file=sys.stderr)
sys.exit(not outcome)
