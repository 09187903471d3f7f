"""The picture of docs/elbo.md: the variational bound of a trained model, term by term, and what a loss makes of it.

python train.py dataset=digits
python docs/pictures/elbo.py lightning_logs/digits/version_0
"""

import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))

import style

from data.stream import Source
from diffusion.build import build
from diffusion.denoisers import Denoiser
from diffusion.likelihood import bits, variational_bound
from diffusion.noise import EVALUATION, Noise
from diffusion.objectives import MinSNRWeighting
from diffusion.runs.checkpoints import find
from diffusion.runs.trained import load_model
from diffusion.samplers import TrailingGrid
from diffusion.schedules import CosineSchedule, LinearSchedule, Schedule


def bound(denoiser: Denoiser, x0: Tensor) -> Tensor:
    """The terms L_T, ..., L_0 of the bound on 8-bit data, their mean over the data, in bits per dimension."""
    schedule = denoiser.schedule
    if schedule.timesteps is None:
        raise ValueError("the bound has terms where the schedule is discrete: train with schedule=linear, say")
    times, noise = TrailingGrid()(schedule, schedule.timesteps), Noise(0, torch.arange(len(x0)), EVALUATION)
    return bits(variational_bound(denoiser, x0, times, noise, eight_bit=True)).mean(0)


def weights(schedule: Schedule, loss: str) -> tuple[Tensor, Tensor]:
    """t of each step, and the weight that a loss has on `||eps - eps_hat||^2` there, scaled to one at t = 1/2."""
    steps = schedule.timesteps or 0
    t = torch.arange(2, steps + 1, dtype=torch.float64) / steps  # the step to t = 0 is the decoder's, and no KL
    log_snr = schedule.log_snr(t)
    weight = {
        "vlb": torch.expm1(schedule.log_snr(t - 1 / steps) - log_snr) / 2,
        "min_snr": MinSNRWeighting()(schedule, t, torch.exp(-log_snr)),
    }[loss]
    return t, weight / weight[len(t) // 2]


def picture(denoiser: Denoiser, x0: Tensor) -> Figure:
    """Left: the terms over t, for both fixed variances. Right: weights on the error of eps."""
    figure = Figure(figsize=(style.WIDTH, 3.1))
    left, right = figure.subplots(1, 2)
    steps = denoiser.schedule.timesteps or 0
    t = torch.arange(steps, 0, -1) / steps
    for variance, name, colour, dashes in (
        ("beta", r"$\beta$", style.BLUE, "-"),
        ("beta_tilde", r"$\tilde\beta$", style.VERMILLION, (0, (4, 2))),
    ):
        denoiser.variance = variance
        terms = bound(denoiser, x0)
        label = f"{name}: {terms.sum():.2f} bits/dim in all"
        left.plot(t, terms[1:], color=colour, linestyle=dashes, linewidth=1, label=label)
    left.set(xscale="log", yscale="log", xlabel="$t$", ylabel="bits/dim", title="terms of the bound")
    left.plot([1], terms[:1].clamp(min=1e-9), "o", color="black", markersize=4)
    left.annotate("$L_T$", (1, terms[0].item()), (-4, 5), textcoords="offset points", ha="right")
    left.annotate("$L_0$", (t[-1].item(), terms[-1].item()), (6, 3), textcoords="offset points")
    left.legend()
    for name, schedule, loss, colour, dashes in (
        ("bound, linear", LinearSchedule(), "vlb", style.BLUE, "-"),
        ("bound, cosine", CosineSchedule(), "vlb", style.ORANGE, "-"),
        ("min-SNR, cosine", CosineSchedule(), "min_snr", style.GREEN, (0, (4, 2))),
    ):
        right.plot(*weights(schedule, loss), color=colour, linestyle=dashes, label=name)
    right.axhline(1, color="black", linewidth=1.2, linestyle=":", label="simple")
    right.set(yscale="log", xlabel="$t$", title=r"weight on $\|\varepsilon - \hat\varepsilon\|^2$", ylim=(3e-3, 3e3))
    right.legend(loc="upper center", ncols=2)
    return figure


def main(spec: str, folder: Path, n: int = 60) -> None:
    checkpoint = find(spec)
    source: Source = build(checkpoint.config["dataset"]["source"])
    x0 = source.load().test.get(torch.arange(n))
    style.save(picture(load_model(checkpoint), x0), folder, "elbo_terms.png")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python docs/pictures/elbo.py RUN [folder]: the folder of a run, or last")
    main(sys.argv.pop(1), style.folder())
