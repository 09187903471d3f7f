"""The pictures of docs/reverse.md, in one dimension and exact.

python docs/pictures/reverse.py
"""

import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))

import style

from diffusion.denoisers import GaussianMixtureDenoiser
from diffusion.forward import posterior
from diffusion.schedules import VPSchedule

SCHEDULE = VPSchedule()
X = torch.linspace(-3, 3, 1201, dtype=torch.float64)


def scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def gaussian(x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """N(x; mean, variance)."""
    return torch.exp(-((x - mean) ** 2) / (2 * variance)) / (2 * torch.pi * variance).sqrt()


def one_step(x_t: Tensor, t: Tensor, x_s: Tensor, s: Tensor) -> Tensor:
    """q(x_t | x_s), as a function of x_s."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = SCHEDULE(t), SCHEDULE(s)
    ratio = alpha_t / alpha_s
    return gaussian(x_t, ratio * x_s, sigma_t**2 - (ratio * sigma_s) ** 2)


def product(x0: float = 1.2, x_t: float = -1.0, t: float = 0.5, ends: tuple[float, ...] = (0.45, 0.3, 0.1)) -> Figure:
    """q(x_s | x_t, x0) as what is left of q(x_s | x0) once x_t is known."""
    figure = Figure(figsize=(style.WIDTH, 2.6))
    for axis, end in zip(figure.subplots(1, len(ends)), ends, strict=True):
        s = scalar(end)
        alpha_s, sigma_s = SCHEDULE(s)
        likelihood = one_step(scalar(x_t), scalar(t), X, s)
        mean, variance = posterior(SCHEDULE, scalar(x_t), scalar(x0), scalar(t), s)
        axis.plot(X, gaussian(X, alpha_s * x0, sigma_s**2), label=r"$q(x_s \mid x_0)$", color=style.BLUE)
        axis.plot(X, likelihood, label=r"$q(x_t \mid x_s)$", color=style.ORANGE, linestyle="--")
        axis.fill_between(X, gaussian(X, mean, variance), color=style.GREEN, alpha=0.35, linewidth=0)
        axis.plot(X, gaussian(X, mean, variance), label=r"$q(x_s \mid x_t, x_0)$", color=style.GREEN)
        for at, name in ((x0, "$x_0$"), (x_t, "$x_t$")):
            axis.axvline(at, color=style.GREY, linewidth=0.8, linestyle=":")
            axis.text(at, -0.02, name, transform=axis.get_xaxis_transform(), ha="center", va="top")
        axis.set(title=f"$s = {end:g}$, $t = {t:g}$", xticks=[], yticks=[], xlim=(-3, 3), ylim=(0, None))
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right center")
    return figure


def steps(x_t: float = -0.05, t: float = 0.35, ends: tuple[float, ...] = (0.33, 0.25, 0.1)) -> Figure:
    """The true p(x_s | x_t) of two Gaussians beside the model's Gaussian step, from the exact D, at steps that grow."""
    means, covariances = torch.tensor([[-1.0], [1.0]]).double(), torch.full((2, 1, 1), 0.01).double()
    model = GaussianMixtureDenoiser(SCHEDULE, means, covariances)
    figure = Figure(figsize=(style.WIDTH, 2.6))
    for axis, end in zip(figure.subplots(1, len(ends)), ends, strict=True):
        s = scalar(end)
        true = model.log_prob(X[:, None], s).exp() * one_step(scalar(x_t), scalar(t), X, s)
        true = true / torch.trapezoid(true, X)
        mean, log_var, _ = model.transition(scalar(x_t).reshape(1, 1), scalar(t), s)
        axis.fill_between(X, true, color=style.BLUE, alpha=0.3, linewidth=0)
        axis.plot(X, true, color=style.BLUE, label=r"$q(x_s \mid x_t)$, the truth")
        step = gaussian(X, mean.squeeze(), log_var.exp())
        axis.plot(X, step, color=style.VERMILLION, linestyle="--", label=r"$p(x_s \mid x_t)$, the model")
        axis.axvline(x_t, color=style.GREY, linewidth=0.8, linestyle=":")
        axis.text(x_t, -0.02, "$x_t$", transform=axis.get_xaxis_transform(), ha="center", va="top")
        axis.set(title=f"from $t = {t:g}$ to $s = {end:g}$", xticks=[], yticks=[], xlim=(-2, 2), ylim=(0, None))
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right center")
    return figure


def main(folder: Path) -> None:
    style.save(product(), folder, "reverse_posterior.png")
    style.save(steps(), folder, "reverse_steps.png")


if __name__ == "__main__":
    main(style.folder())
