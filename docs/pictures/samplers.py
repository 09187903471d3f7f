"""The pictures of docs/samplers.md: every sampler on a mixture of Gaussians in the plane, whose D is exact.

python docs/pictures/samplers.py
"""

import sys
from pathlib import Path

import torch
import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))

import style

from diffusion.build import build
from diffusion.denoisers import GaussianMixtureDenoiser
from diffusion.noise import Noise
from diffusion.samplers import HeunSampler, Sampler
from diffusion.schedules import VPSchedule

CONFIGS = Path(__file__).parents[2] / "configs" / "sampler"
FIRST, LAST = -5.0, 6.0  # log-SNR where a way begins, and from where its last step leads to the data
EVEN_IN_T = ("euler_maruyama", "predictor_corrector")  # the others take even steps in log-SNR
# ddim again; as near to the solution as is wanted; in docs/score.md; annealed_langevin again; for flow maps
OMITTED = ("euler", "adaptive", "langevin", "ncsn", "consistency")
COLOURS = (style.VERMILLION, style.BLUE, style.GREEN, style.PURPLE)
HALF = 2.1


def mixture() -> GaussianMixtureDenoiser:
    """Three Gaussians on the VP SDE."""
    means = torch.tensor([[-1.2, -0.8], [1.2, -0.7], [0.0, 1.3]], dtype=torch.float64)
    covariances = torch.tensor([[[0.06, 0.04], [0.04, 0.06]], [[0.02, 0], [0, 0.1]], [[0.12, 0], [0, 0.02]]]).double()
    return GaussianMixtureDenoiser(VPSchedule(), means, covariances)


def grid(name: str, calls: int, sampler: Sampler) -> Tensor:
    """The times of a sampler that may call the denoiser so often; the step to 0 takes one call."""
    steps = max(1, (calls - 1) // sampler.calls)
    ends = torch.tensor([FIRST, LAST], dtype=torch.float64)
    inverse = mixture().schedule.inverse

    def even(between: Tensor) -> Tensor:
        return torch.lerp(between[0], between[1], torch.linspace(0, 1, steps + 1, dtype=torch.float64))

    times = even(inverse(ends)) if name in EVEN_IN_T else inverse(even(ends))
    return torch.cat((times, torch.zeros(1, dtype=torch.float64)))


def way(sampler: Sampler, start: Tensor, times: Tensor, noise: Noise | None = None) -> Tensor:
    """All states, (len(times), n, 2)."""
    return torch.stack([state.x_t for state in sampler(mixture(), start, times, noise=noise)])


def panel(axis: Axes, title: str) -> None:
    """The data's density as rings, in a square."""
    side = torch.linspace(-HALF, HALF, 100, dtype=torch.float64)
    density = mixture().log_prob(torch.cartesian_prod(side, side), torch.tensor(1e-5, dtype=torch.float64))
    axis.contourf(side, side, density.reshape(100, 100).T, levels=[-4, -2, -1, 0, 9], cmap="Greys", vmax=16, alpha=0.7)
    axis.set(xlim=(-HALF, HALF), ylim=(-HALF, HALF), xticks=[], yticks=[], aspect="equal", title=title)
    axis.spines[:].set_visible(True)


def deterministic(samplers: dict[str, Sampler], calls: int = 10, columns: int = 3) -> Figure:
    """Ways from the same starts with as many calls of the denoiser, and beside them the exact ones of the ODE."""
    start = torch.tensor([[-1.3, 0.9], [-0.2, -0.3], [0.55, 0.75], [1.5, 0.3]], dtype=torch.float64)
    exact = way(HeunSampler(), start, grid("heun", 2001, HeunSampler()))
    rows = -(-len(samplers) // columns)
    figure = Figure(figsize=(style.WIDTH, style.WIDTH / columns * rows + 0.2 * rows))
    for axis, (name, sampler) in zip(figure.subplots(rows, columns).flat, samplers.items(), strict=False):
        points = way(sampler, start, grid(name, calls, sampler))
        panel(axis, f"{name}, {len(points) - 1} steps")
        for i, colour in enumerate(COLOURS):
            axis.plot(*exact[:, i].T, color=colour, linewidth=5, alpha=0.25, solid_capstyle="round")
            axis.plot(*points[:, i].T, color=colour, linewidth=1.1, marker="o", markersize=3)
            axis.plot(*exact[-1, i], "x", color="black", markersize=6, zorder=3)
    return figure


def stochastic(samplers: dict[str, Sampler], calls: int = 60, n: int = 400, columns: int = 4) -> Figure:
    """Where samples end with as many calls of the denoiser, beside as many of the data, and the ways of two of them."""
    noise, exact = Noise(0, torch.arange(n)), mixture()
    rows = -(-(1 + len(samplers)) // columns)
    figure = Figure(figsize=(style.WIDTH, style.WIDTH / columns * rows + 0.2 * rows))
    axes = figure.subplots(rows, columns).flat
    panel(axes[0], "data")
    of = torch.arange(n) % len(exact.means)
    along = exact.eigenvalues[of].sqrt() * noise.normal((2,)).double()
    axes[0].scatter(
        *(exact.means[of] + torch.einsum("nij,nj->ni", exact.eigenvectors[of], along)).T, s=2, color="black"
    )
    _, sigma = exact.schedule(exact.schedule.inverse(torch.tensor(FIRST, dtype=torch.float64)))
    for axis, (name, sampler) in zip(axes[1:], samplers.items(), strict=False):
        points = way(sampler, sigma * noise.normal((2,)).double(), grid(name, calls, sampler), noise)
        panel(axis, f"{name}, {len(points) - 1} steps")
        axis.scatter(*points[-1].T, s=2, color="black")
        for i, colour in enumerate(COLOURS[:2]):
            axis.plot(*points[:, i].T, color=colour, linewidth=0.7, marker="o", markersize=1.4)
    return figure


def main(folder: Path) -> None:
    paths = [path for path in sorted(CONFIGS.glob("*.yaml")) if path.stem not in OMITTED]
    known = {path.stem: build(yaml.safe_load(path.read_text()), path.stem) for path in paths}
    ode = {name: sampler for name, sampler in known.items() if not sampler.stochastic}
    sde = {name: sampler for name, sampler in known.items() if sampler.stochastic}
    style.save(deterministic(ode), folder, "samplers_ode.png")
    style.save(stochastic(sde), folder, "samplers_sde.png")


if __name__ == "__main__":
    main(style.folder())
