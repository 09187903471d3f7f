"""Optimizers, the learning rate, and averages of the weights."""

from diffusion.optimizers.adamw import AdamW
from diffusion.optimizers.averages import EMA, WIDEST, PowerEMA, coefficients, exponent, spacing
from diffusion.optimizers.learning_rate import LearningRate
from diffusion.optimizers.muon import Muon, MuonAdamW, orthogonalized

__all__ = [
    "EMA",
    "WIDEST",
    "AdamW",
    "LearningRate",
    "Muon",
    "MuonAdamW",
    "PowerEMA",
    "coefficients",
    "exponent",
    "orthogonalized",
    "spacing",
]
