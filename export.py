"""Takes a trained model elsewhere: the suffix of out= says where.

Examples:
    python export.py ckpt=last out=model.onnx            the denoiser, for programs that read ONNX
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

    def __post_init__(self) -> None:
        if self.ckpt in (None, "", []):
            raise ValueError("ckpt= is missing: give last (the newest run), a version number, a run folder or a file")
        if isinstance(self.ckpt, list):
            raise ValueError(f"ckpt={self.ckpt} is a cascade, and an export holds one model: name one checkpoint")
        if not self.out:
            raise ValueError(f"out= is missing: give a file that ends in {_suffixes()}")
        suffix = Path(self.out).suffix.lower()
        if suffix not in WRITERS:
            raise ValueError(f"out={self.out}: an export ends in {_suffixes()}, got {suffix or 'no suffix'}")

    def refuse_idle(self, typed: Iterable[str]) -> None:
        """Raises ValueError, one line, if something was typed that changes nothing of such a file."""
        for name in typed:
            owners = [suffix for suffix, kind in WRITERS.items() if name in kind.settings]
            if owners and Path(str(self.out)).suffix.lower() not in owners:
                raise ValueError(f"{name}= has no effect on out={self.out}: leave it out, or write {_suffixes(owners)}")


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
    facts = {"dataset": parts.config["dataset"]["name"], "step": checkpoint.step, "weights": options.weights}
    return onnx.write_onnx(out, denoiser, codec, parts.shape, times, facts)


class Writer(NamedTuple):
    """How a kind of file is written, and the settings that it alone reads."""

    write: "Callable[[Options, Checkpoint, Path], list[Path]]"
    settings: tuple[str, ...] = ()


WRITERS = {".onnx": Writer(write_onnx)}


def _suffixes(suffixes: Iterable[str] | None = None) -> str:
    return " or ".join(WRITERS if suffixes is None else suffixes)


def main(config: "DictConfig") -> None:
    """Writes what was asked for."""
    from omegaconf import OmegaConf

    from diffusion.build import construct

    plain: Any = OmegaConf.to_container(config, resolve=True)
    options: Options = construct(Options, plain)
    options.refuse_idle(cli.typed())

    # Only now what imports torch, which takes seconds.
    from diffusion.exchange.onnx import check_packages
    from diffusion.media.atomic import check_regular
    from diffusion.media.files import check_writable
    from diffusion.runs.checkpoints import find

    out = Path(str(options.out))
    check_packages()
    check_regular(out)
    check_writable(out.parent, out)
    written = WRITERS[out.suffix.lower()].write(options, find(str(options.ckpt)), out)
    for file in written:
        print(f"{file} has {file.stat().st_size / 1e6:.1f} MB", file=sys.stderr)
    print(written[0])


def entry() -> None:
    """The command line."""
    cli.run(main, "export", __doc__ or "", "export on a machine with more memory")


if __name__ == "__main__":
    entry()
