"""Samples from a trained model: python sample.py ckpt=last; python sample.py --help."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cli

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from torch import Tensor

    from diffusion.sampling import Pipeline


@dataclass
class Options:
    """The plain values of configs/sample.yaml with their types and ranges."""

    ckpt: str | int | None
    out: str | None
    n: int
    rows: int | None
    steps: int | None
    eta: float | None
    seed: int
    label: int | None
    weights: str
    clip: bool | None
    batch_size: int
    devices: int | str | list[int]
    show: str
    frames: int
    fps: float
    hold: int

    def __post_init__(self) -> None:
        if self.ckpt is None:
            raise ValueError("ckpt= is missing: give ckpt=last (the newest run), a version number, a run folder or a file")
        for name in ("n", "rows", "steps", "batch_size", "frames", "hold"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.show not in ("x_t", "x0"):
            raise ValueError(f"show must be x_t or x0, got {self.show!r}")


def sample(config: "DictConfig") -> None:
    """Draws what was asked for and writes it."""
    import warnings

    from omegaconf import OmegaConf

    warnings.filterwarnings("ignore", message=".*torch.jit.script.*")
    from diffusion import checkpoint, media
    from diffusion.build import ConfigError, construct
    from diffusion.devices import devices
    from diffusion.sampling import Pipeline

    plain: Any = OmegaConf.to_container(config, resolve=True)
    sampler, grid = plain.pop("sampler", None), plain.pop("grid", None)
    options: Options = construct(Options, plain)
    if options.eta is not None:
        if sampler is None or "eta" not in sampler:
            raise ConfigError(f"eta={options.eta} belongs to the ddim sampler: add sampler=ddim")
        sampler["eta"] = options.eta
    places = devices(options.devices)
    media.layout(options.n, options.rows)
    path, contents = checkpoint.find(str(options.ckpt))
    pipeline = Pipeline.from_checkpoint(
        contents, str(path), options.weights, sampler=sampler, grid=grid, steps=options.steps, clip=options.clip
    )
    out = Path(options.out) if options.out is not None else checkpoint.run_folder(path) / "samples" / "pred.gif"
    media.check_out(out, pipeline.shape)
    settings = {
        "checkpoint": str(path), "step": contents["global_step"], "weights": options.weights, "seed": options.seed,
        "label": options.label, "sampler": type(pipeline.sampler).__name__, "times": pipeline.times.tolist(),
    }  # fmt: skip
    numbers = list(range(options.n)) if out.suffix else media.missing(media.claim(out, settings), options.n)
    if not numbers:
        print(f"{out} holds all {options.n} samples already")
        return
    pipeline.labels(_tensor(numbers), options.label)
    if out.suffix.lower() in (".gif", ".webp"):
        states = animated(pipeline, options, numbers, places[0])
        media.save(out, states[-1], states, options.rows, fps=options.fps, hold=options.hold)
    elif out.suffix:
        samples = drawn(pipeline, options, numbers, places)
        media.save(out, samples, rows=options.rows, labels=pipeline.labels(_tensor(numbers), options.label))
    else:
        # A batch at a time, so that a run that is cut off can go on where it stopped.
        share = options.batch_size * len(places)
        for begin in range(0, len(numbers), share):
            batch = numbers[begin : begin + share]
            media.save_folder(out, drawn(pipeline, options, batch, places), batch)
    print(out)


def animated(pipeline: "Pipeline", options: Options, numbers: list[int], device: str) -> "list[Tensor]":
    """The states that the animation shows, evenly spaced from noise to data."""
    from tqdm import tqdm

    from diffusion.media import evenly

    wanted = set(evenly(len(pipeline.times), options.frames))
    walk = pipeline.states(_tensor(numbers).to(device), options.seed, options.label)
    bar = tqdm(walk, total=len(pipeline.times), unit="step", desc="sampling", leave=False, disable=None)
    return [(state.x_t if options.show == "x_t" else state.x0).cpu() for i, state in enumerate(bar) if i in wanted]


def drawn(pipeline: "Pipeline", options: Options, numbers: list[int], places: list[str]) -> "Tensor":
    """The samples with these numbers, shared out over the devices."""
    from tqdm import tqdm

    from diffusion.sampling import sample_on

    batches = -(-len(numbers) // (options.batch_size * len(places)))
    with tqdm(total=batches * len(pipeline.times), unit="step", desc="sampling", leave=False, disable=None) as bar:
        return sample_on(places, pipeline, numbers, options.seed, options.label, options.batch_size, bar.update)


def _tensor(numbers: list[int]) -> "Tensor":
    import torch

    return torch.tensor(numbers)


if __name__ == "__main__":
    cli.run(sample, "sample")
