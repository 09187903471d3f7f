"""Checkpoints written in the formats that programs exchange."""

from collections.abc import Mapping
from pathlib import Path

from diffusion.build import ConfigError
from diffusion.denoisers import TrainableDenoiser
from diffusion.exchange import diffusers, weights
from diffusion.runs.checkpoints import Checkpoint
from diffusion.runs.parts import tunes
from diffusion.runs.trained import load_model
from diffusion.trainable import Trainable


def export_weights(checkpoint: Checkpoint, chosen: str | float, out: Path) -> str:
    """Writes one set of a checkpoint's weights, with its configuration, as a `.safetensors` file.

    Args:
        checkpoint: of any model.
        chosen: "ema", "raw" or the width of an average, as for sampling.
        out: the file.

    Returns:
        What it holds, in one line.
    """
    model = load_model(checkpoint, Trainable, chosen)
    averaged = chosen != "raw" and bool(checkpoint.part("ema."))
    state = model.state_dict(prefix="ema." if averaged else "denoiser.")
    state |= {name: value for name, value in checkpoint.state.items() if name.startswith("objective.")}
    held = str(chosen) if averaged else "raw"
    weights.save(out, checkpoint.config, state, checkpoint.step, held)
    return f"{out} holds the weights {held} of step {checkpoint.step} and the configuration of the run"


def export_folder(
    checkpoint: Checkpoint, chosen: str | float, out: Path, card: Mapping[str, bytes] | None = None
) -> str:
    """Writes a checkpoint's model as a folder for `DDPMPipeline.from_pretrained`.

    Args:
        checkpoint, chosen, out: see `export_weights`.
        card: files to put beside the model, by name.

    Raises:
        ConfigError: diffusers has no such model; the reason is said.
    """
    config = checkpoint.config
    diffusers.check_new(out)
    if config["dataset"].get("condition") is not None:
        raise ConfigError("this model is conditioned on images, and a DDPMPipeline has none: export another")
    if tunes(config):
        raise ConfigError(
            "a DDPMPipeline has no sampler=consistency, and this model is tuned for that: export the model that it was "
            "tuned from"
        )
    denoiser: TrainableDenoiser = load_model(checkpoint, weights=chosen)
    diffusers.save(out, *diffusers.exported(config, denoiser.network), card or {})
    lines = [f"DDPMPipeline.from_pretrained({str(out)!r}) draws what sampler=ddpm draws"]
    if config["clip"]:
        lines.append("DDIMPipeline draws what sampler=ddim draws, with use_clipped_model_output=True")
    if denoiser.num_classes:
        lines.append(
            f"pipelines pass on no classes: call unet(x, t, class_labels=...) with labels from 0 to "
            f"{denoiser.num_classes - 1}"
        )
    return "; ".join(lines)
