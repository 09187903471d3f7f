"""Samples from a trained model.

Examples:
    python sample.py ckpt=last                           a GIF of 3x3, from noise to image, in the newest run's folder
    python sample.py ckpt=last n=64 out=grid.png         one grid
    python sample.py ckpt=cifar.ckpt n=50000 out=cifar   a folder of PNGs; the same command goes on where it stopped
    python sample.py ckpt=last sampler=ddim steps=50     another sampler, fewer steps
    python sample.py ckpt=3 n=1000 out=points.npz        run version_3, arrays
    python sample.py ckpt=last n=8 show=both frames=6 out=both.png   the forward process above the reverse one
    python sample.py ckpt=last label=3 guidance=2        a class, drawn more typically; label=all is one row a class
    python sample.py ckpt=last condition=small.png       enlarged, by a model of dataset.condition=lowres
    python sample.py ckpt=[base,sr] conditioning_noise=0.1   a cascade: small images first, then enlarged
    python sample.py ckpt=last init=a.png mask=m.png     the white part of the mask anew; resample=10 fits it in better
"""

import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cli
from diffusion.settings.idle import refuse

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from torch import Tensor

    from data.stream import Examples, Splits
    from diffusion.denoisers import Condition
    from diffusion.sampling import Pipeline


@dataclass
class Options:
    """The plain values of configs/sample.yaml with their types and ranges."""

    ckpt: str | int | list[str | int] | None
    out: str | None
    n: int | None
    rows: int | None
    steps: int | None
    eta: float | None
    seed: int
    label: int | str | list[int] | None
    conditioning_noise: float | None
    weights: str | float
    clip: bool | None
    batch_size: int
    devices: int | str | list[int]
    accelerator: str
    show: str
    frames: int
    fps: float
    hold: int

    def refuse_idle(self, typed: Iterable[str], out: Path, shape: Sequence[int]) -> None:
        """Raises ConfigError, one line, if something was typed that changes nothing of such a file of such samples."""
        moving, picture = out.suffix.lower() in (".gif", ".webp"), out.suffix.lower() == ".png"
        if not moving:
            idle = ("fps", "hold") if self.show == "both" else ("fps", "hold", "frames")
            refuse(typed, idle if self.show != "x0" else (*idle, "show"), f"out={out}", "write .gif or .webp")
        if not moving and not picture:
            refuse(typed, ("rows",), f"out={out}", "write .gif, .webp or .png")
        if picture and self.show == "both":
            refuse(typed, ("rows",), f"show=both out={out}", "write .gif or .webp")
        if len(shape) == 1:
            refuse(typed, ("rows",), "points, which share one plot")

    def checkpoints(self) -> list[str]:
        """What was named, one or the stages of a cascade."""
        return [str(spec) for spec in (self.ckpt if isinstance(self.ckpt, list) else [self.ckpt])]

    def __post_init__(self) -> None:
        if self.ckpt in (None, "", []):
            raise ValueError("ckpt= is missing: give last (the newest run), a version number, a run folder or a file")
        for name in ("n", "rows", "steps", "batch_size", "frames", "hold"):
            value = vars(self)[name]
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be from 0 to 2**63 - 1, got {self.seed}")
        if not 0 < self.fps <= 50:
            raise ValueError(f"fps must be above 0 and at most 50, the most that viewers show, got {self.fps}")
        if self.show not in ("x_t", "x0", "both", "condition"):
            raise ValueError(f"show must be x_t or x0 or both or condition, got {self.show!r}")
        if self.show == "condition" and self.rows is not None:
            raise ValueError(f"rows={self.rows}: with show=condition a column is an image")
        if isinstance(self.label, str) and self.label != "all":
            raise ValueError(f"label must be a whole number, a list of them, or all, got {self.label!r}")


def main(config: "DictConfig") -> None:
    """Draws what was asked for and writes it."""
    from omegaconf import OmegaConf

    from diffusion.build import construct
    from diffusion.settings.sampling import Steering

    plain: Any = OmegaConf.to_container(config, resolve=True)
    sampler, grid = plain.pop("sampler", None), plain.pop("grid", None)
    if plain["eta"] is not None and "sampler.eta" in cli.typed():
        raise ValueError(f"eta={plain['eta']} and sampler.eta={sampler['eta']}: give one of them")
    steering: Steering = construct(Steering, {f.name: plain.pop(f.name) for f in fields(Steering)})
    options: Options = construct(Options, plain)

    # Only now what imports torch, which takes seconds.
    from diffusion import media
    from diffusion.machine.devices import devices
    from diffusion.media import processes
    from diffusion.runs import checkpoints
    from diffusion.sampling.cascade import from_checkpoints
    from diffusion.sampling.conditions import Rows
    from diffusion.terminal.progress import counted, progress

    places = devices(options.devices, options.accelerator)
    if options.out is not None:
        media.check_out(options.out)
    found = [checkpoints.find(spec) for spec in options.checkpoints()]
    path, contents = found[-1]
    pipeline = from_checkpoints(
        found,
        options.weights,
        steering,
        options.conditioning_noise,
        sampler=with_eta(sampler, contents["config"].get("sampler") if len(found) == 1 else None, options.eta),
        grid=grid,
        steps=options.steps,
        clip=options.clip,
    )
    out = Path(options.out) if options.out is not None else checkpoints.run_folder(path) / "samples" / "pred.gif"
    media.check_out(out, pipeline.shape)
    options.refuse_idle(cli.typed(), out, pipeline.shape)
    if options.show in ("both", "condition"):
        processes.check_out(out, options.show)
    if options.show == "condition" and pipeline.condition is None:
        raise ValueError("show=condition: this model is not conditioned on images: train with dataset.condition=lowres")
    if steering.condition is not None and isinstance(pipeline.given, Rows) and options.n is None:
        options.n = len(pipeline.given) if len(pipeline.given) > 1 else None  # one for each that was given
    check_memory(options, pipeline, out, len(places))
    settle_labels(options, pipeline.num_classes)
    assert options.n is not None
    numbers = list(range(options.n))
    assert not isinstance(options.label, str)
    pipeline.labels(_tensor(numbers), options.label)  # refused before test data are read
    truth = settle_conditions(pipeline, contents["config"], options.n)
    labels = pipeline.labels(_tensor(numbers), options.label)
    moving, replaces = out.suffix.lower() in (".gif", ".webp"), out.is_file()
    if options.show == "condition":
        told = pipeline.conditions(_tensor(numbers), options.seed, options.label)
        states = drawn(pipeline, options, numbers, places, options.frames if moving else 1)
        tables = [beside(told, state, truth) for state in states]
        media.save(out, tables[-1], tables, len(tables[-1]) // options.n, fps=options.fps, hold=options.hold)
    elif options.show == "both":
        above = noised(pipeline, contents["config"], options, options.n)
        below = drawn(pipeline, options, numbers, places, options.frames)
        processes.save(out, above, below, options.rows, options.fps, options.hold)
    elif out.suffix:
        states = drawn(pipeline, options, numbers, places, options.frames if moving else 1)
        media.save(out, states[-1], list(states), options.rows, fps=options.fps, hold=options.hold, labels=labels)
    else:
        settings = {
            "checkpoint": str(path) if len(found) == 1 else [str(stage) for stage, _ in found],
            "step": contents["global_step"], "weights": options.weights, "seed": options.seed,
            "label": options.label, "clip": options.clip, **sampler_settings(pipeline.sampler),
            "times": pipeline.times.tolist(), **steering.given(),
            **({"conditioning_noise": options.conditioning_noise} if options.conditioning_noise else {}),
        }  # fmt: skip
        numbers = media.missing(media.claim(out, settings), options.n)
        # A batch at a time, so that a run that is cut off can go on where it stopped.
        # Other processes take seconds to begin, so they get many batches at once.
        share = options.batch_size * len(places) * (1 if len(places) == 1 else 32)
        with progress(len(numbers), "sample", "writing") as advance:
            for begin in range(0, len(numbers), share):
                batch = numbers[begin : begin + share]
                media.save_folder(out, drawn(pipeline, options, batch, places)[-1], batch)
                advance(len(batch))
        if len(numbers) < options.n:
            print(f"{options.n - len(numbers)} of {counted(options.n, 'sample')} were there already")
    # On stderr, so that what a shell takes from stdout is the path alone.
    print(summary(pipeline, options, found), file=sys.stderr)
    if replaces:
        print(f"replaced the {out} that was there; out=... gives another name", file=sys.stderr)
    print(out)


def summary(pipeline: "Pipeline", options: Options, found: list[tuple[Path, dict[str, Any]]]) -> str:
    """What was drawn and how, in one line; `found` are the checkpoints with their contents."""
    from diffusion.terminal.progress import counted

    assert options.n is not None
    models = ", ".join(f"{path} at step {contents['global_step']}" for path, contents in found)
    return (
        f"{counted(options.n, 'sample')} of {models}: "
        f"weights {options.weights}, seed {options.seed}, {sampler_settings(pipeline.sampler)['sampler']}, "
        f"{counted(len(pipeline.times) - 1, 'step')}"
    )


def with_eta(sampler: Any, own: Any, eta: float | None) -> Any:
    """The configuration of the sampler that was asked for, or else of the model's own, with this eta."""
    if eta is None:
        return sampler
    chosen = sampler or own
    if not isinstance(chosen, dict) or "eta" not in chosen:
        raise ValueError(f"eta={eta} belongs to the ddim sampler: add sampler=ddim")
    return chosen | {"eta": eta}


def noised(pipeline: "Pipeline", run: dict[str, Any], options: Options, n: int) -> "Tensor":
    """Real data of the test split at the times of the states that are drawn: (frames, n, *shape)."""
    import torch

    from diffusion.forward import trajectory
    from diffusion.media import evenly
    from diffusion.models import encoded
    from diffusion.noise import EVALUATION, Noise

    test = test_split(run)
    if n > len(test):
        raise ValueError(f"n={n}: show=both draws as many real samples, and the test split has {len(test)}")
    numbers = _tensor(list(range(n)))
    times = pipeline.times[evenly(len(pipeline.times), options.frames)]
    x0 = encoded(pipeline.codec, test.get(numbers))
    states = trajectory(pipeline.denoiser.schedule, x0, times, Noise(options.seed, numbers, EVALUATION))
    return torch.stack([pipeline.decoded(x_t, t) for x_t, t in zip(states, times, strict=True)])


def test_split(run: dict[str, Any]) -> "Examples":
    """The test data of a run's data set."""
    from diffusion.build import build

    source = run["dataset"]["source"]
    # A picture is no reason to fetch a dataset: if it is not where the run had it, that is said.
    splits: Splits = build(source | ({"download": False} if "download" in source else {}), "dataset.source").load()
    return splits.test


def settle_conditions(pipeline: "Pipeline", run: dict[str, Any], n: int) -> "Tensor | None":
    """Gives a model that has to be told images, and was told none, those made from test data, with their labels.

    Returns:
        The test images that they were made from, at most n; None if they were not needed.
    """
    if pipeline.condition is None or pipeline.given is not None:
        return None
    test = test_split(run)
    index = _tensor(list(range(min(n, len(test)))))
    print("conditioned on images made from test data; condition=photo.png, or a folder, gives others", file=sys.stderr)
    pipeline.condition_on(test, index)
    return test.get(index)


def beside(told: "Condition", samples: "Tensor", truth: "Tensor | None") -> "Tensor":
    """Three rows of images in one batch: what the model was told, its samples, and what they should be if known."""
    import torch

    from diffusion.sampling.conditions import as_picture

    rows = [as_picture(told["image"], samples.shape[1:]), samples]
    if truth is not None:
        rows.append(truth[torch.arange(len(samples)) % len(truth)])
    return torch.cat(rows)


def check_memory(options: Options, pipeline: "Pipeline", out: Path, places: int) -> None:
    """Raises ValueError, one line, if so many samples do not fit into memory."""
    from diffusion.machine import memory

    n, shape = options.n or 1, pipeline.shape
    # A folder is written a batch at a time; all else is in memory at once, with each frame.
    kept = min(n, options.batch_size * places) if out.suffix == "" else n
    frames = min(options.frames, len(pipeline.times)) if out.suffix.lower() in (".gif", ".webp") else 1
    memory.check_samples(f"n={n}", kept * frames, shape)
    memory.check(f"n={n}", 32 * n)  # the samples' numbers
    memory.check_samples(f"batch_size={options.batch_size}", min(options.batch_size, n), shape)


def settle_labels(options: Options, num_classes: int) -> None:
    """Fills in how many there are to draw; `label=all` becomes a list with one row of the grid for each class."""
    rows = num_classes if options.label == "all" else 1
    if rows == 0:
        raise ValueError("label=all: this model has no classes; train one with experiment=fast_digits_cond, say")
    if options.n is None:
        options.n = 9 if options.label != "all" else 8 * rows
    if options.label == "all":
        if options.n % rows:
            raise ValueError(f"label=all draws one row for each of {rows} classes: n={options.n} is no multiple")
        options.label = [k * rows // options.n for k in range(options.n)]
        options.rows = rows if options.rows is None else options.rows
    if options.rows is not None and options.rows > options.n:
        raise ValueError(f"rows={options.rows} is more than n={options.n}")


def sampler_settings(sampler: Any) -> dict[str, Any]:
    """What a folder of images remembers of the sampler; of a sampler in a sampler, what is inside."""
    inner = vars(sampler).get("sampler", sampler)
    return {"sampler": type(inner).__name__, **vars(inner)}


def drawn(pipeline: "Pipeline", options: Options, numbers: list[int], places: list[str], frames: int = 1) -> "Tensor":
    """So many states of the samples with these numbers, evenly spaced, with the samples last: (frames, n, *shape)."""
    from diffusion.media import evenly
    from diffusion.sampling.parallel import frames_on
    from diffusion.terminal.progress import progress

    assert not isinstance(options.label, str)
    keep = evenly(len(pipeline.times), frames)
    batches = math.ceil(math.ceil(len(numbers) / len(places)) / options.batch_size)
    show = "x0" if options.show == "x0" else "x_t"
    with progress(batches * len(pipeline.times), "step", "sampling") as advance:
        return frames_on(
            *(places, pipeline, numbers, options.seed, options.label, options.batch_size, keep, show),
            after_step=lambda: advance(1),
        )


def _tensor(numbers: list[int]) -> "Tensor":
    import torch

    return torch.tensor(numbers)


def entry() -> None:
    """The command line."""
    cli.run(main, "sample", __doc__ or "", "lower batch_size= (samples at a time), n= or frames=")


if __name__ == "__main__":
    entry()
