"""What the tests of pages share: what a page could fetch or run, and a real browser without network."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from edgeopt.report import html

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
CHROMEDRIVER = shutil.which("chromedriver")
VENDOR = Path(html.__file__).parent / "vendor" / "chart.umd.min.js"
NETWORK = r"https?://|@import|url\(|sourceMappingURL"

PAINTED = """
return [...document.querySelectorAll("canvas")].map((canvas) => {
  const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  const colours = new Set();
  let inked = 0;
  for (let i = 0; i < pixels.length; i += 4) {
    if (pixels[i + 3] > 0) { inked += 1; colours.add(pixels.slice(i, i + 3).join()); }
  }
  const share = inked / (canvas.width * canvas.height);
  return { id: canvas.id, inked: share, colours: colours.size, width: canvas.clientWidth };
});
"""
# What the page needs, what it has, and what the window has.
WIDTHS = "return [document.documentElement.scrollWidth, document.documentElement.clientWidth, window.innerWidth]"


class Addresses(HTMLParser):
    """Every address that a page could fetch, and every script that it could run."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.scripts = 0
        self.handlers: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        self.found += [value or "" for name, value in attrs if name in {"src", "href", "srcset", "action", "data"}]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]

    @classmethod
    def of(cls, page: str) -> Addresses:
        parser = cls()
        parser.feed(page)
        return parser


def own_text(page: str) -> str:
    """The page without the plotting library that it carries."""
    return page.replace(VENDOR.read_text(encoding="utf-8").partition("//# sourceMappingURL")[0], "")


class Browser:
    """Headless Chromium through chromedriver's W3C protocol, with the network switched off."""

    def __init__(self, at: str, profile: Path) -> None:
        self.at = at
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
        flags += ["--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars"]
        options = {"binary": CHROMIUM, "args": [*flags, f"--user-data-dir={profile}"]}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        session = self._ask("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self.session = f"/session/{session['sessionId']}"
        self.cdp("Network.enable")
        offline = {"offline": True, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
        self.cdp("Network.emulateNetworkConditions", **offline)

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.at + path, data, {"Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["value"]

    def cdp(self, command: str, **parameters: Any) -> Any:
        return self._ask("POST", f"{self.session}/goog/cdp/execute", {"cmd": command, "params": parameters})

    def open(self, page: Path, width: int, scheme: str = "light") -> None:
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.cdp("Emulation.setDeviceMetricsOverride", **size)
        self.cdp("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self._ask("POST", f"{self.session}/url", {"url": page.as_uri()})

    def run(self, script: str) -> Any:
        return self._ask("POST", f"{self.session}/execute/sync", {"script": script, "args": []})

    def log(self) -> list[str]:
        return [entry["message"] for entry in self._ask("POST", f"{self.session}/se/log", {"type": "browser"})]

    def close(self) -> None:
        self._ask("DELETE", self.session)


@contextlib.contextmanager
def browsing(profile: Path) -> Iterator[Browser]:
    """A browser whose own files lie in `profile`; skips the test where none is installed."""
    if CHROMIUM is None or CHROMEDRIVER is None:
        pytest.skip("chromium and chromedriver are not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    driver = subprocess.Popen([CHROMEDRIVER, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with contextlib.closing(_started(f"http://127.0.0.1:{port}", profile)) as found:
            yield found
    finally:
        driver.terminate()
        driver.wait(timeout=20)


def _started(at: str, profile: Path) -> Browser:
    deadline = time.monotonic() + 30
    while True:
        try:
            with urllib.request.urlopen(f"{at}/status", timeout=5):
                return Browser(at, profile)
        except (urllib.error.URLError, ConnectionError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
