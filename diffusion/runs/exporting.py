"""Checkpoints written in the formats that programs exchange."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusion.build import ConfigError
from diffusion.exchange import diffusers, weights
from diffusion.runs.checkpoints import load_weights, trained_denoiser
from diffusion.runs.models import build_model


def export_weights(checkpoint: Mapping[str, Any], path: Path, chosen: str | float, out: Path) -> str:
    """Writes one set of a checkpoint's weights, with its configuration, as a `.safetensors` file.

    Args:
        checkpoint: its contents.
        path: where it is.
        chosen: "ema", "raw" or the width of an average, as for sampling.
        out: the file.

    Returns:
        What it holds, in one line.
    """
    config, step = checkpoint["config"], checkpoint["global_step"]
    model = build_model(config)
    load_weights(model, checkpoint, path, chosen)
    averaged = chosen != "raw" and any(name.startswith("ema.") for name in checkpoint["state_dict"])
    state = model.state_dict(prefix="ema." if averaged else "denoiser.")
    state |= {name: value for name, value in checkpoint["state_dict"].items() if name.startswith("objective.")}
    held = str(chosen) if averaged else "raw"
    weights.save(out, config, state, step, held)
    return f"{out} holds the weights {held} of step {step} and the configuration of the run"


def export_folder(checkpoint: Mapping[str, Any], path: Path, chosen: str | float, out: Path) -> str:
    """Writes a checkpoint's model as a folder for `DDPMPipeline.from_pretrained`; see `export_weights`.

    Raises:
        ConfigError: diffusers has no such model; the reason is said.
    """
    config = checkpoint["config"]
    diffusers.check_new(out)
    if config["dataset"].get("condition") is not None:
        raise ConfigError("this model is conditioned on images, and a DDPMPipeline has none: export another")
    denoiser = trained_denoiser(checkpoint, path, chosen)
    diffusers.save(out, *diffusers.exported(config, denoiser.network))
    lines = [f"DDPMPipeline.from_pretrained({str(out)!r}) draws what sampler=ddpm draws"]
    if config["clip"]:
        lines.append("DDIMPipeline draws what sampler=ddim draws, with use_clipped_model_output=True")
    if denoiser.num_classes:
        lines.append(
            f"pipelines pass on no classes: call unet(x, t, class_labels=...) with labels from 0 to "
            f"{denoiser.num_classes - 1}"
        )
    return "; ".join(lines)
