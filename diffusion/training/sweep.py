"""The results of a sweep, from whatever processes its runs are in, and the table that it ends with."""

import json
import math
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from diffusion.terminal.commands import pasted

# Losses of runs that differ in one of these measure different things.
SETS_THE_LOSS = (
    *("dataset", "autoencoder", "objective", "denoiser", "schedule", "timesteps", "experiment", "debug"),
    "condition_dropout",
)
# How a sweep tells its runs, in this process or in others, where their results are gathered.
_GATHERED = "DIFFUSION_SWEEP"


class Result(NamedTuple):
    """One run of a sweep.

    Args:
        typed: its settings, name -> value.
        folder: where it is.
        loss: its final validation loss; None if there was none.
        failure: why it failed; empty if it did not.
    """

    typed: dict[str, Any]
    folder: str
    loss: float | None
    failure: str


@contextmanager
def gathering(root: Path) -> Iterator[None]:
    """The results of all runs that are started meanwhile can be read by `gathered`; their files are then removed.

    Launchers run the jobs of a sweep in processes of their own, on other machines too, which share the file system.

    Args:
        root: the folder of runs.
    """
    folder = root.absolute() / f".sweep-{secrets.token_hex(6)}"
    os.environ[_GATHERED] = str(folder)
    try:
        yield
    finally:
        del os.environ[_GATHERED]
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # it holds runs
            root.rmdir()


def keep(result: Result, number: int) -> None:
    """Hands over the result of job `number` if a sweep gathers it."""
    if _GATHERED not in os.environ:
        return
    from diffusion.media.atomic import atomic  # imports torch, which a run has done by now

    with atomic(Path(os.environ[_GATHERED], f"{number:06d}.json")) as file:
        file.write(json.dumps(result._asdict(), default=str).encode())


def gathered() -> list[Result]:
    """The results so far, in the order of the jobs."""
    files = sorted(Path(os.environ[_GATHERED]).glob("*.json"))
    return [Result(**json.loads(file.read_text(encoding="utf-8"))) for file in files]


def table(results: Sequence[Result]) -> str:
    """The runs of a sweep; those whose losses compare stand together, best first, failed ones last."""
    rows = [("val/loss", "run", "settings")]
    first = results[0].typed
    varied = [name for name in first if any(row.typed.get(name) != first[name] for row in results)]
    apart = [name for name in varied if re.split(r"[./]", name)[0] in SETS_THE_LOSS]
    groups: dict[tuple[str, ...], list[Result]] = {}
    for result in results:
        groups.setdefault(tuple(str(result.typed[name]) for name in apart), []).append(result)
    for group in groups.values():
        for typed, folder, loss, failure in sorted(group, key=lambda row: math.inf if row.loss is None else row.loss):
            settings = " ".join(f"{name}={typed[name]}" for name in varied)
            rows.append(
                ("-" if loss is None else f"{loss:.5f}", folder, settings + (f"  failed: {failure}" if failure else ""))
            )
    widths = [max(len(row[i]) for row in rows) for i in range(2)]
    lines = [f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c}" for a, b, c in rows]
    if len(groups) > 1 or "seed" in varied:
        why = (
            f"val/loss does not compare runs that differ in {', '.join(apart)}: " if len(groups) > 1 else "over seeds: "
        )
        runs = ",".join(pasted(result.folder) for result in results if not result.failure)
        lines.append(f"{why}compare the scores of their samples, python compare.py runs=[{runs}] samplers=[own]")
    return "\n".join(lines)
