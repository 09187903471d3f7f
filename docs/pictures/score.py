"""The pictures of docs/score.md, all of them from distributions whose score is known exactly.

python docs/pictures/score.py
"""

import sys
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))

import style

from data.toy import Toy2d
from diffusion.denoisers import GaussianMixtureDenoiser
from diffusion.forward import score_from
from diffusion.noise import Noise
from diffusion.samplers import (
    AnnealedLangevinSampler,
    DDIMSampler,
    EulerMaruyamaSampler,
    LangevinSampler,
    LogSNRGrid,
    Sampler,
    UniformGrid,
)
from diffusion.schedules import FlowSchedule, Schedule, SubVPSchedule, VarianceExplodingSchedule, VPSchedule


def field(levels: tuple[float, ...] = (0.15, 0.5, 1.0, 2.0), points: int = 13) -> Figure:
    """The density and sigma_t times the score of three Gaussians, at some sigma_t with alpha_t = 1."""
    schedule = VarianceExplodingSchedule(sigma_min=0.1, sigma_max=5)
    means = torch.tensor([[-1.6, -1.0], [1.5, -1.2], [0.1, 1.6]], dtype=torch.float64)
    covariances = torch.tensor([[[0.3, 0.2], [0.2, 0.3]], [[0.15, 0], [0, 0.5]], [[0.6, 0], [0, 0.08]]]).double()
    mixture = GaussianMixtureDenoiser(schedule, means, covariances)
    figure = Figure(figsize=(style.WIDTH, 2.5))
    for axis, sigma in zip(figure.subplots(1, len(levels)), levels, strict=True):
        t = schedule.inverse(-2 * torch.tensor(sigma, dtype=torch.float64).log())
        fine, coarse = plane(3.4, 120), plane(3.1, points)
        axis.contourf(*fine.T.reshape(2, 120, 120), mixture.log_prob(fine, t).exp().reshape(120, 120), 12, cmap="Blues")
        arrows = sigma * score_from(schedule, coarse, t, mixture(coarse, t))
        axis.quiver(*coarse.T, *arrows.T, color=style.VERMILLION, angles="xy", scale=32, width=0.008)
        axis.set_title(rf"$\sigma_t = {sigma:g}$")
        bare(axis, 3.4)
    return figure


def plane(half: float, points: int) -> Tensor:
    """(points^2, 2) of a square grid from -half to half."""
    side = torch.linspace(-half, half, points, dtype=torch.float64)
    return torch.cartesian_prod(side, side)


def bare(axis: Axes, half: float) -> None:
    """A square around the origin without ticks."""
    axis.set(xlim=(-half, half), ylim=(-half, half), xticks=[], yticks=[], aspect="equal")
    axis.spines[:].set_visible(True)


def langevin(n: int = 1000, levels: int = 20, corrections: int = 50) -> Figure:
    """The data, plain Langevin dynamics and annealed Langevin dynamics, from the same even start (Song & Ermon 2019,
    arXiv 1907.05600, figure 3)."""
    schedule = VarianceExplodingSchedule(sigma_min=0.1, sigma_max=10)
    means, weights = torch.tensor([[-2.5, -2.5], [2.5, 2.5]]).double(), torch.tensor([0.2, 0.8]).double()
    covariances = 0.25 * torch.eye(2, dtype=torch.float64).expand(2, 2, 2)
    mixture = GaussianMixtureDenoiser(schedule, means, covariances, weights)
    noise = Noise(0, torch.arange(n))
    data = means[(torch.arange(n) >= n * weights[0]).long()] + 0.5 * noise.normal((2,), draw=1).double()
    start = 8 * noise.uniform((2,)) - 4

    steps = levels * corrections
    # One level more: the first is where the dynamics begin, and has no steps.
    times = LogSNRGrid()(schedule, levels + 1)[:-1]
    annealed = AnnealedLangevinSampler(0.2, corrections).sample(mixture, start, times, noise=noise)
    # Ten times the step: the data are wider than the lowest level, which is all that plain dynamics know.
    plain = LangevinSampler(2.0, corrections).sample(mixture, start, times, noise=noise)

    figure = Figure(figsize=(style.WIDTH, 2.75))
    clouds = {"data": data, "start": start, f"Langevin, {steps} steps at $\\sigma = 0.1$": plain,
              f"annealed, {steps} steps, $\\sigma = 10 \\ldots 0.1$": annealed}  # fmt: skip
    for axis, (name, x) in zip(figure.subplots(1, 4), clouds.items(), strict=True):
        upper = (x.sum(1) > 0).double().mean().item()
        axis.scatter(*x.T, s=2, color=style.BLUE, linewidths=0)
        axis.set_title(name, fontsize=8.5)
        for at, share in ((2.5, upper), (-2.5, 1 - upper)):
            label = axis.text(at, 0.25 * at, f"{share:.0%}", ha="center", va="center", fontsize=11)
            label.set(color=style.VERMILLION, bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})
        bare(axis, 4.4)
    return figure


def clouds(times: tuple[float, ...] = (0, 0.1, 0.2, 0.4, 0.6, 0.8, 1), n: int = 1200) -> Figure:
    """A Swiss roll under each SDE; a row an SDE."""
    x0 = Toy2d("swissroll", n).load().train.get(torch.arange(n)).double()
    eps = Noise(0, torch.arange(n)).normal((2,)).double()
    schedules: dict[str, Schedule] = {
        "VP": VPSchedule(), "sub-VP": SubVPSchedule(), r"VE, $\sigma_1 = 3$": VarianceExplodingSchedule(0.01, 3.0),
        "flow": FlowSchedule(),
    }  # fmt: skip
    figure = Figure(figsize=(style.WIDTH, 1.3 * len(schedules) + 0.2))
    axes = figure.subplots(len(schedules), len(times))
    for axis, t in zip(axes[0], times, strict=True):
        axis.set_title(f"$t = {t:g}$")
    for row, (name, schedule) in zip(axes, schedules.items(), strict=True):
        row[0].set_ylabel(name)
        for axis, t in zip(row, torch.tensor(times, dtype=torch.float64), strict=True):
            alpha_t, sigma_t = schedule(t)
            axis.scatter(*(alpha_t * x0 + sigma_t * eps).T, s=2, c=x0.norm(dim=1), cmap="viridis", linewidths=0)
            bare(axis, 3.2)
    return figure


def paths(n: int = 6, steps: int = 500) -> Figure:
    """p_t of two Gaussians on a line as a map, and on it ways back by the reverse SDE and by the ODE."""
    schedule, half = VPSchedule(), 2.6
    means, weights = torch.tensor([[-1.2], [1.0]]).double(), torch.tensor([0.4, 0.6]).double()
    mixture = GaussianMixtureDenoiser(schedule, means, torch.tensor([[[0.01]], [[0.04]]]).double(), weights)
    noise = Noise(2, torch.arange(n))
    start = torch.linspace(-1.5, 1.5, n, dtype=torch.float64)[:, None]
    x = torch.linspace(-half, half, 200, dtype=torch.float64)[:, None]
    density = torch.stack([mixture.log_prob(x, t).exp() for t in torch.linspace(0.001, 1, 200, dtype=torch.float64)], 1)
    figure = Figure(figsize=(style.WIDTH, 2.8))
    ways: dict[str, Sampler] = {"reverse SDE": EulerMaruyamaSampler(), "probability-flow ODE": DDIMSampler()}
    for axis, (name, sampler) in zip(figure.subplots(1, 2, sharey=True), ways.items(), strict=True):
        axis.imshow(density.clamp(max=1.2), extent=(0, 1, -half, half), origin="lower", aspect="auto", cmap="Blues")
        states = list(sampler(mixture, start, UniformGrid()(schedule, steps), noise=noise))
        t = torch.stack([state.t for state in states])
        axis.plot(t, torch.stack([state.x_t[:, 0] for state in states]), color=style.VERMILLION, linewidth=0.9)
        axis.set(xlim=(1, 0), ylim=(-half, half), xlabel="$t$", title=name)
    return figure


def main(folder: Path) -> None:
    style.save(field(), folder, "score_field.png")
    style.save(langevin(), folder, "score_langevin.png")
    style.save(clouds(), folder, "score_sdes.png")
    style.save(paths(), folder, "score_paths.png", palette=False)


if __name__ == "__main__":
    main(style.folder())
