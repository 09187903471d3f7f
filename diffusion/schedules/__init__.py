"""Noise schedules: alpha_t and sigma_t, the shares of data and noise at time t; `base` states the convention."""

from diffusion.schedules.base import Schedule, beside, expand, float64, time_of
from diffusion.schedules.continuous import (
    ContinuousCosineSchedule,
    FlowSchedule,
    GeometricSchedule,
    LinearBetaSchedule,
    SubVPSchedule,
    VarianceExplodingSchedule,
    VPSchedule,
)
from diffusion.schedules.discrete import (
    CosineSchedule,
    DiscreteSchedule,
    LinearSchedule,
    ListedSchedule,
    QuadraticSchedule,
    ScaledSchedule,
    SigmoidSchedule,
)

__all__ = [
    "ContinuousCosineSchedule",
    "CosineSchedule",
    "DiscreteSchedule",
    "FlowSchedule",
    "GeometricSchedule",
    "LinearBetaSchedule",
    "LinearSchedule",
    "ListedSchedule",
    "QuadraticSchedule",
    "ScaledSchedule",
    "Schedule",
    "SigmoidSchedule",
    "SubVPSchedule",
    "VPSchedule",
    "VarianceExplodingSchedule",
    "beside",
    "expand",
    "float64",
    "time_of",
]
