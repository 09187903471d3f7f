"""Models from a configuration, with fresh weights."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from diffusion.build import ConfigError, build, resolve
from diffusion.denoisers import TrainableDenoiser
from diffusion.machine import memory
from diffusion.models import Autoencoder, NoisyClassifier
from diffusion.schedules import Schedule

# What a run can train.
Model = TrainableDenoiser | NoisyClassifier | Autoencoder


def build_denoiser(config: Mapping[str, Any]) -> TrainableDenoiser:
    """The denoiser, untrained, that a run's configuration describes."""
    model = build_model(config)
    if isinstance(model, NoisyClassifier):
        raise ConfigError(
            "this model is a classifier and draws nothing: name a model as ckpt=, and this as classifier="
        )
    if isinstance(model, Autoencoder):
        raise ConfigError(
            "this model is an autoencoder, whose bound is val/elbo_bpd in its run's metrics.csv: train a model in its "
            "latents with python train.py experiment=latent_fashion autoencoder=..."
        )
    return model


def build_model(config: Mapping[str, Any]) -> Model:
    """What a run's configuration describes, untrained: a denoiser, a classifier of noisy data or an autoencoder.

    Raises:
        ConfigError: its parts are missing, do not go together, or take more memory than there is.
    """
    planned(config)
    return _built(config, torch.device("cpu"))


def planned(config: Mapping[str, Any]) -> Model:
    """The same model on torch's `meta` device: names, shapes and types of its weights, without the weights.

    Raises:
        ConfigError: as `build_model` does.
    """
    with memory.bounded("the network that is asked for"), torch.random.fork_rng(devices=[]):
        return _built(config, torch.device("meta"))


def _built(config: Mapping[str, Any], device: torch.device) -> Model:
    for key in ("network", "schedule", "denoiser"):
        if not isinstance(config.get(key), Mapping) or "_target_" not in config[key]:
            raise ConfigError(f"the configuration has no {key}")
    # A learned variance is a second output beside the first; the network need not know what for. Likewise inputs.
    denoiser_class = resolve(config["denoiser"]["_target_"], "denoiser")
    per_step = getattr(denoiser_class, "outputs", 1) == 2
    channels = {
        "in_channels": getattr(denoiser_class, "inputs", 1),
        "out_channels": 2 if per_step or config["denoiser"].get("variance") == "learned" else 1,
    }
    further = {}
    for name, times in channels.items():
        if config["network"].get(name) is not None:
            raise ConfigError(f"network.{name} is not for setting: it follows from the data and the denoiser")
        if times > 1:
            network_class, shape = resolve(config["network"]["_target_"], "network"), config["network"].get("shape")
            if name not in inspect.signature(network_class).parameters or not isinstance(shape, list):
                what = "denoiser.variance=learned"
                what = "denoiser=residual" if name == "in_channels" else "denoiser=step" if per_step else what
                raise ConfigError(f"{what} needs a network with {name}, such as unet, dit or mlp")
            further[name] = times * shape[0]
    schedule = build(config["schedule"], "schedule")
    with device:
        network = build(config["network"], "network", **further)
    if not isinstance(network, nn.Module) or not isinstance(schedule, Schedule):
        raise ConfigError("network must name a network and schedule a schedule of this project")
    # Channels last: convolutions train up to 1.3 times as fast so (docs/performance.md), and none slower.
    network.to(memory_format=torch.channels_last)
    # Autoencoders have no noise levels; their runs' schedule is for drawing from the prior.
    noisy = {} if resolve(config["denoiser"]["_target_"], "denoiser") is Autoencoder else {"schedule": schedule}
    with device:
        denoiser = build(config["denoiser"], "denoiser", network=network, **noisy)
    if not isinstance(denoiser, Model):
        raise ConfigError(f"denoiser names a {type(denoiser).__name__}, which is no denoiser with a network")
    return denoiser
