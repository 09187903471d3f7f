"""The measured orders of the deterministic samplers, as tables.

    python docs/orders.py                   prints them, in about a minute
    python docs/orders.py docs/orders.md    puts them between the page's two marks

The orders inside are those that the tests assert, by the tests' own code. On a whole grid, data are one Gaussian, whose
ODE has a closed solution from t = 1 to any time, t = 0 included.
"""

import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "docs")]

from support.solutions import DETERMINISTIC, order, slope, solution
from tables import put

from diffusion.denoisers import GaussianMixtureDenoiser
from diffusion.samplers import Grid, Sampler
from diffusion.sampling.method import GRIDS
from diffusion.schedules import ContinuousCosineSchedule, Schedule, VarianceExplodingSchedule

MARK = "<!-- orders -->"
SCHEDULES = {"continuous_cosine": ContinuousCosineSchedule, "variance_exploding": VarianceExplodingSchedule}
COUNTS = (16, 32, 64, 128, 256)


def gaussian(schedule: Schedule) -> GaussianMixtureDenoiser:
    """The exact denoiser of one correlated Gaussian in the plane."""
    factor = torch.tensor([[0.7, 0.0], [0.4, 0.3]], dtype=torch.float64)
    return GaussianMixtureDenoiser(
        schedule, torch.tensor([[0.6, -0.3]], dtype=torch.float64), (factor @ factor.T)[None]
    )


def whole(sampler: Sampler, grid: Grid, schedule: Schedule) -> tuple[float, float, float]:
    """The order before the last jump and after it, and the error after it with the first of the COUNTS."""
    denoiser = gaussian(schedule)
    x_1 = schedule(torch.ones((), dtype=torch.float64))[1] * torch.tensor([[0.9, -1.4]], dtype=torch.float64)
    before, after = [], []
    for steps in COUNTS:
        times = grid(schedule, steps)
        *_, last, data = sampler(denoiser, x_1, times)
        before.append((last.x_t - solution(denoiser, x_1, times[0], times[-2])).norm().item())
        after.append((data.x_t - solution(denoiser, x_1, times[0], times[-1])).norm().item())
    return slope(COUNTS, before), slope(COUNTS, after), after[0]


def table(name: str, samplers: list[str]) -> str:
    """One schedule's table in Markdown, a sampler a row."""
    schedule = SCHEDULES[name]()
    rows = [("`" + name + "`", "stated", "inside", *(f"`{grid}`" for grid in GRIDS)), ("---",) * (3 + len(GRIDS))]
    for sampler_name in samplers:
        sampler, variable = DETERMINISTIC[sampler_name]
        cells = ["{:.1f} / {:.1f} ({:.0e})".format(*whole(sampler, grid, schedule)) for grid in GRIDS.values()]
        inside = f"{order(sampler, gaussian(schedule), variable):.1f}"
        rows.append((f"`{sampler_name}`", str(sampler.order), inside, *cells))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


if __name__ == "__main__":
    text = "\n\n".join(table(name, list(DETERMINISTIC)) for name in SCHEDULES)
    if len(sys.argv) == 1:
        print(text)
    else:
        put(Path(sys.argv[1]), MARK, text)
