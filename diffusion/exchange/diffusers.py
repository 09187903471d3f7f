"""Model folders of diffusers: a `UNet2DModel` and the settings of its scheduler (https://huggingface.co/docs/diffusers).

    model_index.json
    unet/config.json, unet/diffusion_pytorch_model.safetensors
    scheduler/scheduler_config.json

or all of them side by side, as the first public models have them. No path is taken from a file, and only safetensors
are read, so that a folder runs nothing.
"""

import json
import os
import re
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffusion.build import ConfigError, build
from diffusion.exchange import safetensors, schedulers, strict, unet2d
from diffusion.media.atomic import WriteError, atomic, naming
from diffusion.networks.diffusers import DiffusersUNet
from diffusion.networks.unet import UNet

WEIGHTS = "diffusion_pytorch_model.safetensors"
# Names of the weights of attention in older files.
_RENAMED = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def load(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and state of the model in a folder, as the checkpoint of a run has them; its data are unknown.

    Raises:
        ConfigError: a file is missing or no such file, or the model has what this project lacks, which is named.
    """
    index = folder / "model_index.json"
    if index.exists():
        _check_index(strict.read(index), folder)
    place = folder / "unet" if (folder / "unet").is_dir() else folder
    try:
        noising = schedulers.process(strict.read(_scheduler(folder)))
        network = unet2d.network_config(
            strict.read(place / "config.json"), noising["denoiser"]["variance"] == "learned"
        )
    except ConfigError as error:
        raise ConfigError(f"{folder} is refused: {error}") from error
    config = {
        "dataset": {
            "name": re.sub(r"[^\w.-]|^[.-]", "_", folder.resolve().name) or "diffusers",
            "shape": network["shape"],
            "source": {},
            "flip": False,
            "clip": noising["clip"],
        },
        "network": network,
        "ema": None,
        **noising,
    }
    return config, {f"denoiser.network.{name}": value for name, value in _weights(place).items()}


def _check_index(index: Mapping[str, Any], folder: Path) -> None:
    parts = {name: value for name, value in index.items() if not name.startswith("_") and value is not None}
    unet = parts.get("unet")
    if parts.keys() - {"unet", "scheduler"} or not isinstance(unet, list) or unet[-1:] != ["UNet2DModel"]:
        raise ConfigError(
            f"{folder} is refused: its pipeline {index.get('_class_name')!s:.80} has the parts "
            f"{', '.join(sorted(parts)):.200}, and this project takes a UNet2DModel and its scheduler"
        )


def _scheduler(folder: Path) -> Path:
    for path in (folder / "scheduler" / "scheduler_config.json", folder / "scheduler_config.json"):
        if path.exists():
            return path
    raise ConfigError("scheduler_config.json is missing, which says how its data were noised")


def _weights(place: Path) -> dict[str, Tensor]:
    """The network's weights in single precision, by the names that it has for them."""
    path = place / WEIGHTS
    if not path.exists():
        found = sorted(file.name for file in place.iterdir() if file.suffix in (".bin", ".safetensors", ".json"))
        raise ConfigError(
            f"{place} has no {WEIGHTS}, but {', '.join(found)[:200] or 'nothing'}: pickled (.bin) and split weights "
            f"are not read; write them anew by model.save_pretrained(folder), of diffusers"
        )
    weights, _ = safetensors.load(path)
    return {_renamed(name): value.float() if value.is_floating_point() else value for name, value in weights.items()}


def _renamed(name: str) -> str:
    parts = name.split(".")
    return ".".join(_RENAMED.get(part, part) for part in parts) if "attentions" in parts else name


def exported(config: Mapping[str, Any], network: nn.Module) -> tuple[dict[str, Any], dict[str, Any], dict[str, Tensor]]:
    """The settings of a `UNet2DModel` and of its scheduler, and the weights, that make a model of ours.

    Args:
        config: of the run.
        network: its network, with the weights that are wanted.

    Raises:
        ConfigError: diffusers has no such model; the reason is said.
    """
    scheduler = schedulers.exported(config)
    if config.get("autoencoder") is not None:
        raise ConfigError("this model draws latents, and a DDPMPipeline has no decoder for them: export one of pixels")
    if isinstance(network, DiffusersUNet):
        arguments = {name: value for name, value in config["network"].items() if name in unet2d.SHARED}
        state = network.state_dict()
    elif isinstance(network, UNet):
        arguments, state = unet2d.settings(config["network"], network), dict(unet2d.state(network))
    else:
        raise ConfigError(f"diffusers has no {type(network).__name__}: train a model with network=unet or diffusers")
    channels, height, width = config["dataset"]["shape"]
    unet = {
        "_class_name": "UNet2DModel",
        "sample_size": height if height == width else [height, width],
        "in_channels": channels,
        "out_channels": channels * (2 if scheduler["variance_type"] == "learned_range" else 1),
        **arguments,
    }
    state = {name: value.detach().float().contiguous() for name, value in state.items()}
    _check_equal(network, unet, state)
    return unet, scheduler, state


def save(
    folder: Path,
    unet: Mapping[str, Any],
    scheduler: Mapping[str, Any],
    state: Mapping[str, Tensor],
    card: Mapping[str, bytes],
) -> None:
    """Writes a folder for `DDPMPipeline.from_pretrained`, which is whole or is not there.

    Args:
        folder: new, or empty.
        unet: settings, as `exported` gives them.
        scheduler: likewise.
        state: weights, likewise.
        card: further files, by name.

    Raises:
        WriteError: it cannot be written, or holds something.
    """
    index = {
        "_class_name": "DDPMPipeline",
        "scheduler": ["diffusers", scheduler["_class_name"]],
        "unet": ["diffusers", unet["_class_name"]],
    }
    settings = {"model_index.json": index, "unet/config.json": unet, "scheduler/scheduler_config.json": scheduler}
    files = {name: json.dumps(content, indent=2).encode() + b"\n" for name, content in settings.items()}
    with naming(folder):
        check_new(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = folder.with_name(f".{folder.name[:40]}.{secrets.token_hex(6)}.part")
        try:
            safetensors.save(part / "unet" / WEIGHTS, state, {"format": "pt"})
            for name, content in {**files, **card}.items():
                with atomic(part / name) as file:
                    file.write(content)
            if folder.exists():  # empty; Windows replaces no folder
                folder.rmdir()
            os.replace(part, folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)


def check_new(folder: Path) -> None:
    """Raises WriteError if the folder holds something already, or is a file."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise WriteError(f"{folder} is there already: name a new folder, or remove that one")


def _check_equal(network: nn.Module, unet: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """Raises ConfigError unless the network that these settings describe computes what ours does."""
    config = unet2d.network_config(unet, learned=unet["out_channels"] != unet["in_channels"])
    theirs = build(config, "network", out_channels=unet["out_channels"]).eval()
    theirs.load_state_dict(state)
    x = torch.randn(3, *config["shape"], generator=torch.Generator().manual_seed(0))
    c_noise = torch.tensor([0.0, 10.0, 700.0])
    cond = {"label": torch.tensor([-1, 0, 0])}
    with torch.no_grad():
        wanted, found = (part(x, c_noise, cond) for part in (network.float(), theirs))
    error = (found - wanted).abs().max() / wanted.abs().max().clamp(min=1)
    if not error <= 1e-4:
        raise ConfigError(f"the exported network would be {error:.2g} off this one: nothing was written")
