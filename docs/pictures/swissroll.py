"""The pictures of docs/swissroll.md: both processes of the model of 2015, and what a modern one knows of the same data.

python train.py experiment=swissroll
python train.py experiment=fast_swissroll
python docs/pictures/swissroll.py lightning_logs/swissroll/version_0 lightning_logs/swissroll/version_1
"""

import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))

import style

from data.stream import Source
from diffusion.build import build
from diffusion.forward import trajectory
from diffusion.likelihood import ode_log_density, prior_log_density
from diffusion.media import processes
from diffusion.noise import EVALUATION, Noise
from diffusion.runs.checkpoints import find
from diffusion.sampling import Pipeline

LIMIT = 1.6  # half the side of a picture
# Steps to show, of 40, data first: the spiral is lost in the first few.
COLUMNS = (0, 1, 2, 4, 8, 40)
FRAMES = (40, 30, 20, 14, 10, 8, 6, 5, 4, 3, 2, 1, 0)


def model(spec: str, n: int) -> tuple[Pipeline, Tensor]:
    """A trained model and n points of its test split."""
    checkpoint = find(spec)
    source: Source = build(checkpoint.config["dataset"]["source"])
    return Pipeline.from_checkpoint(checkpoint), source.load().test.get(torch.arange(n))


def _axes(axis: Axes) -> Axes:
    axis.set(xlim=(-LIMIT, LIMIT), ylim=(-LIMIT, LIMIT), xticks=[], yticks=[], aspect="equal")
    axis.spines[:].set_visible(False)
    return axis


def both(pipeline: Pipeline, x0: Tensor, steps: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The states of the forward and of the reverse process after so many noising steps."""
    keep = [len(pipeline.times) - 1 - i for i in steps]
    noise = Noise(0, torch.arange(len(x0)), EVALUATION)
    forward = trajectory(pipeline.denoiser.schedule, x0, pipeline.times[keep], noise)
    return forward, pipeline.frames(len(x0), batch_size=len(x0), keep=keep)


def strip(pipeline: Pipeline, x0: Tensor) -> Figure:
    """The forward process above, the reverse one below, at the same times."""
    rows = dict(zip(("forward", "reverse"), both(pipeline, x0, COLUMNS), strict=True))
    figure = Figure(figsize=(style.WIDTH, 2 * style.WIDTH / len(COLUMNS) + 0.2))
    axes = figure.subplots(2, len(COLUMNS))
    for row, (name, states), colour in zip(axes, rows.items(), (style.BLUE, style.VERMILLION), strict=True):
        for axis, i, state in zip(row, COLUMNS, states, strict=True):
            _axes(axis).scatter(state[:, 0], state[:, 1], s=1.5, color=colour, alpha=0.5, linewidths=0)
            if name == "forward":
                axis.set_title(rf"$i = {i}$")
        row[0].set_ylabel(name)
    return figure


def arrows(pipeline: Pipeline, x0: Tensor, sigmas: tuple[float, ...] = (1.0, 0.5, 0.2, 0.1), side: int = 21) -> Figure:
    """The learned score over the data noised to a few levels, times sigma: minus the noise that it sees."""
    schedule = pipeline.denoiser.schedule
    line = torch.linspace(-0.94 * LIMIT, 0.94 * LIMIT, side)
    grid = torch.cartesian_prod(line, line)
    figure = Figure(figsize=(style.WIDTH, style.WIDTH / len(sigmas) + 0.3))
    for axis, level in zip(figure.subplots(1, len(sigmas)), sigmas, strict=True):
        t = schedule.inverse(torch.tensor(-2 * math.log(level), dtype=torch.float64))
        alpha, sigma = schedule(t)
        noised = trajectory(schedule, x0, t[None], Noise(0, torch.arange(len(x0)), EVALUATION))[0] / alpha
        with torch.no_grad():
            score = (alpha * pipeline.denoiser((alpha * grid).float(), t) - alpha * grid) / sigma**2
        _axes(axis).scatter(noised[:, 0], noised[:, 1], s=3, color=style.GREY, alpha=0.5, linewidths=0)
        axis.quiver(*grid.T, *(sigma * score).T, color=style.BLUE, scale=40, width=0.005, headwidth=4)
        axis.set_title(rf"$\sigma_t / \alpha_t = {level:g}$")
    return figure


def true_density(x: Tensor, noise: float = 0.05, nodes: int = 4000) -> Tensor:
    """log-density of the roll at x (n, 2): its curve, the parameter uniform on (1.5 pi, 4.5 pi), widened by a
    Gaussian."""
    u = math.pi * (1.5 + 3 * (torch.arange(nodes, dtype=torch.float64) + 0.5) / nodes)
    curve = torch.stack((u * u.cos(), u * u.sin()), dim=1) / 10
    squared = torch.cdist(x.double(), curve) ** 2
    return (-squared / (2 * noise**2)).logsumexp(1) - math.log(nodes * 2 * math.pi * noise**2)


def log_density(pipeline: Pipeline, x: Tensor, steps: int) -> Tensor:
    """The model's log-density by the probability-flow ODE with the exact trace, (n,)."""
    x_1, change = ode_log_density(pipeline.denoiser, x, steps=steps, probe="exact")
    return prior_log_density(pipeline.denoiser.schedule, x_1) + change


def density(pipeline: Pipeline, x0: Tensor, side: int = 64, steps: int = 30) -> Figure:
    """The true density and the model's, on the same scale; in the titles minus their mean log at test points."""
    line = (torch.arange(side, dtype=torch.float32) + 0.5) * 2 * LIMIT / side - LIMIT
    y, x = torch.meshgrid(line, line, indexing="ij")
    grid = torch.stack((x.flatten(), y.flatten()), dim=1)
    values = {
        "the data's": (true_density(grid), true_density(x0)),
        "the model's": (log_density(pipeline, grid, steps), log_density(pipeline, x0, steps)),
    }
    figure = Figure(figsize=(0.75 * style.WIDTH, 0.4 * style.WIDTH))
    axes = figure.subplots(1, 2)
    for axis, (name, (pixels, points)) in zip(axes, values.items(), strict=True):
        image = _axes(axis).imshow(
            np.exp(pixels.reshape(side, side).numpy()),
            cmap="magma",
            vmin=0,
            vmax=values["the data's"][0].exp().max().item(),
            origin="lower",
            extent=(-LIMIT, LIMIT, -LIMIT, LIMIT),
            interpolation="bilinear",
        )
        axis.set_title(f"{name}: {-points.mean().item() / 2:.3f} nats/dim")
    figure.colorbar(image, ax=axes, shrink=0.8, label="density")
    return figure


def draw(of_2015: str, modern: str, folder: Path, n: int = 2000, side: int = 64) -> None:
    """Writes all pictures to a folder."""
    pipeline, x0 = model(of_2015, n)
    style.save(strip(pipeline, x0), folder, "swissroll_processes.png")
    processes.save(folder / "swissroll_processes.gif", *both(pipeline, x0[:600], FRAMES))
    pipeline, x0 = model(modern, n)
    style.save(arrows(pipeline, x0), folder, "swissroll_score.png")
    style.save(density(pipeline, x0[:500], side), folder, "swissroll_density.png")


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(f"usage:{__doc__}")
    draw(sys.argv[1], sys.argv[2], Path(sys.argv[3]) if len(sys.argv) == 4 else Path(__file__).parents[1] / "images")
