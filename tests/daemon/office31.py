#!/usr/bin/env python3
"""The daemon as on a board: a teacher, a camera's images, a student that serves.

    office31.py PROGRAM DATA TEACHER FOLDER [--set section.key=value ...]

Starts `PROGRAM daemon` in FOLDER with TEACHER, measures what /classify knows of DATA (class folders of images, whose
labels serve this alone), puts DATA with 25 broken and 50 duplicate files into the inbox, sends requests while it adapts,
and measures again. Prints one JSON object. Standard library only.
"""

import http.client
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

ADDRESS = ("127.0.0.1", 18191)
BROKEN, DUPLICATES = 25, 50


def toml(settings):
    lines = []
    for section, keys in settings.items():
        lines.append(f"[{section}]")
        lines += [f"{key} = {value}" for key, value in keys.items()]
    return "\n".join(lines) + "\n"


def classify(connection, body):
    connection.request("POST", "/classify?top=1", body)
    answer = connection.getresponse()
    data = answer.read()
    if answer.status != 200:
        raise RuntimeError(f"{answer.status}: {data[:200]}")
    return json.loads(data)


def status():
    connection = http.client.HTTPConnection(*ADDRESS, timeout=30)
    connection.request("GET", "/v1/status")
    return json.loads(connection.getresponse().read())["adaptation"]


def accuracy(images):
    connection = http.client.HTTPConnection(*ADDRESS, timeout=60)
    right, versions = 0, set()
    for path in images:
        answer = classify(connection, path.read_bytes())
        versions.add(answer["version"])
        right += answer["classes"][0]["class"] == path.parent.name
    return {"percent": round(100 * right / len(images), 2), "images": len(images), "versions": sorted(versions)}


class Load(threading.Thread):
    """Ten requests a second, their times by what the daemon was doing."""

    def __init__(self, images):
        super().__init__(daemon=True)
        self.bodies = [path.read_bytes() for path in random.Random(1).sample(images, 50)]
        self.state, self.times, self.errors, self.stop = "collecting", {}, [], False

    def run(self):
        connection, index = http.client.HTTPConnection(*ADDRESS, timeout=60), 0
        while not self.stop:
            begun = time.perf_counter()
            try:
                classify(connection, self.bodies[index % len(self.bodies)])
                self.times.setdefault(self.state, []).append(time.perf_counter() - begun)
            except Exception as error:
                self.errors.append(str(error))
                connection = http.client.HTTPConnection(*ADDRESS, timeout=60)
            index += 1
            time.sleep(max(0.0, 0.1 - (time.perf_counter() - begun)))


def quantiles(times):
    times = sorted(times)
    at = lambda q: round(1e3 * times[min(len(times) - 1, int(q * len(times)))], 2)
    return {"requests": len(times), "p50_ms": at(0.5), "p99_ms": at(0.99)}


def bring(images, inbox):
    rng = random.Random(0)
    shuffled = rng.sample(images, len(images))
    files = [(f"{index:04}.jpg", path.read_bytes()) for index, path in enumerate(shuffled)]
    copies = [(f"copy{index:02}.jpg", files[rng.randrange(len(files))][1]) for index in range(DUPLICATES)]
    broken = []
    for index in range(BROKEN):
        whole = files[index][1]
        body = [whole[: len(whole) // 2], b"", b"not an image", bytes(2000), whole[:20] + b"\0" * 50][index % 5]
        broken.append((f"broken{index:02}.jpg", body))
    for name, body in files + copies + broken:
        (inbox / name).write_bytes(body)


def main():
    program, data, teacher, folder = sys.argv[1:5]
    folder = Path(folder)
    images = sorted(Path(data).glob("*/*.jpg"))
    settings = {
        "serve": {"listen": f'"{ADDRESS[0]}:{ADDRESS[1]}"'},
        "daemon": {"folder": f'"{folder}"', "teacher": f'"{teacher}"', "name": '"office"'},
        "trigger": {"min_images": 700, "new_images": 700},
    }
    for change in sys.argv[5:]:
        if change != "--set":
            path, value = change.split("=", 1)
            section, key = path.split(".")
            settings.setdefault(section, {})[key] = value
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.toml").write_text(toml(settings))
    log = open(folder / "log", "ab")
    daemon = subprocess.Popen([program, "daemon", "--config", str(folder / "config.toml")], stderr=log)
    try:
        begun = time.time()
        while True:
            try:
                status()
                break
            except OSError:
                if daemon.poll() is not None or time.time() - begun > 60:
                    raise RuntimeError(f"no daemon: see {folder}/log")
                time.sleep(0.02)
        result = {"ready_s": round(time.time() - begun, 2), "before": accuracy(images)}
        load = Load(images)
        load.start()
        time.sleep(30)
        load.state = "arriving"
        bring(images, folder / "inbox")
        begun, seen = time.time(), []
        while True:
            now = status()
            if not seen or seen[-1] != now["state"]:
                seen.append(now["state"])
                print(f"{time.time() - begun:8.0f} s  {now['state']}: {now['reason']}", file=sys.stderr, flush=True)
            if now["state"] == "adapting":
                load.state = "adapting"
                result.setdefault("adapting_after_s", round(time.time() - begun))
            elif load.state == "adapting":
                load.state = now["state"]
            if any(event["event"] in ("version accepted", "student refused", "version rolled back") for event in now["history"]):
                break
            time.sleep(0.5)
        load.stop = True
        load.join()
        result |= {
            "took_s": round(time.time() - begun),
            "after": accuracy(images),
            "images": {k: v for k, v in now["images"].items() if k != "classes"},
            "gate": now["gate"]["reason"],
            "latency": {state: quantiles(times) for state, times in load.times.items()},
            "errors": load.errors[:5],
            "states": seen,
            "history": [[event["at"], event["event"], event["detail"]] for event in now["history"]],
        }
        print(json.dumps(result, indent=1))
    finally:
        daemon.send_signal(signal.SIGTERM)
        daemon.wait()


if __name__ == "__main__":
    main()
