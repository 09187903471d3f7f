"""Likelihoods of data as they are reported: which terms, in which unit, with which error."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from data.conditions import ImageCondition
from diffusion.denoisers import Conditioned, Denoiser
from diffusion.evaluation.extractors import random_rows
from diffusion.evaluation.pictures import bound_picture
from diffusion.evaluation.table import Examples
from diffusion.likelihood import (
    check_ode,
    dequantised,
    ode_log_density,
    ode_nll,
    prior_log_density,
    prior_term,
    variational_bound,
)
from diffusion.media import Pixels
from diffusion.noise import EVALUATION, Noise
from diffusion.samplers import TrailingGrid
from diffusion.sampling.conditions import of_examples
from diffusion.terminal.progress import counted, progress

# A batch's figures in nats per dimension: x (B, *S), its numbers (B,), its condition -> (B, terms).
Compute = Callable[[Tensor, Tensor, Mapping[str, Tensor]], Tensor]
# Steps that share a line of the table: from the first number to below the next.
_BANDS = (2, 3, 6, 11, 21, 51, 101, 201, 501, 1001, 2001, 5001)


@dataclass(frozen=True)
class Measured:
    """What a likelihood was found to be.

    Attributes:
        value: the mean over data, in the unit.
        standard_error: of it.
        unit: bits/dim for pixels, nats/dim for points.
        text: lines that report it with its terms.
        pictures: by the names of their files.
    """

    value: float
    standard_error: float
    unit: str
    text: str
    pictures: dict[str, Pixels]


class Likelihood:
    """How likely data are under a model; prepares all that can fail before data are read.

    Args:
        kind: "vlb", the variational bound, or "ode", the density of the probability-flow ODE.
        denoiser: not a clipped one.
        shape: of one sample.
        eight_bit: whether the data are pixels.
        seed: of the noise.
        steps: of the bound's grid or of the ODE's solver; None is every timestep, or 50.
        tolerance: of the ODE's adaptive solver.
        probes: of the ODE's trace; None is the exact trace.
        condition: what of the images the model is conditioned on.

    Raises:
        ValueError: the model has no such likelihood.
    """

    def __init__(
        self,
        kind: str,
        denoiser: Denoiser,
        shape: Sequence[int],
        eight_bit: bool,
        seed: int,
        steps: int | None = None,
        tolerance: float | None = None,
        probes: int | None = 1,
        condition: ImageCondition | None = None,
    ) -> None:
        self.eight_bit, self.denoiser, self.condition = eight_bit, denoiser, condition
        self.times = bound_times(denoiser, steps) if kind == "vlb" else None
        self._compute = (
            density(denoiser, seed, math.prod(shape), eight_bit, steps, tolerance, probes)
            if self.times is None
            else bound(denoiser, self.times, seed, eight_bit)
        )

    def __call__(self, data: Examples, count: int, batch_size: int, device: str) -> Measured:
        """That of `count` data, computed so many at a time on a device."""
        nats, values = evaluated(self._compute, data, count, batch_size, device, self.denoiser, self.condition)
        terms, unit = (nats / math.log(2), "bits/dim") if self.eight_bit else (nats, "nats/dim")
        lines = []
        if self.eight_bit and values < 256:
            lines.append(
                f"these pixels have {values} different values, not 256: compare with other models of this set alone"
            )
        if self.times is None:
            lines.append(density_report(terms, unit))
            mean, error = mean_and_error(terms[:, 0])
            pictures = {}
        else:
            lines.append(bound_report(terms, unit))
            if self.eight_bit and self.denoiser.variance == "beta":
                lines.append(
                    "  (variance=beta decodes with beta_1, Ho et al. 2020 with beta-tilde of step 2: docs/elbo.md)"
                )
            mean, error = mean_and_error(terms.sum(1))
            pictures = {"vlb_terms": bound_picture(self.times, terms, unit)}
        return Measured(mean, error, unit, "\n".join(lines), pictures)


def bound_times(denoiser: Denoiser, steps: int | None) -> Tensor:
    """The time grid of a variational bound, falling from 1 to 0; `steps=None` is every timestep.

    Raises:
        ValueError: more steps than timesteps, or a continuous schedule without `steps`.
    """
    steps = denoiser.schedule.timesteps if steps is None else steps
    if steps is None:
        raise ValueError("likelihood=vlb needs noising steps, and this schedule is continuous: set steps=1000, say")
    times = TrailingGrid()(denoiser.schedule, steps)
    denoiser.check_times(times)
    return times


def bound(denoiser: Denoiser, times: Tensor, seed: int, eight_bit: bool) -> Compute:
    """A function that gives the terms of a batch's variational bounds, (B, len(times))."""

    def compute(x: Tensor, index: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        return variational_bound(Conditioned(denoiser, dict(cond)), x, times, Noise(seed, index, EVALUATION), eight_bit)

    return compute


def density(
    denoiser: Denoiser,
    seed: int,
    size: int,
    eight_bit: bool,
    steps: int | None = None,
    tolerance: float | None = None,
    probes: int | None = 1,
) -> Compute:
    """A function that gives a batch's negative log-densities and the mismatch of the prior, (B, 2).

    Args:
        denoiser: not a clipped one.
        seed: of the noise.
        size: dimensions of one sample.
        eight_bit: whether the data are pixels, which are dequantised.
        steps: of the solver; None is 50, unless there is a tolerance.
        tolerance: of adaptive steps.
        probes: of the trace's estimate; None is the exact trace.

    Raises:
        ValueError: the exact trace of many dimensions, or a model that has no density by the ODE.
    """
    check_ode(denoiser)
    if probes is None and size > 256:
        raise ValueError(f"probes=null takes a derivative for each of {size} dimensions at each step: set probes=1")
    steps = 50 if steps is None and tolerance is None else steps
    count, probe = (1, "exact") if probes is None else (probes, "rademacher")

    def compute(x: Tensor, index: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        noise = Noise(seed, index, EVALUATION)
        x = dequantised(x.double(), noise) if eight_bit else x.double()
        x_1, change = ode_log_density(Conditioned(denoiser, dict(cond)), x, noise, steps, count, probe, tolerance)
        nll = ode_nll(prior_log_density(denoiser.schedule, x_1) + change, size, eight_bit)
        return torch.stack((nll, prior_term(denoiser.schedule, x)), dim=1)

    return compute


def evaluated(
    compute: Compute,
    data: Examples,
    count: int,
    batch_size: int,
    device: str,
    denoiser: Denoiser,
    condition: ImageCondition | None = None,
) -> tuple[Tensor, int]:
    """The terms of `count` data, (count, terms), and how many different values these have (pixels do not vary much).

    They are chosen at random but always the same: the first of a set that is sorted would not stand for it.

    Args:
        compute: see `bound` and `density`.
        data: whose likelihood it is.
        count: how many of them.
        batch_size: at a time.
        device: to compute on.
        denoiser: tells what of the data the model is conditioned on.
        condition: what of the images it is conditioned on.
    """
    terms, values = [], torch.empty(0)
    rows = random_rows(len(data))[:count]
    with progress(len(rows), "example", "evaluating") as advance:
        for index in rows.split(batch_size):
            x = data.get(index)
            values = torch.cat((values, x.flatten())).unique()
            cond = {name: value.to(device) for name, value in of_examples(denoiser, condition, data, index).items()}
            terms.append(compute(x.to(device), index.to(device), cond).double().cpu())
            advance(len(index))
    return torch.cat(terms), len(values)


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """The mean over samples (n,) and its standard error."""
    return values.mean().item(), values.std().item() / math.sqrt(len(values))


def density_report(terms: Tensor, unit: str) -> str:
    """The mean negative log-density with its standard error, and how far the prior may be off."""
    mean, error = mean_and_error(terms[:, 0])
    return (
        f"probability-flow ODE: {mean:.4f} +- {error:.4f} {unit} at the schedule's lowest noise\n"
        f"  (the prior is off by at most {terms[:, 1].mean().item():.4f} {unit}, on average)"
    )


def bound_report(terms: Tensor, unit: str) -> str:
    """The mean bound with its standard error, below a table of where it comes from."""
    steps = terms.shape[1] - 1
    # Column k is the step from i = steps + 1 - k to i - 1.
    rows = [("prior", terms[:, 0])]
    edges = [*(edge for edge in _BANDS if edge <= steps), steps + 1]
    for low, high in reversed(list(pairwise(edges))):
        name = f"steps {high - 1} to {low}" if high > low + 1 else f"step {low}"
        rows.append((name, terms[:, steps + 2 - high : steps + 2 - low].sum(1)))
    rows.append(("step 1, the decoder", terms[:, -1]))
    lines = [f"  {name:<20} {values.mean().item():10.4f}" for name, values in rows]
    mean, error = mean_and_error(terms.sum(1))
    return "\n".join([*lines, f"variational bound: {mean:.4f} +- {error:.4f} {unit}, {counted(steps, 'step')}"])
