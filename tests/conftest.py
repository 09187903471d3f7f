"""What several test modules share: one schedule of each kind and data whose exact denoiser is known."""

import os
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from diffusion.denoisers import GaussianMixtureDenoiser
from diffusion.schedules import (
    ContinuousCosineSchedule,
    CosineSchedule,
    FlowSchedule,
    LinearSchedule,
    Schedule,
    SubVPSchedule,
    VarianceExplodingSchedule,
    VPSchedule,
)

# The scripts run as in a user's shell: the order of their lines has to be theirs, not this variable's.
os.environ.pop("PYTHONUNBUFFERED", None)

SCHEDULES: dict[str, Callable[[], Schedule]] = {
    "linear": LinearSchedule,
    "cosine": CosineSchedule,
    "continuous_cosine": ContinuousCosineSchedule,
    "variance_exploding": VarianceExplodingSchedule,
    "vp": VPSchedule,
    "sub_vp": SubVPSchedule,
    "flow": FlowSchedule,
}


@pytest.fixture(params=SCHEDULES)
def schedule(request: pytest.FixtureRequest) -> Schedule:
    """One schedule of each kind, in turn."""
    return SCHEDULES[request.param]()


@pytest.fixture
def times(schedule: Schedule) -> Tensor:
    """Nine float64 times from t_min to 1; on a discrete schedule on its grid."""
    t = torch.linspace(schedule.t_min, 1, 9, dtype=torch.float64)
    return t if schedule.timesteps is None else (t * schedule.timesteps).round() / schedule.timesteps


@pytest.fixture
def mixture(schedule: Schedule) -> GaussianMixtureDenoiser:
    """The exact denoiser of three unequal, correlated Gaussians in the plane, float64."""
    means = torch.tensor([[1.0, -0.5], [-1.2, 0.3], [0.1, 0.9]], dtype=torch.float64)
    factors = torch.tensor(
        [[[0.5, 0.0], [0.2, 0.3]], [[0.2, 0.0], [-0.3, 0.6]], [[0.4, 0.0], [0.0, 0.1]]], dtype=torch.float64
    )
    weights = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
    return GaussianMixtureDenoiser(schedule, means, factors @ factors.mT, weights)


@pytest.fixture
def gaussian(schedule: Schedule) -> GaussianMixtureDenoiser:
    """The exact denoiser of one correlated Gaussian in the plane, float64."""
    factor = torch.tensor([[0.7, 0.0], [0.4, 0.3]], dtype=torch.float64)
    mean = torch.tensor([[0.6, -0.3]], dtype=torch.float64)
    return GaussianMixtureDenoiser(schedule, mean, (factor @ factor.mT)[None])
