"""Charts for the log, as pictures."""

import numpy as np
from torch import Tensor

from diffusion.media.pictures import Pixels


def curve(x: Tensor, y: Tensor, x_label: str, y_label: str, guess: float | None = None) -> Pixels:
    """A line through the points (x, y), each (N,), as a picture (H, W, 3); y in [0, 1], a dotted line at `guess`."""
    # Here, so that nobody else waits for matplotlib; without pyplot, whose figures stay in memory.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.2), dpi=120, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot(xlabel=x_label, ylabel=y_label, ylim=(0, 1.02))
    axes.plot(x.cpu().numpy(), y.cpu().numpy(), marker="o", markersize=3, color="#3e60d6")
    if guess is not None:
        axes.axhline(guess, linestyle=":", color="grey")
    axes.grid(alpha=0.3)
    canvas.draw()
    pixels: Pixels = np.asarray(canvas.buffer_rgba())[..., :3].copy()
    return pixels
