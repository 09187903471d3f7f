"""Pictures of an evaluation: nearest neighbours, class histograms, the terms of a variational bound."""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from diffusion import media
from diffusion.evaluation.seeds import Row, is_moderate, mean
from diffusion.media import Pixels


def neighbour_picture(fake: Tensor, training: Tensor, distances: Tensor, indices: Tensor, rows: int = 8) -> Pixels:
    """The samples that are nearest to the training set, one a line: the sample, a gap, its nearest training images.

    Args:
        fake: bytes (n, C, H, W).
        training: bytes (N, C, H, W).
        distances: of the samples to their neighbours, (n, k).
        indices: of these, (n, k).
        rows: lines.
    """
    chosen = distances[:, 0].argsort(stable=True)[:rows]
    cells = torch.cat((fake[chosen, None], torch.full_like(fake[chosen, None], 255), training[indices[chosen]]), dim=1)
    images = cells.flatten(0, 1).permute(0, 2, 3, 1).numpy()
    return media.grid(media.upscale(images, 64), len(chosen))


def histogram_picture(fake: np.ndarray, real: np.ndarray) -> Pixels:
    """Shares of the classes (c,) of samples and of real data, side by side."""
    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(fake))
    axes.bar(places - 0.2, fake, 0.4, label="samples")
    axes.bar(places + 0.2, real, 0.4, label="real", color="0.6")
    axes.set(xlabel="class, as the classifier sees it", ylabel="share", xticks=places)
    figure.legend(loc="outside upper center", ncols=2)
    return pixels_of(figure)


def bound_picture(times: Tensor, terms: Tensor, unit: str) -> Pixels:
    """The mean terms of a variational bound over t, and their sum from t = 1 down to t.

    Args:
        times: (steps + 1,), falling from 1 to 0.
        terms: (n, steps + 1), the prior first, then the step that starts at each time but the last.
        unit: of the terms.
    """
    mean = terms.mean(0).numpy()
    t = times[:-1].numpy()
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    each, total = figure.subplots(1, 2)
    each.plot(t[:-1], mean[1:-1], label="KL of a step")
    each.plot(t[-1:], mean[-1:], "o", label="decoder")
    each.plot([1], mean[:1], "s", label="prior")
    each.set(xlabel="t", ylabel=unit, title="terms of the bound")
    # A term can be zero or, the decoder of continuous data, negative.
    each.set_yscale("log" if (mean > 0).all() else "symlog", **({} if (mean > 0).all() else {"linthresh": 1e-6}))
    each.legend()
    total.plot(times.numpy(), mean.cumsum())
    total.set(xlabel="t", title="their sum, from t = 1 on")
    return pixels_of(figure)


def comparison_picture(title: str, rows: Sequence[Row], scores: Sequence[str]) -> Pixels:
    """A panel for each score, in it a line for each row: its runs as points, their mean and its interval.

    Scores of samples that diverged are left out, and so are their means.

    Args:
        title: of the whole.
        rows: from top to bottom.
        scores: by name.
    """
    figure = Figure(figsize=(4 + 3 * len(scores), 1.2 + 0.32 * len(rows)), dpi=120, layout="constrained")
    panels = figure.subplots(1, len(scores), sharey=True, squeeze=False)[0]
    for axes, score in zip(panels, scores, strict=True):
        for height, row in enumerate(rows):
            values = list(filter(is_moderate, row.scores.get(score, [])))
            axes.plot(values, [height] * len(values), "o", markersize=3, color="0.6")
            if values and len(values) == len(row.scores[score]):
                found = mean(values)
                axes.errorbar(
                    found.value, height, xerr=found.half_width, fmt="D", markersize=4, capsize=3, color="#3e60d6"
                )
        axes.set(xlabel=score, yticks=range(len(rows)), yticklabels=[row.name for row in rows])
        axes.grid(axis="x", alpha=0.3)
    panels[0].invert_yaxis()
    figure.suptitle(title, fontsize=9)
    return pixels_of(figure)


def pixels_of(figure: Figure) -> Pixels:
    """A figure as pixels (H, W, 3)."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
