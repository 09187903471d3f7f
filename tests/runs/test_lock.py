"""One process trains a run at a time, and a lock ends with its process."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.processes import TINY, Run, checkpoint, error_line, logged_steps, run_folder, train

from diffusion.build import ConfigError
from diffusion.runs.lock import locked
from diffusion.training.saving import Checkpoints

HOLD = """
import sys, time
from pathlib import Path
from diffusion.runs.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_run_in_use_is_refused_until_its_process_has_died(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
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


def test_of_two_resumes_at_once_one_trains_and_the_other_is_refused(tmp_path: Path) -> None:
    train(tmp_path, *TINY, "trainer.max_steps=3")
    (run_folder(tmp_path) / ".lock").write_text(
        "by process 1 on nowhere since 2000-01-01 00:00:00"
    )  # of a dead process
    first = Run(tmp_path, "resume=last", "trainer.max_steps=100000")
    assert first.until(lambda: logged_steps(tmp_path) > 3)
    refused = error_line(Run(tmp_path / "lightning_logs", f"resume={run_folder(tmp_path)}", "trainer.max_steps=5"))
    assert refused.startswith(f"{run_folder(tmp_path)} is being trained by process {first.pid} on ")
    assert " since 20" in refused
    first.signal(signal.SIGTERM)
    assert first.wait() == 143
    step = checkpoint(tmp_path)["global_step"]
    assert f"resuming {run_folder(Path())}" in train(tmp_path, "resume=last", f"trainer.max_steps={step + 1}")
    assert checkpoint(tmp_path)["global_step"] == step + 1


def test_a_closed_terminal_saves_unless_it_is_ignored(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, {})
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
