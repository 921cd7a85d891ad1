"""The dashboard in headless Chromium, against a running server with two versions of a model.

Usage: dashboard.py ADDRESS MODEL [--token TOKEN] [--axe FILE] [--pictures FOLDER]. Prints "ok" as its last line, or
"missing: WHAT" where Selenium, Chromium or its driver is. With --axe (axe.min.js of the npm package axe-core) the page
is held to its rules, too. --pictures only writes screenshots of a run of adaptation that is made up below.
"""

import argparse
import json
import math
import shutil
import sys
import time
from pathlib import Path

try:
    from selenium import webdriver
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait
except ImportError as error:
    print(f"missing: {error.name}")
    sys.exit(0)

parser = argparse.ArgumentParser()
parser.add_argument("address")
parser.add_argument("model")
parser.add_argument("--token")
parser.add_argument("--axe")
parser.add_argument("--pictures")
args = parser.parse_args()
URL = f"http://{args.address}/"
DESKTOP, PHONE = (1280, 900), (360, 740)
EVIL = "<img src=x onerror=alert(1)>"


def start():
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not browser or not driver:
        print("missing: chromium" if not browser else "missing: chromedriver")
        sys.exit(0)
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--force-device-scale-factor=1"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))


# ---- a status of a run that is made up ----


def falling(start, end, wobble, steps=120):
    noise = lambda i: wobble * math.sin(i * 2.3) * math.cos(i * 0.71)
    return [[i, end + (start - end) * math.exp(-i / 28) + noise(i)] for i in range(1, steps)]


def made_up(held=False):
    slow = {"name": "latency", "ok": not held, "detail": "p99 8.4 ms idle, 13.1 ms beside an adaptation"}
    offices = ["back_pack", "bike", "bike_helmet", "bookcase", "bottle", "calculator", "desk_chair", "desk_lamp", EVIL]
    counts = [412, 318, 251, 190, 122, 97, 60, 31, 12]
    classes = [{"name": n, "count": c} for n, c in zip(offices, counts)]
    widths = [32, 96, 144, 144, 240, 240, 480, 480, 480, 672, 672, 672, 1152, 1152, 1152, 1152, 1280]
    layers = [
        {"group": f"blocks.{i // 3}.{i % 3}.conv_pw", "before": w, "after": round(w * (0.35 + 0.5 * abs(math.sin(i * 1.7))))}
        for i, w in enumerate(widths)
    ]
    version = lambda n, active, note, scale: {
        "version": n, "active": active, "published": f"2026-11-{18 + n}T0{n}:12:00Z", "parameters": int(3_413_024 * scale),
        "macs": int(384_000_000 * scale**0.5), "channels": int(10576 * scale), "bytes": int(13_690_000 * scale),
        "damaged": False, "note": note,
    }
    student = "efficientnet_lite0, student made by secateur 0.1.0"
    return {
        "server": {"version": "0.1.0", "uptime_s": 273_840},
        "models": [{
            "name": "door", "active": 3, "ready": True, "store_active": 3, "rollback_to": 2,
            "versions": [version(1, False, "efficientnet_lite0, published from outside", 1.0),
                         version(2, False, student, 0.52), version(3, True, student, 0.4)],
            "latency_ms": {"p50": 8.4, "p99": 13.1}, "requests": 182_400, "queued_images": 1, "overloaded": 0,
            "predictions": sum(counts), "classes": classes,
        }],
        "board": {"name": "Raspberry Pi 5 Model B Rev 1.0", "processors": 4, "temperature_c": 61.4, "load": 2.3,
                  "mhz": 2400, "throttled": 0, "memory_available": 5_120_000_000, "memory_used": 412_000_000},
        "adaptation": {
            "state": "paused" if held else "adapting", "reason": f"latency: {slow['detail']}" if held else "masks 119/240", "since": "2026-11-24T20:12:40Z",
            "images": {"reservoir": 795, "bytes": 31_400_000, "needed": 52, "new": 148, "quarantined": 25,
                       "duplicates": 50, "classes": [{"name": n, "count": c // 3} for n, c in zip(offices, counts)]},
            "run": {"id": "20261124-201240", "phase": "masks", "step": 119, "steps": 240, "eta_s": 1340,
                    "started": "2026-11-24T20:12:41Z",
                    "losses": [{"name": "adapt entropy", "points": falling(2.4, 0.42, 0.05)},
                               {"name": "masks total", "points": falling(2.4, 0.42, 0.05)},
                               {"name": "masks cross_entropy", "points": falling(1.6, 0.21, 0.04)},
                               {"name": "masks distillation", "points": falling(0.9, 0.11, 0.02)},
                               {"name": "masks discrepancy", "points": falling(0.35, 0.06, 0.01)}],
                    "channels": layers},
            "gate": {"accepted": not held, "reason": "agreement and diversity are within bounds", "agreement": 0.962,
                     "diversity": 0.94, "held_out": 159},
            "watch": {"version": 3, "scored": None, "answers": 40, "wanted": 100} if held else None,
            "guards": [{"name": "temperature", "ok": True, "detail": "61 °C, below 75 °C"},
                       {"name": "load", "ok": True, "detail": "0.3 by others, at most 4.0 allowed"},
                       {"name": "memory", "ok": True, "detail": "4883 MB available, at least 256 MB wanted"},
                       {"name": "disk", "ok": True, "detail": "21034 MB free, at least 256 MB wanted"}, slow],
            "backoff_until": None,
            "history": [{"at": "2026-11-24T20:12:40Z", "event": "adaptation started", "detail": "images=795 threads=2 reason=\"200 new images\""},
                        {"at": "2026-11-23T04:01:12Z", "event": "version accepted", "detail": "version=3 reason=\"agreement 0.97 on 64 images\""},
                        {"at": "2026-11-23T02:44:01Z", "event": "adaptation paused", "detail": "guard=temperature detail=\"76 °C, waiting for 65 °C\""},
                        {"at": "2026-11-21T03:30:00Z", "event": "student refused", "detail": "reason=\"agreement 0.71, expected at least 0.85\""},
                        {"at": "2026-11-20T02:12:00Z", "event": "version rolled back", "detail": f"version=2 to=1 reason=\"confidence {EVIL}\""}],
        },
    }


# Answers the page's question for the status with the one made up, a little different every time.
STAND_IN = """
window.turn = 0;
window.fetch = async () => {
  const status = structuredClone(MADE_UP), n = ++window.turn;
  const [model] = status.models;
  model.requests += n * 37 + Math.round(9 * Math.sin(n));
  model.latency_ms = {p50: 8.4 + Math.sin(n * .7) * .5, p99: 13.1 + 2.5 * Math.abs(Math.sin(n * 1.3))};
  status.board.temperature_c += Math.sin(n / 9) * 3;
  return new Response(JSON.stringify(status), {headers: {'content-type': 'application/json'}});
};
"""
# Sixty polls at once, as if the page had been open for two minutes.
HURRY = """
const [then, later] = [Date.now, arguments[arguments.length - 1]];
let shift = 0;
Date.now = () => then() + shift;
(async () => { for (let i = 0; i < 60; i++) { await poll(); shift += 2000; } later(); })();
"""


class Page:
    def __init__(self, driver):
        self.driver = driver

    def open(self, stand_in=None):
        if stand_in:
            self.cdp("Page.addScriptToEvaluateOnNewDocument", source=STAND_IN.replace("MADE_UP", json.dumps(stand_in)))
        self.driver.get(URL)

    def cdp(self, command, **parameters):
        return self.driver.execute_cdp_cmd(command, parameters)

    def script(self, text):
        return self.driver.execute_script(text)

    def text(self, selector="body"):
        return self.script(f"return document.querySelector({selector!r}).innerText")

    def wait(self, condition, what, seconds=30):
        WebDriverWait(self.driver, seconds, 0.1).until(lambda _: condition(), f"waited for {what}:\n{self.text()}")

    def wait_for(self, text, selector="body"):
        self.wait(lambda: text in self.text(selector), f"{text!r} in {selector}")

    def size(self, size, touch=False):
        self.cdp("Emulation.setDeviceMetricsOverride", width=size[0], height=size[1], deviceScaleFactor=1, mobile=touch)

    def scheme(self, scheme, motion="no-preference"):
        features = [{"name": "prefers-color-scheme", "value": scheme}, {"name": "prefers-reduced-motion", "value": motion}]
        self.cdp("Emulation.setEmulatedMedia", features=features)

    def press(self, *keys):
        for key in keys:
            webdriver.ActionChains(self.driver).send_keys(key).perform()

    def focused(self):
        return self.script("const e = document.activeElement; return (e.getAttribute('aria-label') || e.innerText || e.id || '').trim()")

    def tab_to(self, start):
        for _ in range(60):
            if self.focused().startswith(start):
                return
            self.press(Keys.TAB)
        raise AssertionError(f"the keyboard does not reach {start!r}")

    def complaints(self):
        return [e["message"] for e in self.driver.get_log("browser") if e["level"] in ("SEVERE", "WARNING")]

    def addresses(self):
        events = [json.loads(e["message"])["message"] for e in self.driver.get_log("performance")]
        return [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]

    def check_axe(self, what):
        if not args.axe:
            return
        self.script(Path(args.axe).read_text())
        found = self.driver.execute_async_script("axe.run(document).then(arguments[0], e => arguments[0]({violations: [{id: String(e), nodes: []}]}))")
        told = [(v["id"], v.get("impact"), [n["html"] + " " + n.get("failureSummary", "") for n in v["nodes"]]) for v in found["violations"]]
        assert not told, f"{what}: {json.dumps(told, indent=1)}"
        print(f"axe: {what}: {len(found['passes'])} rules pass")


def unlocked(page):
    page.open()
    if args.token:
        page.wait_for("Token", "dialog")
        page.wait_for("locked", "#link")
        page.press("wrong-" + args.token, Keys.ENTER)
        page.wait_for("does not take this token", "#ask-error")
        page.press(args.token, Keys.ENTER)
    page.wait_for("live", "#link")


def check(page):
    unlocked(page)
    page.wait_for(f"Versions of {args.model}", "main")
    page.wait_for("v2", "main .value")
    page.wait_for("No daemon runs here", "main")
    assert page.script("return document.title").startswith(f"{args.model} v2")

    # By keyboard alone: ask, think better of it, ask again, confirm.
    page.tab_to("Roll back to version 1")
    page.press(Keys.ENTER)
    page.wait_for(f"Roll back {args.model} to version 1?", "dialog")
    assert page.focused() == "Roll back", page.focused()
    page.check_axe("the dialog")
    page.press(Keys.ESCAPE)
    page.wait(lambda: not page.script("return document.querySelector('dialog').open"), "the end of the dialog")
    assert page.focused() == "Roll back to version 1", page.focused()
    page.press(Keys.ENTER)
    page.wait_for("Roll back", "dialog")
    page.press(Keys.ENTER)
    page.wait_for("v1", "main .value")
    page.wait_for(f"Version 1 of {args.model}", "#news")
    page.tab_to("Activate version 2")
    page.press(Keys.ENTER)
    page.wait_for("Activate version 2", "dialog")
    page.press(Keys.ENTER)
    page.wait_for("v2", "main .value")
    # Asked for once: it was kept.
    if args.token:
        page.driver.refresh()
        page.wait_for("live", "#link")
        return

    # The server is away, and comes back.
    conditions = dict(latency=0, downloadThroughput=-1, uploadThroughput=-1)
    before = page.complaints()
    page.cdp("Network.enable")
    page.cdp("Network.emulateNetworkConditions", offline=True, **conditions)
    page.wait_for("Disconnected since", "#banner")
    assert "v2" in page.text("main")
    page.cdp("Network.emulateNetworkConditions", offline=False, **conditions)
    page.wait_for("live", "#link")
    assert page.script("return document.querySelector('#banner').hidden")
    page.complaints()
    foreign = [a for a in page.addresses() if not a.startswith((URL, "data:"))]
    assert not foreign, foreign

    # Everything there can be to show, in both schemes, wide and narrow.
    page.open(stand_in=made_up(held=True))
    page.wait_for("Channels per layer", "main")
    assert EVIL in page.text("main") and not page.script("return document.querySelector('img')")
    grounds = []
    for scheme in ["light", "dark"]:
        for size in [DESKTOP, PHONE]:
            page.scheme(scheme)
            page.size(size, touch=size is PHONE)
            wide = page.script("return document.documentElement.scrollWidth")
            assert wide <= size[0], f"{scheme}: {wide} pixels wide on a screen of {size[0]}"
            page.check_axe(f"{scheme}, {size[0]} pixels")
        grounds.append(page.script("return getComputedStyle(document.body).backgroundColor"))
    assert grounds[0] != grounds[1], grounds
    page.scheme("light", "reduce")
    assert page.script("return getComputedStyle(document.querySelector('.badge.live'), '::before').animationName") == "none"
    said = before + page.complaints()
    assert not said, said


def pictures(page, folder):
    folder.mkdir(parents=True, exist_ok=True)
    page.open(stand_in=made_up())
    page.driver.set_script_timeout(60)
    page.driver.execute_async_script(HURRY)
    for name, size, scheme in [("light", DESKTOP, "light"), ("dark", DESKTOP, "dark"), ("phone", PHONE, "light"), ("phone-dark", PHONE, "dark")]:
        page.scheme(scheme, "reduce")
        page.size(size, touch=size is PHONE)
        page.size((size[0], page.script("return document.documentElement.scrollHeight")), touch=size is PHONE)
        page.driver.save_screenshot(str(folder / f"dashboard-{name}.png"))


driver = start()
try:
    page = Page(driver)
    if args.pictures:
        pictures(page, Path(args.pictures))
    else:
        check(page)
    print("ok")
finally:
    driver.quit()
