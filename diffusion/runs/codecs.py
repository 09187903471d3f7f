"""The codec of a model of latents: its entry in the configuration, and its weights in the checkpoint."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from diffusion.build import ConfigError
from diffusion.models import Autoencoder, Codec
from diffusion.noise import TRAINING, Noise
from diffusion.objectives import ENCODE
from diffusion.runs.checkpoints import find
from diffusion.runs.digests import codec_digest
from diffusion.runs.trained import load_model

# Data that are encoded at a time.
BATCH = 256


def codec_of(spec: str, dataset: str, shape: list[int]) -> tuple[Codec, dict[str, Any]]:
    """The codec of a run in latents that begins, which have not been measured yet, and what the run's configuration
    says of it: all that it takes to build it, and a digest.

    Args:
        spec: the autoencoder's checkpoint, as `checkpoints.find` takes it.
        dataset: name of the data that the run is to learn.
        shape: of these.

    Raises:
        ConfigError: it is no autoencoder, or one of other data.
    """
    checkpoint = find(spec)
    autoencoder, theirs = load_model(checkpoint, Autoencoder), checkpoint.config["dataset"]
    if (theirs["name"], list(theirs["shape"])) != (dataset, shape):
        raise ConfigError(
            f"autoencoder={spec} was trained on {theirs['name']} of shape {tuple(theirs['shape'])}, not on {dataset} "
            f"of shape {tuple(shape)}: train one with python train.py experiment=autoencoder_fashion dataset={dataset}"
        )
    return Codec(autoencoder, theirs["clip"]), {
        "network": checkpoint.config["network"],
        "denoiser": checkpoint.config["denoiser"],
        "clip": theirs["clip"],
        "latent_shape": list(autoencoder.latent_shape),
        "digest": codec_digest(autoencoder),
    }


def check_same(spec: str, config: Mapping[str, Any]) -> None:
    """Raises ConfigError if the run with this configuration is not one in the latents of the autoencoder `spec`."""
    stored = config.get("autoencoder")
    if stored is None or codec_digest(load_model(find(spec), Autoencoder)) != stored["digest"]:
        has = "no autoencoder" if stored is None else "another autoencoder"
        raise ConfigError(f"autoencoder={spec}: the run that is to go on has {has}, which cannot change: leave it out")


def check(config: Mapping[str, Any]) -> None:
    """Raises ConfigError for settings that do not go with latents, or need them."""
    if config.get("autoencoder") is None:
        if config.get("cache_latents"):
            raise ConfigError(
                "cache_latents=true is for training in latents: add autoencoder=..., a checkpoint of python train.py "
                "experiment=autoencoder_fashion"
            )
        return
    if config["clip"]:
        raise ConfigError("clip=true clamps pixels, and latents have no bounds: leave it out")
    for name, off in (("flip", "false"), ("augment", "0")):
        if config["cache_latents"] and config["dataset"].get(name):
            raise ConfigError(
                f"cache_latents=true encodes each image once, as it is: add dataset.{name}={off} or cache_latents=false"
            )


def moments(codec: Codec, batches: Iterable[Tensor], device: torch.device) -> Tensor:
    """Those of the latents of data, (N, 2 C, ...) on the CPU, computed on a device."""
    codec.to(device)
    return torch.cat([codec.moments(x.to(device)).cpu() for x in batches])


def draws(codec: Codec | None, x: Tensor, device: torch.device, seed: int) -> Tensor:
    """Latents of data (n, *S), or of their moments, on the CPU; without a codec the data themselves."""
    if codec is None:
        return x
    found = moments(codec, x.split(BATCH), device).to(device)
    eps = Noise(seed, torch.arange(len(x)), TRAINING).normal(codec.latent_shape, draw=ENCODE)
    return codec.latents(found, eps.to(device)).cpu()
