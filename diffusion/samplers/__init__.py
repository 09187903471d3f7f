"""Samplers, from noise to data with any denoiser: the loop, the methods, and the grids of times."""

from diffusion.samplers.adaptive import MOST_STEPS, AdaptiveSampler
from diffusion.samplers.base import Draw, Evaluation, History, Sampler, begun, prior
from diffusion.samplers.consistency import ConsistencySampler
from diffusion.samplers.grids import (
    Grid,
    KarrasGrid,
    LevelsGrid,
    LogSNRGrid,
    QuadraticGrid,
    TrailingGrid,
    UniformGrid,
    between,
)
from diffusion.samplers.multistep import (
    DPMSolverPP2MSampler,
    DPMSolverPP2MSDESampler,
    DPMSolverPP3MSampler,
    IPNDMSampler,
    UniPCSampler,
    exponential_weights,
    near,
)
from diffusion.samplers.onestep import DDIMSampler, DDPMSampler, HeunSampler
from diffusion.samplers.repaint import RePaintSampler
from diffusion.samplers.stochastic import (
    AnnealedLangevinSampler,
    ChurnSampler,
    EulerMaruyamaSampler,
    LangevinSampler,
    PredictorCorrectorSampler,
)

__all__ = [
    "MOST_STEPS",
    "AdaptiveSampler",
    "AnnealedLangevinSampler",
    "ChurnSampler",
    "ConsistencySampler",
    "DDIMSampler",
    "DDPMSampler",
    "DPMSolverPP2MSDESampler",
    "DPMSolverPP2MSampler",
    "DPMSolverPP3MSampler",
    "Draw",
    "EulerMaruyamaSampler",
    "Evaluation",
    "Grid",
    "HeunSampler",
    "History",
    "IPNDMSampler",
    "KarrasGrid",
    "LangevinSampler",
    "LevelsGrid",
    "LogSNRGrid",
    "PredictorCorrectorSampler",
    "QuadraticGrid",
    "RePaintSampler",
    "Sampler",
    "TrailingGrid",
    "UniPCSampler",
    "UniformGrid",
    "begun",
    "between",
    "exponential_weights",
    "near",
    "prior",
]
