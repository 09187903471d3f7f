"""The results of a sweep, from whatever processes its runs are in, and the table that it ends with."""

import json
import math
import os
import re
import secrets
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from diffusion.runs.places import ROOT
from diffusion.terminal.commands import pasted

# Losses of runs that differ in one of these measure different things.
SETS_THE_LOSS = (
    *("dataset", "autoencoder", "objective", "denoiser", "schedule", "timesteps", "experiment", "debug"),
    "condition_dropout",
)
CHECKOUT = Path(__file__).parents[2]  # where the processes of a launcher find the scripts
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


def tabled(launch: Callable[[], None], root: Path = ROOT) -> bool:
    """Launches a run or a sweep, and prints the table that a sweep ends with, also one that ends early.

    Launchers run the jobs of a sweep in processes of their own, also on other machines that share the file system. So
    each job writes its result to a file, and these are read and removed here.

    Args:
        launch: returns when all jobs have ended.
        root: the folder of runs.

    Returns:
        Whether a run of a sweep failed.
    """
    folder = root.absolute() / f".sweep-{secrets.token_hex(6)}"
    os.environ[_GATHERED] = str(folder)
    path = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(CHECKOUT) if path is None else f"{CHECKOUT}{os.pathsep}{path}"
    results: list[Result] = []
    try:
        launch()
    finally:
        del os.environ[_GATHERED], os.environ["PYTHONPATH"]
        if path is not None:
            os.environ["PYTHONPATH"] = path
        results = [Result(**json.loads(file.read_text(encoding="utf-8"))) for file in sorted(folder.glob("*.json"))]
        _remove(folder)
        if len(results) > 1 or any(result.failure for result in results):
            print(table(results))
    return any(result.failure for result in results)


def _remove(folder: Path) -> None:
    """Removes the results, and the settings that Hydra notes before they are checked; the runs' folders hold them."""
    shutil.rmtree(folder, ignore_errors=True)
    record = folder.parent / "multirun.yaml"
    if record.exists():
        record.unlink()
        if not any(folder.parent.iterdir()):
            folder.parent.rmdir()


def keep(result: Result, number: int) -> None:
    """Hands over the result of job `number` of a sweep."""
    from diffusion.media.atomic import atomic  # imports torch, which a run has done by now

    with atomic(Path(os.environ[_GATHERED], f"{number:06d}.json")) as file:
        file.write(json.dumps(result._asdict(), default=str).encode())


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
