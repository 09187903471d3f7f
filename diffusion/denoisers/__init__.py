"""Denoisers, which estimate the data under the noise: networks, exact mixtures, corrections of a fitted mixture."""

from diffusion.denoisers.base import (
    NO_LABEL,
    NOTHING,
    ClippedDenoiser,
    Condition,
    Conditioned,
    Denoiser,
    DynamicThreshold,
    Prediction,
    Rescheduled,
    Wrapper,
    dropped,
)
from diffusion.denoisers.mixture import GaussianMixtureDenoiser
from diffusion.denoisers.network import (
    Coefficients,
    EDMPreconditioner,
    EpsPreconditioner,
    FlowPreconditioner,
    NetworkDenoiser,
    Preconditioner,
    RegressionDenoiser,
    ScorePreconditioner,
    TrainableDenoiser,
    VPreconditioner,
    X0Preconditioner,
)
from diffusion.denoisers.residual import ResidualDenoiser
from diffusion.denoisers.stepwise import StepDenoiser

__all__ = [
    "NOTHING",
    "NO_LABEL",
    "ClippedDenoiser",
    "Coefficients",
    "Condition",
    "Conditioned",
    "Denoiser",
    "DynamicThreshold",
    "EDMPreconditioner",
    "EpsPreconditioner",
    "FlowPreconditioner",
    "GaussianMixtureDenoiser",
    "NetworkDenoiser",
    "Preconditioner",
    "Prediction",
    "RegressionDenoiser",
    "Rescheduled",
    "ResidualDenoiser",
    "ScorePreconditioner",
    "StepDenoiser",
    "TrainableDenoiser",
    "VPreconditioner",
    "Wrapper",
    "X0Preconditioner",
    "dropped",
]
