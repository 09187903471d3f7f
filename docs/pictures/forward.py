"""The pictures of docs/forward.md: one photograph on its way to noise, and the curves of every schedule.

python docs/pictures/forward.py
"""

import sys
from itertools import cycle
from pathlib import Path

import numpy as np
import torch
import yaml
from matplotlib.figure import Figure
from sklearn.datasets import load_sample_image
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))

import style

from diffusion.build import build
from diffusion.noise import Noise
from diffusion.schedules import CosineSchedule, LinearSchedule, Schedule

CONFIGS = Path(__file__).parents[2] / "configs" / "schedule"
# Lines that lie on each other stay visible.
DASHES = ("-", (0, (4, 2)), "-", (0, (4, 2)), (0, (1.5, 1.5)))


def photograph(size: int) -> Tensor:
    """scikit-learn's flower, its middle averaged down to (3, size, size) in [-1, 1]."""
    pixels = torch.from_numpy(load_sample_image("flower.jpg").copy()).permute(2, 0, 1).double()
    square = pixels[:, :, 150:577][:, :427, :427]
    return torch.nn.functional.adaptive_avg_pool2d(square, size) / 127.5 - 1


def strip(schedules: dict[str, Schedule], columns: int = 9, size: int = 60) -> Figure:
    """One image at even times, with the same noise everywhere; a row a schedule."""
    x0, eps = photograph(size), Noise(0, torch.arange(1)).normal((3, size, size))[0].double()
    times = torch.linspace(0, 1, columns, dtype=torch.float64)
    # Every pixel of the image is drawn as exactly two by two: placed by hand, in pixels.
    dpi, cell, gap, left, line = style.DPI, 2 * size, 3, 24, 20
    width, height = left + columns * (cell + gap), (cell + line) * len(schedules) + line
    figure = Figure(figsize=(width / dpi, height / dpi))
    figure.set_layout_engine("none")
    for i, (name, schedule) in enumerate(schedules.items()):
        bottom = height - line - cell - i * (cell + line)
        figure.text(left / 2 / width, (bottom + cell / 2) / height, name, rotation=90, ha="center", va="center")
        for j, t in enumerate(times):
            alpha_t, sigma_t = schedule(t)
            x_t = alpha_t * x0 + sigma_t * eps
            x = left + j * (cell + gap)
            axis = figure.add_axes((x / width, bottom / height, cell / width, cell / height))
            axis.imshow(np.clip((x_t.permute(1, 2, 0).numpy() + 1) / 2, 0, 1), interpolation="nearest")
            axis.set_axis_off()
            centre = (x + cell / 2) / width
            note = rf"$\alpha_t = {alpha_t:.3f}$"
            figure.text(centre, (bottom - 4) / height, note, ha="center", va="top", fontsize=8)
            if i == 0:
                figure.text(centre, (bottom + cell + 4) / height, f"$t = {t:g}$", ha="center", va="bottom", fontsize=8)
    return figure


def curves() -> Figure:
    """alpha_t, sigma_t and log-SNR of each schedule that can be chosen, over t; the discrete ones above."""
    groups: dict[str, dict[str, Schedule]] = {"discrete": {}, "continuous": {}}
    for path in sorted(CONFIGS.glob("*.yaml")):
        if path.stem == "ve":  # variance_exploding between bounds that depend on the data
            continue
        schedule = build(yaml.safe_load(path.read_text()), path.stem)
        groups["discrete" if schedule.timesteps else "continuous"][path.stem] = schedule
    figure = Figure(figsize=(style.WIDTH, 2.35 * len(groups)))
    for row, (title, schedules) in zip(figure.subplots(len(groups), 3, squeeze=False), groups.items(), strict=True):
        for (name, schedule), dashes in zip(schedules.items(), cycle(DASHES), strict=False):
            t = torch.linspace(schedule.t_min, 1, 400, dtype=torch.float64)
            alpha, sigma = schedule(t)
            for axis, values in zip(row, (alpha, sigma, schedule.log_snr(t)), strict=True):
                axis.plot(t, values, label=name, linestyle=dashes)
        row[1].set_ylim(-0.05, 1.1)  # variance_exploding goes on to 80
        row[0].set(ylabel=title)
        for axis, quantity in zip(row, (r"$\alpha_t$", r"$\sigma_t$", r"$\log(\alpha_t^2 / \sigma_t^2)$"), strict=True):
            axis.set(title=quantity, xlabel="$t$")
        row[2].set_ylim(-16, 16)
        row[2].axhline(0, color=style.GREY, linewidth=0.6, zorder=0)
        row[2].legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def main(folder: Path) -> None:
    style.save(
        strip({"linear": LinearSchedule(), "cosine": CosineSchedule()}), folder, "forward_strip.png", palette=False
    )
    style.save(curves(), folder, "forward_schedules.png")


if __name__ == "__main__":
    main(style.folder())
