"""Models from a configuration, with fresh weights."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from diffusion.build import ConfigError, build, resolve
from diffusion.machine import memory
from diffusion.models import Autoencoder, Codec
from diffusion.schedules import Schedule
from diffusion.trainable import Trainable


def build_model(config: Mapping[str, Any]) -> Trainable:
    """The model that a run's configuration describes, untrained.

    Raises:
        ConfigError: its parts are missing, do not go together, or take more memory than there is.
    """
    planned(config)
    return _built(config, torch.device("cpu"))


def planned(config: Mapping[str, Any]) -> Trainable:
    """The same model on torch's `meta` device: names, shapes and types of its weights, without the weights.

    Raises:
        ConfigError: as `build_model` does.
    """
    with memory.bounded("the network that is asked for"), torch.random.fork_rng(devices=[]):
        return _built(config, torch.device("meta"))


def build_codec(described: Mapping[str, Any]) -> Codec:
    """The codec that the configuration of a run in latents describes, untrained.

    Raises:
        ConfigError: it is no autoencoder.
    """
    network = build(described["network"], "autoencoder.network")
    autoencoder = build(described["denoiser"], "autoencoder", network=network)
    if not isinstance(autoencoder, Autoencoder):
        raise ConfigError("the autoencoder in its configuration is no Autoencoder")
    return Codec(autoencoder, described["clip"])


def _built(config: Mapping[str, Any], device: torch.device) -> Trainable:
    for key in ("network", "schedule", "denoiser"):
        if not isinstance(config.get(key), Mapping) or "_target_" not in config[key]:
            raise ConfigError(f"the configuration has no {key}")
    # A learned variance is a second output beside the first; the network need not know what for. Likewise inputs.
    model_class = resolve(config["denoiser"]["_target_"], "denoiser")
    if not issubclass(model_class, Trainable):
        raise ConfigError(f"denoiser names {model_class.__name__}, which is no model with a network to train")
    learned = config["denoiser"].get("variance") == "learned"
    channels = {"in_channels": model_class.inputs, "out_channels": 2 if learned else model_class.outputs}
    further = {}
    for name, times in channels.items():
        if config["network"].get(name) is not None:
            raise ConfigError(f"network.{name} cannot be set: it follows from the data and the denoiser")
        if times > 1:
            network_class, shape = resolve(config["network"]["_target_"], "network"), config["network"].get("shape")
            if name not in inspect.signature(network_class).parameters or not isinstance(shape, list):
                what = "denoiser.variance=learned" if learned else model_class.__name__
                raise ConfigError(f"{what} needs a network with {name}, such as unet, dit or mlp")
            further[name] = times * shape[0]
    schedule = build(config["schedule"], "schedule")
    with device:
        network = build(config["network"], "network", **further)
    if not isinstance(network, nn.Module) or not isinstance(schedule, Schedule):
        raise ConfigError("network must name a network and schedule a schedule of this project")
    # Channels last: convolutions train up to 1.3 times as fast so (docs/performance.md), and none slower.
    network.to(memory_format=torch.channels_last)
    # An autoencoder has no noise levels; its run's schedule is for drawing from the prior.
    noisy = {"schedule": schedule} if "schedule" in inspect.signature(model_class).parameters else {}
    with device:
        model: Trainable = build(config["denoiser"], "denoiser", network=network, **noisy)
    return model
