"""A run whose output cannot be written goes on to its end."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# As a script: prints, works, prints again, and ends as its work did.
SCRIPT = """
import pathlib, sys
from diffusion.terminal import streams
streams.protect()
for _ in range(200):
    print("step " + 100 * "x")
print("a line of the bar", file=sys.stderr)
with open("work", "wb") as file:
    assert file.fileno() > 2
    file.write(b"done")
print("caf\\u00e9 \\u2192 \\udce9")
sys.exit(int(sys.argv[1]))
"""
REDIRECTED = (
    ">&-",
    "2>&-",
    ">&- 2>&-",
    "<&- >&- 2>&-",
    ">/dev/full",
    ">/dev/full 2>/dev/full",
    "| true",
    "2>&1 | true",
)


def shell(
    folder: Path, code: str, redirection: str, *arguments: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    """A Python program in bash, whose exit status is that of the program in a pipe too."""
    command = shlex.join([sys.executable, "-c", code, *arguments])
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"{command} {redirection}"],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=60,
    )


@pytest.mark.parametrize("status", [0, 3])
@pytest.mark.parametrize("redirection", REDIRECTED)
def test_the_work_is_done_and_its_exit_status_kept_whatever_becomes_of_the_output(
    redirection: str, status: int, tmp_path: Path
) -> None:
    done = shell(tmp_path, SCRIPT, redirection, str(status))
    assert done.returncode == status, done.stderr
    assert (tmp_path / "work").read_bytes() == b"done"
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr


INTERRUPTED = """
import signal, sys
from diffusion.terminal import streams
streams.protect()
signal.signal(signal.SIGINT, lambda number, frame: streams.urgent("saving"))
write = streams.Output.write
def interrupted(self, data):
    if bytes(data).startswith(b"a bar"):
        signal.raise_signal(signal.SIGINT)
    return write(self, data)
streams.Output.write = interrupted
print("a bar", file=sys.stderr)
"""


def test_a_handler_prints_while_a_write_that_it_interrupted_waits(tmp_path: Path) -> None:
    done = shell(tmp_path, INTERRUPTED, "")
    assert (done.returncode, done.stderr) == (0, "saving\na bar\n")


def test_output_on_a_full_disk_is_one_warning(tmp_path: Path) -> None:
    done = shell(tmp_path, SCRIPT, ">/dev/full", "0")
    assert done.stderr == (
        "warning: standard output is lost from here on: No space left on device\na line of the bar\n"
    )


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_character_that_the_encoding_lacks_is_escaped(encoding: str, tmp_path: Path) -> None:
    done = shell(tmp_path, SCRIPT, "| tail -1", "0", PYTHONIOENCODING=encoding, PYTHONUTF8="0")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("\\udce9\n")


@pytest.mark.parametrize("redirection", ["| head -1", ">&-", ">/dev/full", "2>&-"])
def test_the_help_page_may_be_cut_off(redirection: str, tmp_path: Path) -> None:
    code = "import train; train.entry()"
    assert shell(tmp_path, code, redirection, "--help").returncode == 0


def test_a_refusal_with_a_closed_standard_error_is_exit_status_1(tmp_path: Path) -> None:
    assert shell(tmp_path, "import train; train.entry()", "2>&-", "batch_size=0").returncode == 1


@pytest.mark.slow
@pytest.mark.parametrize("redirection", ["| true", ">&- 2>&-", ">/dev/full"])
def test_a_training_run_without_readers_ends_with_its_checkpoint(redirection: str, tmp_path: Path) -> None:
    settings = ("dataset=digits", "network.widths=[8,16]", "network.blocks=1", "trainer.max_steps=4", "val_every=2")
    done = shell(tmp_path, "import train; train.entry()", redirection, *settings, "batch_size=16", "accelerator=cpu")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "lightning_logs/digits/version_0/checkpoints/last.ckpt").exists()
