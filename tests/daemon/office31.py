#!/usr/bin/env python3
"""The daemon as on a board: a teacher, a camera's images, a student that serves.

    office31.py PROGRAM DATA TEACHER FOLDER [--kills N] [--over SECONDS] [--set section.key=value ...]

Starts `PROGRAM daemon` in FOLDER with TEACHER, measures what /classify knows of DATA (class folders of images, whose
labels serve this alone), puts DATA with 25 broken and 50 duplicate files into the inbox, sends requests while it adapts,
and measures again. Prints one JSON object. Standard library only.

With --kills, that many random moments of the first SECONDS (900) after that end the daemon with SIGKILL, each third one the
adaptation alone. The daemon is started again at once and must answer within 2 s; the digest of the student, which is printed,
must be that of a run without kills. Exit code 1 if a start took longer.
"""

import argparse
import http.client
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

ADDRESS = ("127.0.0.1", 18191)
BROKEN, DUPLICATES = 25, 50
SOON_S = 2.0
ENDS = ("version accepted", "student refused", "version rolled back")


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


class Daemon:
    """The program, started as often as it takes."""

    def __init__(self, program, folder):
        self.command, self.log = [program, "daemon", "--config", str(folder / "config.toml")], folder / "log"
        self.process, self.starts = None, []

    def start(self, body):
        """Starts it and asks until it classifies."""
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(self.command, stderr=log)
        begun = time.perf_counter()
        while True:
            try:
                classify(http.client.HTTPConnection(*ADDRESS, timeout=30), body)
                break
            except OSError:
                if self.process.poll() is not None or time.perf_counter() - begun > 60:
                    raise RuntimeError(f"no daemon: see {self.log}")
                time.sleep(0.01)
        self.starts.append(time.perf_counter() - begun)

    def child(self):
        """The adaptation's process, if it is there."""
        started = re.findall(r" process=(\d+)", self.log.read_text(errors="replace"))
        alive = started and Path(f"/proc/{started[-1]}").exists()
        return int(started[-1]) if alive else None

    def kill(self, number, body):
        """Kills the daemon and starts it again; each third time the adaptation alone. Returns what was killed."""
        child = self.child()
        if number % 3 == 0 and child:
            os.kill(child, signal.SIGKILL)
            classify(http.client.HTTPConnection(*ADDRESS, timeout=30), body)
            return "adaptation"
        self.process.kill()
        self.process.wait()
        while child and Path(f"/proc/{child}").exists():
            time.sleep(0.005)
        self.start(body)
        return "both" if child else "daemon"

    def end(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()


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


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("program", "data", "teacher", "folder"):
        parser.add_argument(name)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--over", type=float, default=900.0)
    parser.add_argument("--set", action="append", default=[])
    return parser.parse_args()


def settings(given, folder):
    found = {
        "serve": {"listen": f'"{ADDRESS[0]}:{ADDRESS[1]}"'},
        "daemon": {"folder": f'"{folder}"', "teacher": f'"{given.teacher}"', "name": '"office"'},
        "trigger": {"min_images": 700, "new_images": 700},
    }
    if given.kills:
        # Otherwise every kill costs up to two minutes, and one of the adaptation alone an hour.
        found["adapt"] = {"checkpoint_every_s": 5, "backoff_first_s": 0}
    for change in given.set:
        path, value = change.split("=", 1)
        section, key = path.split(".")
        found.setdefault(section, {})[key] = value
    return found


def student(folder):
    """Digest of the version that is active."""
    models = folder / "models" / "office"
    version = json.loads((models / "active").read_text())["version"]
    return json.loads((models / str(version) / "manifest.json").read_text())["model_sha256"]


def main():
    given = arguments()
    folder = Path(given.folder)
    images = sorted(Path(given.data).glob("*/*.jpg"))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.toml").write_text(toml(settings(given, folder)))
    rng, body, killed = random.Random(7), images[0].read_bytes(), []
    moments = sorted(rng.uniform(0, given.over) for _ in range(given.kills))
    daemon = Daemon(given.program, folder)
    try:
        daemon.start(body)
        result = {"ready_s": round(daemon.starts[0], 2), "before": accuracy(images)}
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
            if len(killed) < given.kills and time.time() - begun >= moments[len(killed)]:
                phase = (now["run"] or {}).get("phase") or now["state"]
                what = daemon.kill(len(killed), body)
                killed.append([what, phase])
                print(f"{time.time() - begun:8.0f} s  killed {what} during {phase}", file=sys.stderr, flush=True)
            elif len(killed) == given.kills and any(event["event"] in ENDS for event in now["history"]):
                break
            time.sleep(0.5 if not given.kills else 0.05)
        load.stop = True
        load.join()
        result |= {
            "took_s": round(time.time() - begun),
            "after": accuracy(images),
            "images": {k: v for k, v in now["images"].items() if k != "classes"},
            "gate": now["gate"]["reason"],
            "student": student(folder),
            "kills": killed,
            "starts_s": {"count": len(daemon.starts), "slowest": round(max(daemon.starts), 2)},
            "latency": {state: quantiles(times) for state, times in load.times.items()},
            "errors": {"count": len(load.errors), "first": load.errors[:5]},
            "states": seen,
            "history": [[event["at"], event["event"], event["detail"]] for event in now["history"]],
        }
        print(json.dumps(result, indent=1))
    finally:
        daemon.end()
    if max(daemon.starts) > SOON_S:
        sys.exit(f"a start took {max(daemon.starts):.2f} s, at most {SOON_S} s is soon enough")


if __name__ == "__main__":
    main()
