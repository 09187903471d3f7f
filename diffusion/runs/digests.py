"""Digests: what tells one set of weights from another."""

import hashlib

import torch
from torch import nn


def digest(module: nn.Module, name: str | None = None) -> str:
    """Eight hexadecimal digits that change with the module's class and any of its weights.

    Args:
        module: whose.
        name: stands for the class; None is its full name.
    """
    content = hashlib.sha256((name or f"{type(module).__module__}.{type(module).__qualname__}").encode())
    for key, value in module.state_dict().items():
        content.update(f"{key}{value.dtype}{tuple(value.shape)}".encode())
        content.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return content.hexdigest()[:8]


def codec_digest(autoencoder: nn.Module) -> str:
    """That of an autoencoder in the configuration of a run in its latents.

    Its class had another place when the first such run was stored, and what stands for it stays.
    """
    return digest(autoencoder, "diffusion.autoencoder.Autoencoder")
