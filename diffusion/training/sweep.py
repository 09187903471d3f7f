"""The table that a sweep ends with."""

import math
import re
from typing import Any, NamedTuple

# Losses of runs that differ in one of these measure different things.
SETS_THE_LOSS = (
    *("dataset", "autoencoder", "objective", "denoiser", "schedule", "timesteps", "experiment", "debug"),
    "condition_dropout",
)


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


def table(results: list[Result]) -> str:
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
    if len(groups) > 1:
        lines.append(
            f"val/loss does not compare runs that differ in {', '.join(apart)}: compare the scores of their samples, "
            f"python evaluate.py ckpt=RUN"
        )
    return "\n".join(lines)
