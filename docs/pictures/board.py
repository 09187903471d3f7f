"""A picture of TensorBoard with the runs of a folder, by a headless Chromium.

python docs/pictures/board.py lightning_logs docs/images/board.png
"""

import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from page import browser

START_S = 60.0


@contextmanager
def serving(logdir: str) -> Iterator[str]:
    """The address of a TensorBoard that runs until the block ends."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "tensorboard.main", "--logdir", logdir, "--host", "127.0.0.1", "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{port}/"
    try:
        end = time.monotonic() + START_S
        while True:
            try:
                urllib.request.urlopen(address).close()
                break
            except urllib.error.URLError:
                if time.monotonic() > end or process.poll() is not None:
                    raise
                time.sleep(0.5)
        yield address
    finally:
        process.terminate()
        process.wait(30)


def main(logdir: str, out: str) -> None:
    """Opens the page on which TensorBoard begins and writes its picture once it shows a curve."""
    with serving(logdir) as address, tempfile.TemporaryDirectory() as profile, browser(Path(profile)) as chromium:
        chromium.open(address)
        chromium.until("document.body?.innerText.includes('train')")
        # The settings beside the curves take a third of the width.
        button = "[...document.querySelectorAll('button')].find((button) => button.innerText.includes('Settings'))"
        chromium.evaluate(f"{button}.click()")
        for _ in range(2):  # the first time gives the window its size, at which the curves are drawn anew
            chromium.screenshot(Path(out), 1200, 1150)
            time.sleep(8)  # pictures and curves are loaded one by one, and no element says when all are there
        chromium.screenshot(Path(out), 1200, 1150)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(f"usage:{__doc__}")
    main(sys.argv[1], sys.argv[2])
