"""A picture of an exported page after it has drawn, by a headless Chromium.

    python docs/pictures/page.py page.html docs/images/page_fashion.png "seed=0&guidance=2"

The browser is driven by its protocol over pipes, as the tests of pages drive it.
"""

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Browser:
    """One page of a running Chromium; requests and answers are JSON that ends in a zero byte."""

    def __init__(self, to: int, back: int) -> None:
        self._to, self._back, self._id, self._rest = to, back, 0, b""
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = ""
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.send("Page.enable")

    _session = ""

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """What the browser answers; other messages are passed over."""
        self._id += 1
        message = {"id": self._id, "method": method, "params": parameters}
        os.write(
            self._to, json.dumps(message | ({"sessionId": self._session} if self._session else {})).encode() + b"\0"
        )
        while True:
            while b"\0" not in self._rest:
                part = os.read(self._back, 1 << 20)
                assert part, "the browser is gone"
                self._rest += part
            text, _, self._rest = self._rest.partition(b"\0")
            answer = json.loads(text)
            if answer.get("id") == self._id:
                assert "error" not in answer, answer["error"]
                return dict(answer["result"])

    def open(self, address: str) -> None:
        self.send("Page.navigate", url=address)

    def evaluate(self, script: str) -> Any:
        """The value of an expression in the page; a promise is awaited."""
        answer = self.send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, script: str, seconds: float = 60) -> None:
        """Waits until an expression is true."""
        end = time.monotonic() + seconds
        while not self.evaluate(script):
            assert time.monotonic() < end, self.evaluate("document.body.innerText")
            time.sleep(0.1)

    def drawn(self, seconds: float = 120) -> None:
        """Waits until the page has drawn."""
        self.until("['done', 'failed'].includes(document.documentElement?.dataset.drawing)", seconds)
        assert self.evaluate("document.documentElement.dataset.drawing") == "done", self.evaluate(
            "document.body.innerText"
        )

    def screenshot(self, path: Path, width: int, height: int, dark: bool = False) -> None:
        """A picture of the whole page in a window of this size."""
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.send("Emulation.setEmulatedMedia", features=scheme)
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        answer = self.send("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(answer["data"]))


@contextmanager
def browser(profile: Path, *flags: str) -> Iterator[Browser]:
    """A browser with a fresh profile, which ends with the block."""
    if CHROMIUM is None:
        raise SystemExit("error: Chromium is not installed")
    to_read, to_write = os.pipe()
    back_read, back_write = os.pipe()
    # Chromium reads from descriptor 3 and writes to 4.
    command = f'exec "$0" "$@" 3<&{to_read} 4>&{back_write}'
    arguments = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--remote-debugging-pipe",
        f"--user-data-dir={profile}",
    ]
    process = subprocess.Popen(
        ["bash", "-c", command, CHROMIUM, *arguments, *flags, "about:blank"],
        pass_fds=(to_read, back_write), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(to_read)
    os.close(back_write)
    try:
        yield Browser(to_write, back_read)
    finally:
        process.terminate()
        process.wait(30)
        os.close(to_write)
        os.close(back_read)


def main(page: str, out: str, settings: str = "") -> None:
    """Opens a page with the settings that stand after # in its address, and writes its picture."""
    with tempfile.TemporaryDirectory() as profile, browser(Path(profile)) as chromium:
        chromium.open(f"{Path(page).resolve().as_uri()}#{settings}")
        chromium.drawn()
        chromium.screenshot(Path(out), 1000, 800)


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(f"usage:{__doc__}")
    main(*sys.argv[1:])
