"""A headless Chromium that a test can ask things of, by the W3C WebDriver protocol; nothing leaves the machine."""

from __future__ import annotations

import base64
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
)


def missing() -> str:
    """Return what is not installed, "" where all is."""
    found = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    return " and ".join(found)


class Browser:
    """One browser with one page; `with Browser(folder) as browser`."""

    def __init__(self, folder: Path, width: int = 1200, height: int = 900) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self.log = (folder / "chromedriver.log").open("wb")
        self.process = subprocess.Popen(
            [str(shutil.which("chromedriver")), f"--port={self.port}"], stdout=self.log, stderr=self.log
        )
        self.session = ""
        arguments = [*FLAGS, f"--user-data-dir={folder / 'profile'}", f"--window-size={width},{height}"]
        options = {"args": arguments, "binary": shutil.which("chromium")}
        wanted = {"browserName": "chrome", "goog:chromeOptions": options}
        self._wait()
        self.session = self.call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})["sessionId"]

    def _wait(self) -> None:
        for _ in range(200):
            try:
                if self.call("GET", "/status", None)["ready"]:
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        raise RuntimeError("chromedriver does not answer")

    def call(self, method: str, path: str, body: Any) -> Any:
        """Send one command and return its value."""
        data = None if body is None else json.dumps(body).encode()
        place = f"http://127.0.0.1:{self.port}{path}"
        request = urllib.request.Request(place, data, {"Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())["value"]

    def open(self, page: Path) -> None:
        """Open a file."""
        self.call("POST", f"/session/{self.session}/url", {"url": page.resolve().as_uri()})

    def run(self, script: str) -> Any:
        """Run JavaScript in the page and return what it returns."""
        return self.call("POST", f"/session/{self.session}/execute/sync", {"script": script, "args": []})

    def picture(self, path: Path) -> None:
        """Write what the window shows as PNG."""
        path.write_bytes(base64.b64decode(self.call("GET", f"/session/{self.session}/screenshot", None)))

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if self.session:
                self.call("DELETE", f"/session/{self.session}", None)
        finally:
            self.process.terminate()
            self.process.wait()
            self.log.close()
