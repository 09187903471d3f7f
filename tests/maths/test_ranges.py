"""Every number that a schedule, grid, sampler, objective or preconditioner takes is finite, or refused by its name."""

import importlib
import inspect
import math
from collections.abc import Iterator
from pathlib import Path
from typing import get_type_hints

import pytest
import torch
import yaml

from diffusion.build import build
from diffusion.denoisers import ClippedDenoiser, GaussianMixtureDenoiser
from diffusion.noise import Noise
from diffusion.objectives import ConsistencyObjective, SimpleWeighting, Times, UniformTimes
from diffusion.samplers import Grid, LogSNRGrid, Sampler
from diffusion.samplers.__main__ import CONFIGS
from diffusion.schedules import Schedule, VPSchedule

MODULES = ("denoisers", "objectives", "samplers", "schedules")
VALUES = (math.nan, math.inf, -math.inf, 0.0, -1.0)


def gaussian() -> GaussianMixtureDenoiser:
    return GaussianMixtureDenoiser(VPSchedule(), torch.zeros(1, 2).double(), torch.eye(2).double()[None])


# What the classes need beside their numbers. ConditionDropout's share is `condition_dropout` to its user.
NEEDED = {"weighting": SimpleWeighting, "times": UniformTimes, "grid": LogSNRGrid, "denoiser": gaussian}


def numbers() -> Iterator[tuple[type, str]]:
    for module in MODULES:
        for cls in vars(importlib.import_module(f"diffusion.{module}")).values():
            if (
                not inspect.isclass(cls)
                or not cls.__module__.startswith(f"diffusion.{module}")
                or inspect.isabstract(cls)
            ):
                continue
            for name, hint in get_type_hints(cls.__init__).items():
                if hint is float and cls.__name__ != "ConditionDropout":
                    yield cls, name


def is_finite(built: object) -> bool:
    """Whether what it computes is finite."""
    if isinstance(built, Schedule):
        t = torch.linspace(built.t_min, 1, 9, dtype=torch.float64)
        return all(bool(values.isfinite().all()) for values in (*built(t), built.log_snr(t)))
    if isinstance(built, Grid):
        return bool(built(VPSchedule(), 5).isfinite().all())
    if isinstance(built, Times):
        return bool(built(VPSchedule(), torch.linspace(0.1, 0.9, 5).double()).isfinite().all())
    if isinstance(built, ConsistencyObjective):
        t = torch.linspace(0.1, 0.9, 5).double()
        return bool(built.lower(VPSchedule(), t, torch.arange(5)).isfinite().all())
    if isinstance(built, Sampler):
        times, noise = LogSNRGrid()(VPSchedule(), 10), Noise(0, torch.arange(2))
        x = noise.normal((2,)).double()
        return bool(built.sample(gaussian(), x, times, noise=noise).isfinite().all())
    return isinstance(built, ClippedDenoiser) and built.low < built.high


@pytest.mark.parametrize(("cls", "name"), numbers(), ids=lambda part: getattr(part, "__name__", part))
@pytest.mark.parametrize("value", VALUES)
def test_a_number_is_refused_by_its_name_or_works(cls: type, name: str, value: float) -> None:
    required = [key for key, part in inspect.signature(cls).parameters.items() if part.default is part.empty]
    needed = {key: make() for key, make in NEEDED.items() if key in required}
    try:
        outcome = "" if is_finite(cls(**needed, **{name: value})) else "not finite"
    except ValueError as error:
        outcome = str(error)
    assert outcome == "" or name in outcome


def test_numbers_of_all_kinds_are_found() -> None:
    found = {f"{cls.__name__}.{name}" for cls, name in numbers()}
    assert found >= {"KarrasGrid.rho", "DDIMSampler.eta", "VPSchedule.beta_max", "EDMPreconditioner.sigma_data"}
    assert len(found) >= 35


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_times_that_are_no_finite_numbers_are_refused_by_every_sampler(path: Path, value: float) -> None:
    sampler = build(yaml.safe_load(path.read_text(encoding="utf-8")), path.stem)
    for place in range(4):
        times = torch.tensor([1.0, 0.5, 1e-5, 0.0], dtype=torch.float64)
        times[place] = value
        with pytest.raises(ValueError, match=f"times must be finite numbers, got {value}"):
            sampler.sample(gaussian(), torch.zeros(2, 2), times, Noise(0, torch.arange(2)))
