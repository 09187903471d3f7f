"""What the pictures of the pages share: one look, and how they are written."""

import io
import sys
from pathlib import Path

import matplotlib as mpl
from cycler import cycler
from matplotlib.figure import Figure
from PIL import Image

# Okabe & Ito 2008: colours that people with any of the usual colour blindnesses tell apart, also in print.
BLUE, VERMILLION, GREEN, ORANGE, SKY, PURPLE = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9", "#CC79A7"
COLOURS = (BLUE, VERMILLION, GREEN, ORANGE, SKY, PURPLE)
GREY = "#8A8A8A"
WIDTH, DPI = 9.0, 130  # of a picture, in inches; pixels an inch

mpl.use("agg")
mpl.rcParams.update(
    {
        "figure.dpi": DPI,
        "figure.facecolor": "white",  # readable in a dark page too
        "figure.constrained_layout.use": True,
        "font.size": 9,
        "axes.titlesize": 9.5,
        "axes.prop_cycle": cycler(color=COLOURS),
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.linewidth": 0.7,
        "lines.linewidth": 1.6,
        "legend.frameon": False,
        "legend.fontsize": 8,
        "mathtext.fontset": "cm",
    }
)


def save(figure: Figure, folder: Path, name: str, palette: bool = True) -> None:
    """Writes `folder/name`; with a palette of 256 colours, a third of the bytes, enough for all but photographs."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = io.BytesIO()
    figure.savefig(drawn)
    image = Image.open(drawn).convert("RGB")
    (image.quantize(256, dither=Image.Dither.NONE) if palette else image).save(folder / name, optimize=True)
    print(folder / name)


def folder() -> Path:
    """Where pictures go: the command line's only argument, or docs/images."""
    if len(sys.argv) > 2 or sys.argv[-1].startswith("-"):
        sys.exit(f"usage: python {sys.argv[0]} [folder]")
    return Path(sys.argv[1]) if len(sys.argv) == 2 else Path(__file__).parents[1] / "images"
