"""What a speed run found: rows, the better weights of each, targets that were reached, the picture."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from timing import table

SCORES = ("frechet_classifier", "frechet_random")


class Row(NamedTuple):
    """Scores of an arm's weights after so many minutes of its training."""

    arm: str
    minute: float
    images: int
    weights: str
    frechet_classifier: float
    frechet_random: float


def read(path: Path) -> list[Row]:
    """The rows of a file; none if it is not there."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8") as file:
        return [
            Row(r["arm"], float(r["minute"]), int(r["images"]), r["weights"], *(float(r[score]) for score in SCORES))
            for r in csv.DictReader(file)
        ]


def append(path: Path, rows: Sequence[Row]) -> None:
    """Adds rows to a file, with a head if it is new."""
    new = not path.is_file()
    with path.open("a", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(Row._fields)
        writer.writerows(rows)


def better(rows: Sequence[Row]) -> list[Row]:
    """Of the raw and the averaged weights of an arm at a minute those that score better by the classifier."""
    found: dict[tuple[str, float], Row] = {}
    for row in rows:
        other = found.get((row.arm, row.minute))
        if other is None or row.frechet_classifier < other.frechet_classifier:
            found[row.arm, row.minute] = row
    return list(found.values())


def reached(rows: Sequence[Row], arm: str, score: str, target: float) -> str:
    """The first minute at which an arm scores so well; "not reached" if it never does."""
    minutes = [row.minute for row in rows if row.arm == arm and getattr(row, score) <= target]
    return f"{min(minutes):g}" if minutes else "not reached"


def report(rows: Sequence[Row], targets: Sequence[float]) -> str:
    """A table of scores by minute, and one of the minutes at which targets of the classifier's score are reached."""
    best = better(rows)
    arms = list(dict.fromkeys(row.arm for row in best))
    minutes = sorted({row.minute for row in best})
    at = {(row.arm, row.minute): row for row in best}
    cells = [[arm, *(_cell(at[arm, minute]) if (arm, minute) in at else "-" for minute in minutes)] for arm in arms]
    first = table(["classifier / random (weights)", *(f"{minute:g} min" for minute in minutes)], cells)
    rates = [[arm, *(reached(best, arm, SCORES[0], target) for target in targets)] for arm in arms]
    return f"{first}\n\n{table(['minutes to a classifier score of', *map(str, targets)], rates)}"


def _cell(row: Row) -> str:
    return f"{row.frechet_classifier:.2f} / {row.frechet_random:.2f} ({row.weights})"


def picture(rows: Sequence[Row], path: Path) -> None:
    """Both scores over minutes, a line for each arm."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    best = better(rows)
    for place, score in enumerate(SCORES):
        axes = figure.add_subplot(1, 2, place + 1, xlabel="minutes of training", ylabel=score, yscale="log")
        for arm in dict.fromkeys(row.arm for row in best):
            points = sorted((row.minute, getattr(row, score)) for row in best if row.arm == arm)
            axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=arm)
        axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    figure.savefig(path)
