"""Calling the scripts in process, as the command line would."""

import contextlib
import io
import sys
from pathlib import Path
from types import ModuleType
from typing import NamedTuple
from unittest import mock

from hydra._internal.hydra import Hydra

# The smallest run worth the name: two levels, sixteen images, four steps; PREVIEWS is what takes most of its time.
TINY = (
    *("dataset=digits", "network.widths=[8,16]", "network.blocks=1", "batch_size=16"),
    *("trainer.max_steps=4", "val_every=2", "trainer.limit_val_batches=2", "log_every=1", "timesteps=50"),
    "preview_every=0",
)
PREVIEWS = "preview_every=2"


def on_digits(settings: str) -> list[str]:
    """These settings of train.py, with dataset=digits where neither data nor a run is named."""
    words = settings.split()
    named = any(word.startswith(("dataset=", "experiment=", "resume=")) for word in words)
    return words if named else ["dataset=digits", *words]


class Outcome(NamedTuple):
    """What a command did: its exit status and what it printed."""

    code: int
    out: str
    err: str


def call(script: ModuleType, folder: Path, *arguments: str) -> Outcome:
    """`python script.py arguments` in a folder; an exception that would show a traceback is raised.

    Hydra composes every configuration twice, the first time to find `hydra.mode`. No configuration here sets that, so
    the first time is left out: it takes half of a refusal's time.
    """
    out, err, before = io.StringIO(), io.StringIO(), sys.argv
    code: object = 0
    sys.argv = [f"{script.__name__}.py", *arguments]
    try:
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            contextlib.chdir(folder),
            mock.patch.object(Hydra, "get_mode", return_value=None),
        ):
            script.entry()
    except SystemExit as stop:
        code = stop.code or 0
    finally:
        sys.argv = before
    assert isinstance(code, int), code
    return Outcome(code, out.getvalue(), err.getvalue())


def assert_refused(outcome: Outcome, *said: str) -> None:
    """Exit status 1, one line on stderr that says all of this, nothing on stdout."""
    assert outcome.code == 1
    assert outcome.out == ""
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1
    for part in said:
        assert part in outcome.err
