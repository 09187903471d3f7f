"""What `export.py` writes: a page, an ONNX file, a file of weights or a folder of diffusers."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from diffusion.build import ConfigError
from diffusion.denoisers import TrainableDenoiser
from diffusion.evaluation.record import headline, scores_of
from diffusion.exchange import diffusers, onnx, weights
from diffusion.exchange.page import export_page
from diffusion.exchange.runtime import find_runtime
from diffusion.media.atomic import check_regular
from diffusion.media.files import check_writable
from diffusion.runs import hub
from diffusion.runs.checkpoints import Checkpoint, find
from diffusion.runs.parts import tunes
from diffusion.runs.trained import load_denoiser, load_model
from diffusion.sampling.drawable import drawable_of, facts_of, from_noise
from diffusion.sampling.method import sampler_and_times
from diffusion.settings.exporting import Options
from diffusion.trainable import Trainable


def write_page(options: Options, checkpoint: Checkpoint, out: Path) -> list[Path]:
    """A page that draws from the model by the processor of whoever opens it."""
    runtime = find_runtime(options.runtime)
    drawable = drawable_of(checkpoint, options.weights)
    facts = facts_of(checkpoint, drawable, headline(scores_of(checkpoint, options.weights)))
    for line in export_page(out, drawable, facts, options.half, runtime):
        print(line, file=sys.stderr)
    return [out]


def write_onnx(options: Options, checkpoint: Checkpoint, out: Path) -> list[Path]:
    """The denoiser for programs that read ONNX, and the decoder of a model of latents."""
    parts = from_noise("an ONNX file", checkpoint)
    denoiser, codec = load_denoiser(checkpoint, options.weights)
    onnx.check_exportable(denoiser)
    _, times = sampler_and_times(parts, denoiser)
    facts = {
        "dataset": parts.config["dataset"].get("name"),
        "step": checkpoint.step,
        "weights": checkpoint.name_of(options.weights),
    }
    return onnx.write_onnx(out, denoiser, codec, parts.shape, times, facts)


def write_weights(options: Options, checkpoint: Checkpoint, out: Path) -> list[Path]:
    """One set of weights with the configuration of the run."""
    print(export_weights(checkpoint, options.weights, out), file=sys.stderr)
    return [out]


def write_folder(options: Options, checkpoint: Checkpoint, out: Path) -> list[Path]:
    """A `UNet2DModel` and its scheduler; with push= a model card too, and all of it on the Hub."""
    card = {}
    if options.push is not None:
        hub.check_push(options.push)
        scores = scores_of(checkpoint, options.weights)
        card = hub.card_of(checkpoint, options.push, options.weights, scores)
    print(export_folder(checkpoint, options.weights, out, card), file=sys.stderr)
    if options.push is not None:
        if options.dry_run:
            print(f"dry_run=true: {out} is what push={options.push} would upload", file=sys.stderr)
        else:
            print(f"uploaded to {hub.push(out, options.push)}", file=sys.stderr)
    return [out, *sorted(file for file in out.rglob("*") if file.is_file())]


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
    held = checkpoint.name_of(chosen)
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
    if denoiser.num_classes:
        return (
            f"pipelines pass on no classes: call the UNet2DModel of {out} with class_labels= from 0 to "
            f"{denoiser.num_classes - 1}; its DDPMScheduler draws what sampler=ddpm draws"
        )
    text = f"DDPMPipeline.from_pretrained({str(out)!r}) draws what sampler=ddpm draws"
    if config["clip"] and denoiser.variance != "learned":  # DDIMPipeline takes no learned variance
        text += "; DDIMPipeline draws what sampler=ddim draws, with use_clipped_model_output=True"
    return text


def check_file(out: Path) -> None:
    """Raises an error of one line unless such a file can be written."""
    check_regular(out)
    check_writable(out.parent, out)


def check_onnx(out: Path) -> None:
    """As `check_file`, and that the packages are there."""
    onnx.check_packages()
    check_file(out)


def check_folder(out: Path) -> None:
    """As `check_file`, of a new folder."""
    diffusers.check_new(out)
    check_writable(out.parent, out)


class Writer(NamedTuple):
    """How a kind of file is written, and what is asked before anything slow."""

    write: Callable[[Options, Checkpoint, Path], list[Path]]
    check: Callable[[Path], None] = check_file


# By suffix; none is a folder of diffusers.
WRITERS = {
    ".html": Writer(write_page, check_onnx),
    ".onnx": Writer(write_onnx, check_onnx),
    ".safetensors": Writer(write_weights),
    "": Writer(write_folder, check_folder),
}


def export(options: Options) -> list[Path]:
    """Writes what is asked for; the files that were written, the first of them the one that was named."""
    out = Path(str(options.out))
    writer = WRITERS[out.suffix.lower()]
    writer.check(out)
    return writer.write(options, find(str(options.ckpt)), out)
