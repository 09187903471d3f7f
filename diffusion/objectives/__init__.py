"""Objectives: the losses that training minimises."""

from diffusion.objectives.base import DROP, ENCODE, NOISE, TIME, ConditionDropout, Objective
from diffusion.objectives.bound import VLBObjective
from diffusion.objectives.consistency import ConsistencyObjective
from diffusion.objectives.denoising import (
    DISTANCES,
    DenoisingObjective,
    HybridObjective,
    LikelihoodWeighting,
    LognormalTimes,
    LogSNRTimes,
    MinSNRWeighting,
    SimpleWeighting,
    Times,
    UniformTimes,
    Weighting,
)

__all__ = [
    "DISTANCES",
    "DROP",
    "ENCODE",
    "NOISE",
    "TIME",
    "ConditionDropout",
    "ConsistencyObjective",
    "DenoisingObjective",
    "HybridObjective",
    "LikelihoodWeighting",
    "LogSNRTimes",
    "LognormalTimes",
    "MinSNRWeighting",
    "Objective",
    "SimpleWeighting",
    "Times",
    "UniformTimes",
    "VLBObjective",
    "Weighting",
]
