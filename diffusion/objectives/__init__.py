"""Objectives: the losses that training minimises."""

from diffusion.objectives.base import (
    CALL,
    DROP,
    ENCODE,
    NOISE,
    TIME,
    ConditionDropout,
    Objective,
    ObjectiveWrapper,
    optimizer_of,
)
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
from diffusion.objectives.matching import MatchingObjective
from diffusion.objectives.tuning import TuningObjective

__all__ = [
    "CALL",
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
    "MatchingObjective",
    "MinSNRWeighting",
    "Objective",
    "ObjectiveWrapper",
    "SimpleWeighting",
    "Times",
    "TuningObjective",
    "UniformTimes",
    "VLBObjective",
    "Weighting",
    "optimizer_of",
]
