#!/usr/bin/env python3
"""What an adaptation costs those who ask meanwhile.

    latency.py PROGRAM IMAGES TEACHER FOLDER [SECONDS]

Starts `PROGRAM daemon` in FOLDER with threads split as by default, fills its inbox with IMAGES (class folders), waits for
the adaptation to train, and sends fifteen requests a second while its process is stopped by SIGSTOP and while it runs, in
turns, so that nothing else differs. Prints one JSON object. Keep the machine quiet. Standard library only.
"""

import http.client
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ADDRESS = ("127.0.0.1", 18193)
ROUNDS = 4


def status():
    connection = http.client.HTTPConnection(*ADDRESS, timeout=30)
    connection.request("GET", "/v1/status")
    return json.loads(connection.getresponse().read())["adaptation"]


def quantiles(times):
    times = sorted(times)
    at = lambda q: round(1e3 * times[min(len(times) - 1, int(q * len(times)))], 2)
    return {"requests": len(times), "p50_ms": at(0.5), "p90_ms": at(0.9), "p99_ms": at(0.99), "max_ms": at(1)}


def measure(bodies, seconds, times):
    connection, end = http.client.HTTPConnection(*ADDRESS, timeout=60), time.perf_counter() + seconds
    while time.perf_counter() < end:
        begun = time.perf_counter()
        connection.request("POST", "/classify?top=1", random.choice(bodies))
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 200, answer.status
        times.append(time.perf_counter() - begun)
        time.sleep(max(0.0, 1 / 15 - (time.perf_counter() - begun)))


def main():
    program, data, teacher, folder = sys.argv[1:5]
    seconds = float(sys.argv[5]) if len(sys.argv) > 5 else 80
    folder = Path(folder)
    images = sorted(Path(data).glob("*/*.jpg"))
    (folder / "inbox").mkdir(parents=True, exist_ok=True)
    for index, path in enumerate(images[:: max(1, len(images) // 200)]):
        shutil.copy(path, folder / "inbox" / f"{index:04}.jpg")
    (folder / "config.toml").write_text(
        f'[serve]\nlisten = "{ADDRESS[0]}:{ADDRESS[1]}"\n[daemon]\nfolder = "{folder}"\nteacher = "{teacher}"\n'
        "[trigger]\nmin_images = 100\nnew_images = 100\n[guard]\nmax_load = 0\nmax_slowdown = 0\n"
    )
    log = open(folder / "log", "ab")
    daemon = subprocess.Popen([program, "daemon", "--config", str(folder / "config.toml")], stderr=log)
    try:
        begun = time.time()
        while time.time() - begun < 120:
            time.sleep(0.2)
            try:
                run = status()["run"]
            except OSError:
                continue
            if run and run["phase"] == "teacher" and run["step"] >= 1:
                break
        else:
            raise RuntimeError(f"it does not adapt: see {folder}/log")
        child = int((folder / "log").read_text().rsplit(" process=", 1)[1].split()[0])
        bodies = [path.read_bytes() for path in random.Random(1).sample(images, 50)]
        alone, beside = [], []
        for _ in range(ROUNDS):
            for times, order in ((alone, signal.SIGSTOP), (beside, signal.SIGCONT)):
                os.kill(child, order)
                time.sleep(0.5)
                measure(bodies, seconds / ROUNDS / 2, times)
        alone, beside = quantiles(alone), quantiles(beside)
        ratio = round(beside["p99_ms"] / alone["p99_ms"], 2)
        print(json.dumps({"alone": alone, "beside": beside, "p99_ratio": ratio, "step": status()["run"]["step"]}))
    finally:
        daemon.send_signal(signal.SIGKILL)
        daemon.wait()


if __name__ == "__main__":
    main()
