"""What `export.py` writes: a page, an ONNX file, a file of weights or a folder of diffusers."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from diffusion.evaluation.record import headline
from diffusion.exchange import onnx
from diffusion.exchange.diffusers import check_new
from diffusion.exchange.page import export_page
from diffusion.exchange.runtime import find_runtime
from diffusion.media.atomic import check_regular
from diffusion.media.files import check_writable
from diffusion.runs import hub
from diffusion.runs.checkpoints import Checkpoint, find
from diffusion.runs.codecs import drawing
from diffusion.runs.exporting import export_folder, export_weights
from diffusion.runs.parts import Parts
from diffusion.sampling.drawable import drawable_of, facts_of
from diffusion.sampling.pipeline import sampler_and_times
from diffusion.settings.exporting import Options


def write_page(options: Options, checkpoint: Checkpoint, out: Path) -> list[Path]:
    """A page that draws from the model by the processor of whoever opens it."""
    runtime = find_runtime(options.runtime)
    drawable = drawable_of(checkpoint, options.weights)
    facts = facts_of(checkpoint, drawable, headline(checkpoint.folder))
    for line in export_page(out, drawable, facts, options.half, runtime):
        print(line, file=sys.stderr)
    return [out]


def write_onnx(options: Options, checkpoint: Checkpoint, out: Path) -> list[Path]:
    """The denoiser for programs that read ONNX, and the decoder of a model of latents."""
    denoiser, codec = drawing(checkpoint, options.weights)
    onnx.check_exportable(denoiser)
    parts = Parts(checkpoint.config)
    _, times = sampler_and_times(parts, denoiser)
    facts = {"dataset": parts.config["dataset"].get("name"), "step": checkpoint.step, "weights": options.weights}
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
        card = hub.card_of(checkpoint, options.push, str(options.weights))
    print(export_folder(checkpoint, options.weights, out, card), file=sys.stderr)
    if options.push is not None:
        if options.dry_run:
            print(f"dry_run=true: {out} is what push={options.push} would upload", file=sys.stderr)
        else:
            print(f"uploaded to {hub.push(out, options.push)}", file=sys.stderr)
    return [out, *sorted(file for file in out.rglob("*") if file.is_file())]


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
    check_new(out)
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
