"""Models that are no denoisers: classifiers of noisy data and autoencoders; and training in latents."""

from diffusion.models.autoencoder import Autoencoder, ELBOObjective, EncodesAndDecodes, reparameterized
from diffusion.models.classifier import ClassifierObjective, LabelLogProb, NoisyClassifier, accuracy_by_level
from diffusion.models.latents import Codec, LatentObjective, PriorDenoiser, decoded, encoded

__all__ = [
    "Autoencoder",
    "ClassifierObjective",
    "Codec",
    "ELBOObjective",
    "EncodesAndDecodes",
    "LabelLogProb",
    "LatentObjective",
    "NoisyClassifier",
    "PriorDenoiser",
    "accuracy_by_level",
    "decoded",
    "encoded",
    "reparameterized",
]
