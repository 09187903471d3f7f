"""Takes a trained model elsewhere: the suffix of out= says where.

Examples:
    python export.py ckpt=last out=page.html             one file that draws from the model in any browser
    python export.py ckpt=last out=model.onnx            the denoiser, for programs that read ONNX
    python export.py ckpt=last out=model.safetensors     one set of weights and the configuration, without pickle
    python export.py ckpt=last out=folder                for DDPMPipeline.from_pretrained("folder") of diffusers
    python export.py ckpt=last out=folder push=user/name    the same with a model card, uploaded to the Hub
"""

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import cli

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from diffusion.runs.checkpoints import Checkpoint


@dataclass
class Options:
    """The plain values of configs/export.yaml with their types."""

    ckpt: str | int | list[str | int] | None
    out: str | None
    weights: str | float
    half: bool | None
    runtime: str | None
    push: str | None
    dry_run: bool

    def __post_init__(self) -> None:
        if self.ckpt in (None, "", []):
            raise ValueError("ckpt= is missing: give last (the newest run), a version number, a run folder or a file")
        if isinstance(self.ckpt, list):
            raise ValueError(f"ckpt={self.ckpt} is a cascade, and an export holds one model: name one checkpoint")
        if not self.out:
            raise ValueError(f"out= is missing: give a file that ends in {_suffixes()}")
        suffix = Path(self.out).suffix.lower()
        if suffix not in WRITERS:
            raise ValueError(f"out={self.out}: an export ends in {_suffixes()}, got {suffix}")

    def refuse_idle(self, typed: Iterable[str]) -> None:
        """Raises ValueError, one line, if something was typed that changes nothing of such a file."""
        for name in typed:
            owners = [suffix for suffix, kind in WRITERS.items() if name in kind.settings]
            if owners and Path(str(self.out)).suffix.lower() not in owners:
                raise ValueError(f"{name}= has no effect on out={self.out}: leave it out, or write {_suffixes(owners)}")


def write_page(options: Options, checkpoint: "Checkpoint", out: Path) -> list[Path]:
    """A page that draws from the model by the processor of whoever opens it."""
    from diffusion.evaluation.record import headline
    from diffusion.exchange.page import export_page
    from diffusion.exchange.runtime import find_runtime
    from diffusion.sampling.drawable import drawable_of, facts_of

    runtime = find_runtime(options.runtime)
    drawable = drawable_of(checkpoint, options.weights)
    facts = facts_of(checkpoint, drawable, headline(checkpoint.folder))
    for line in export_page(out, drawable, facts, options.half, runtime):
        print(line, file=sys.stderr)
    return [out]


def write_onnx(options: Options, checkpoint: "Checkpoint", out: Path) -> list[Path]:
    """The denoiser for programs that read ONNX, and the decoder of a model of latents."""
    from diffusion.exchange import onnx
    from diffusion.runs.codecs import drawing
    from diffusion.runs.parts import Parts
    from diffusion.sampling.pipeline import sampler_and_times

    denoiser, codec = drawing(checkpoint, options.weights)
    onnx.check_exportable(denoiser)
    parts = Parts(checkpoint.config)
    _, times = sampler_and_times(parts, denoiser)
    facts = {"dataset": parts.config["dataset"].get("name"), "step": checkpoint.step, "weights": options.weights}
    return onnx.write_onnx(out, denoiser, codec, parts.shape, times, facts)


def write_weights(options: Options, checkpoint: "Checkpoint", out: Path) -> list[Path]:
    """One set of weights with the configuration of the run."""
    from diffusion.runs.exporting import export_weights

    print(export_weights(checkpoint, options.weights, out), file=sys.stderr)
    return [out]


def write_folder(options: Options, checkpoint: "Checkpoint", out: Path) -> list[Path]:
    """A `UNet2DModel` and its scheduler; with push= a model card too, and all of it on the Hub."""
    from diffusion.runs import hub
    from diffusion.runs.exporting import export_folder

    if options.push is not None:
        hub.check_push(options.push)
    print(export_folder(checkpoint, options.weights, out), file=sys.stderr)
    if options.push is not None:
        hub.add_card(out, options.push, checkpoint, str(options.weights))
        if options.dry_run:
            print(f"dry_run=true: {out} is what push={options.push} would upload", file=sys.stderr)
        else:
            print(f"uploaded to {hub.push(out, options.push)}", file=sys.stderr)
    return [out, *sorted(file for file in out.rglob("*") if file.is_file())]


def check_file(out: Path) -> None:
    """Raises an error of one line unless such a file can be written."""
    from diffusion.media.atomic import check_regular
    from diffusion.media.files import check_writable

    check_regular(out)
    check_writable(out.parent, out)


def check_onnx(out: Path) -> None:
    """As `check_file`, and that the packages are there."""
    from diffusion.exchange.onnx import check_packages

    check_packages()
    check_file(out)


def check_folder(out: Path) -> None:
    """As `check_file`, of a new folder."""
    from diffusion.exchange.diffusers import check_new
    from diffusion.media.files import check_writable

    check_new(out)
    check_writable(out.parent, out)


class Writer(NamedTuple):
    """How a kind of file is written, what is asked before anything slow, and the settings that it alone reads."""

    write: "Callable[[Options, Checkpoint, Path], list[Path]]"
    check: Callable[[Path], None] = check_file
    settings: tuple[str, ...] = ()


# By suffix; none is a folder of diffusers.
WRITERS = {
    ".html": Writer(write_page, check_onnx, ("half", "runtime")),
    ".onnx": Writer(write_onnx, check_onnx),
    ".safetensors": Writer(write_weights),
    "": Writer(write_folder, check_folder, ("push", "dry_run")),
}


def _suffixes(suffixes: Iterable[str] | None = None) -> str:
    return " or ".join(suffix or "no suffix (a folder)" for suffix in (WRITERS if suffixes is None else suffixes))


def main(config: "DictConfig") -> None:
    """Writes what was asked for."""
    from omegaconf import OmegaConf

    from diffusion.build import construct

    plain: Any = OmegaConf.to_container(config, resolve=True)
    options: Options = construct(Options, plain)
    options.refuse_idle(cli.typed())

    # Only now what imports torch, which takes seconds.
    from diffusion.runs.checkpoints import find

    out = Path(str(options.out))
    writer = WRITERS[out.suffix.lower()]
    writer.check(out)
    written = writer.write(options, find(str(options.ckpt)), out)
    for file in (file for file in written if file.is_file()):
        print(f"{file} has {file.stat().st_size / 1e6:.1f} MB", file=sys.stderr)
    print(written[0])


def entry() -> None:
    """The command line."""
    cli.run(main, "export", __doc__ or "", "export on a machine with more memory")


if __name__ == "__main__":
    entry()
