#!/usr/bin/env python3
"""Memory and open files of the daemon while images keep coming.

    flat.py PROGRAM IMAGES TEACHER FOLDER MINUTES

Brings five images a second, taken from IMAGES (a folder of class folders) with a few pixels changed so that none is a
duplicate, some of them broken, and prints resident memory and open files every minute. Needs Pillow.
"""

import http.client
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from PIL import Image

PORT = 18192


def main():
    program, data, teacher, folder, minutes = sys.argv[1:6]
    folder, rng = Path(folder), random.Random(0)
    images = sorted(Path(data).glob("*/*.jpg"))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.toml").write_text(
        f'[serve]\nlisten = "127.0.0.1:{PORT}"\n[daemon]\nfolder = "{folder}"\nteacher = "{teacher}"\n'
        "[intake]\nmax_images = 500\n[trigger]\nmin_images = 500\nnew_images = 0\n"
        "drift_confidence = 0.0\ndrift_classes = 0.0\ndrift_features = 0.0\n"
    )
    log = open(folder / "log", "ab")
    daemon = subprocess.Popen([program, "daemon", "--config", str(folder / "config.toml")], stderr=log)
    proc = Path(f"/proc/{daemon.pid}")

    def sample(brought):
        rss = next(line.split()[1] for line in (proc / "status").read_text().splitlines() if line.startswith("VmRSS"))
        connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=30)
        connection.request("GET", "/v1/status")
        status = json.loads(connection.getresponse().read())["adaptation"]["images"]
        counts = {key: status[key] for key in ("reservoir", "bytes", "quarantined", "duplicates")}
        line = {"s": round(time.time() - begun), "rss_mb": round(int(rss) / 1024, 1), "files": len(os.listdir(proc / "fd"))}
        print(json.dumps(line | {"brought": brought} | counts), flush=True)

    begun, brought, next_sample = time.time(), 0, 10
    try:
        while time.time() - begun < 60 * float(minutes):
            image = Image.open(rng.choice(images)).convert("RGB")
            for _ in range(40):
                image.putpixel((rng.randrange(image.width), rng.randrange(image.height)), tuple(rng.randbytes(3)))
            body = io.BytesIO()
            image.save(body, "JPEG", quality=90)
            body = body.getvalue() if brought % 50 else body.getvalue()[:-20]
            (folder / "inbox").mkdir(exist_ok=True)
            (folder / "inbox" / f"{brought:07}.jpg").write_bytes(body)
            brought += 1
            if time.time() - begun > next_sample:
                sample(brought)
                next_sample += 60
            time.sleep(max(0.0, begun + brought / 5 - time.time()))
        sample(brought)
    finally:
        daemon.send_signal(signal.SIGTERM)
        daemon.wait()


if __name__ == "__main__":
    main()
