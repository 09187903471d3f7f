"""One process trains a run at a time, and a lock ends with its process."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from diffusion.build import ConfigError
from diffusion.lock import locked
from diffusion.saving import Checkpoints

HOLD = """
import sys, time
from pathlib import Path
from diffusion.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_run_in_use_is_refused_until_its_process_has_died(tmp_path: Path) -> None:
    root = Path(__file__).parent.parent
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, cwd=root)
    assert other.stdout is not None
    other.stdout.readline()
    with (
        pytest.raises(
            ConfigError, match=rf"is being trained by process {other.pid} on .* since \d{{4}}-.*: wait until"
        ),
        locked(tmp_path),
    ):
        pass
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    other.stdout.close()
    with locked(tmp_path):
        assert f"process {os.getpid()} " in (tmp_path / ".lock").read_text()


def test_a_closed_terminal_saves_unless_it_is_ignored(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    before = signal.getsignal(signal.SIGHUP)
    try:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with checkpoints.listening():
            assert signal.getsignal(signal.SIGHUP) == checkpoints._on_signal
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with checkpoints.listening():
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
