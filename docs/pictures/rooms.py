"""The picture of the packages ("rooms") in docs/architecture.md: who may import whom, and how large each is.

python docs/pictures/rooms.py [folder]
"""

import sys
from pathlib import Path

from matplotlib.figure import Figure

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests" / "structure"), str(Path(__file__).parent)]

import style
from import_order import ROOMS

# The way of a batch, and that of a sample, through the packages.
TRAINING, SAMPLING = (
    ["train.py", "training", "runs", "objectives", "denoisers", "networks"],
    (["sample.py", "sampling", "runs", "samplers", "denoisers", "networks"]),
)
# Positions of packages, so that no way crosses a package that is not on it.
X = {
    **{"training": 0.2, "evaluation": 0.75, "sampling": 0.45, "runs": 0.35, "exchange": 0.75, "models": 0.75},
    **{"objectives": 0.22, "denoisers": 0.36, "ode": 0.52, "trainable": 0.85},
}


def lines(room: str) -> int:
    """Lines of Python in a package or a file."""
    path = ROOT / room if room.endswith(".py") or room == "data" else ROOT / "diffusion" / room
    files = path.rglob("*.py") if path.is_dir() else [path if path.suffix else path.with_suffix(".py")]
    return sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files)


def picture() -> Figure:
    """A row for each line of `ROOMS`, the scripts on top; a module may import what stands below it."""
    scripts = ["train.py", "sample.py", "evaluate.py", "export.py", "compare.py"]
    rows = [scripts, *(line.split() for line in reversed(ROOMS))]
    rows[-2].append("data")
    figure = Figure(figsize=(style.WIDTH, 0.52 * len(rows)))
    axes = figure.subplots()
    axes.set_axis_off()
    axes.set_xlim(0, 1)
    axes.set_ylim(-len(rows), 0)
    centres = {}
    for y, names in enumerate(rows):
        width = 1 / max(len(names), 4)
        for x, name in enumerate(names):
            centre = (X.get(name, 0.5 + (x - (len(names) - 1) / 2) * width), -y - 0.5)
            centres[name] = centre
            size = 6.5 if len(names) > 6 else 8.5
            axes.annotate(
                f"{name}\n{lines(name)}",
                centre,
                ha="center",
                va="center",
                fontsize=size,
                linespacing=1.1,
                bbox={"boxstyle": "round,pad=0.25", "facecolor": "white", "edgecolor": style.GREY, "linewidth": 0.8},
                zorder=3,
            )
    for way, colour, label in ((TRAINING, style.BLUE, "a batch"), (SAMPLING, style.VERMILLION, "a sample")):
        xs, ys = zip(*(centres[name] for name in way), strict=True)
        axes.plot(xs, ys, color=colour, linewidth=2.2, alpha=0.45, label=f"the way of {label}", zorder=2)
    axes.legend(loc="center right")
    return figure


if __name__ == "__main__":
    style.save(picture(), style.folder(), "rooms.png")
