"""The work of `sample.py`: everything is checked first, then samples are drawn and written.

What is written, and how it is drawn, is in `outputs`.
"""

import math
import shlex
import sys
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.stream import Examples, Splits
from diffusion import media
from diffusion.build import ConfigError, build, check_source
from diffusion.machine import memory
from diffusion.machine.devices import devices
from diffusion.runs.checkpoints import find
from diffusion.samplers import Sampler
from diffusion.sampling.cascade import cascade_of
from diffusion.sampling.conditions import Rows
from diffusion.sampling.parallel import frames_on
from diffusion.sampling.pipeline import Pipeline
from diffusion.settings.outputs import ANIMATIONS
from diffusion.settings.sampling import Options, Steering
from diffusion.terminal.progress import counted, progress


class Drawing(ABC):
    """Samples to draw, and a file or folder to write them to.

    Args:
        options: how many samples, how they are drawn, and where they are written.
        steering: guidance, masks and starts.
        method: "sampler", "grid" and "wrapper", each a configuration, or None for the model's own.
        typed: names of the settings that a person wrote.

    Raises:
        ConfigError: what does not go together, or does not fit into memory. Nothing is written yet.
    """

    # The file in the run's folder where no other is named.
    name = "pred.gif"
    # Whether `seed` decides what is drawn.
    seeded = True

    def __init__(
        self, options: Options, steering: Steering, method: Mapping[str, Any], typed: Collection[str] = ()
    ) -> None:
        self.options, self.steering, self.wrapper = options, steering, method.get("wrapper")
        self.places = devices(options.devices, options.accelerator)
        if options.out is not None:
            media.check_out(options.out)
        self.stages = [find(spec) for spec in options.checkpoints()]
        self.model = self.stages[-1]
        own = self.model.config.get("sampler") if len(self.stages) == 1 else None
        changes: dict[str, Any] = {
            "sampler": with_eta(method.get("sampler"), own, options.eta),
            "grid": method.get("grid"), "wrapper": self.wrapper, "steps": options.steps,
            "start_level": options.start_level, "clip": options.clip,
        }  # fmt: skip
        if len(self.stages) == 1:
            self.pipeline = Pipeline.from_checkpoint(self.model, options.weights, steering, **changes)
        else:
            self.pipeline = cascade_of(self.stages, options.weights, steering, options.conditioning_noise, **changes)
        self.out = self.model.folder / "samples" / self.name if options.out is None else Path(options.out)
        media.check_out(self.out, self.pipeline.shape)
        options.refuse_idle(typed, self.out, self.pipeline.shape)
        self.check(typed)
        n, given = 1 if self.only_one else options.n, self.pipeline.given
        if self.only_one and (options.label == "all" or isinstance(options.label, list)):
            raise ConfigError(f"label={options.label}: here is one image, so give the one label of its class")
        if steering.condition is not None and isinstance(given, Rows) and n is None:
            n = len(given) if len(given) > 1 else None  # one for each that was given
        self._check_memory(n or 1)
        self.n, self.label, self.rows = settled(n, options, self.pipeline.num_classes)
        self.pipeline.labels(torch.arange(self.n), self.label)  # refused before test data are read
        self.truth = self._condition_on_test_data()

    @abstractmethod
    def write(self) -> None:
        """Draws and writes."""

    def check(self, typed: Collection[str]) -> None:  # noqa: B027 - most kinds have nothing to check
        """Raises ConfigError if this cannot be drawn with this pipeline, or written there."""

    @property
    def only_one(self) -> bool:
        """Whether it is made of a single sample."""
        return False

    @property
    def frames(self) -> int:
        """How many states of each sample it shows."""
        return self.options.frames if self.out.suffix.lower() in ANIMATIONS else 1

    def in_memory(self, n: int) -> int:
        """How many images are in memory at once where there are n samples."""
        return n * min(self.frames, len(self.pipeline.times))

    def save(self, states: list[Tensor], rows: int | None, labels: Tensor | None = None) -> None:
        """Writes states of samples, (n, *S) each, the samples last."""
        media.save(self.out, states[-1], states, rows, fps=self.options.fps, hold=self.options.hold, labels=labels)

    def summary(self) -> str:
        """One line about the samples and the method."""
        models = ", ".join(f"{stage.path} at step {stage.step}" for stage in self.stages)
        # The grid does not decide how often an adaptive sampler calls the denoiser.
        steps = counted(len(self.pipeline.times) - 1, "step") if self.pipeline.sampler.calls else "adaptive steps"
        seed = f"seed {self.options.seed}, " if self.seeded else ""
        return (
            f"{counted(self.n, 'sample')} of {models}: weights {self.options.weights}, {seed}"
            f"{type(unwrapped(self.pipeline.sampler)).__name__}, {steps}{self._begun()}"
        )

    def _begun(self) -> str:
        """Where sampling begins, if it is not noise."""
        if self.pipeline.times[0] == 1:
            return ""
        what = "the model's mixture" if self.pipeline.init is None else "the image"
        return f" from {what} at sigma / alpha = {self.pipeline.first_level:g}"

    def following(self) -> str:
        """What to do next, in one line."""
        ckpt = self.options.ckpt
        spec = f"[{','.join(map(str, ckpt))}]" if isinstance(ckpt, list) else str(ckpt)
        others = f"seed={self.options.seed + 1} draws others; " if self.seeded else ""
        return f"next: {others}python evaluate.py ckpt={shlex.quote(spec)} scores the model"

    def record(self) -> dict[str, Any]:
        """What decides the samples, as a folder of them keeps it."""
        options, steering = self.options, self.steering
        known = {
            "checkpoint": str(self.model.path) if len(self.stages) == 1 else [str(stage.path) for stage in self.stages],
            "step": self.model.step, "weights": options.weights, "seed": options.seed,
            "label": self.label, "clip": options.clip,
            "times": self.pipeline.times.tolist(), **steering.given(),
            **({"conditioning_noise": options.conditioning_noise} if options.conditioning_noise else {}),
            **({} if self.wrapper is None else {"wrapper": self.wrapper}),
        }  # fmt: skip
        return with_sampler(known, self.pipeline.sampler)

    def test_data(self) -> Examples:
        """The test data of the model's data set."""
        return held_out(self.model.config)

    def states(self, numbers: "range | list[int]", frames: int = 1) -> Tensor:
        """States of the samples with these numbers, even in log-SNR, the samples last: (frames, n, *S)."""
        options, times = self.options, self.pipeline.times
        batches = math.ceil(math.ceil(len(numbers) / len(self.places)) / options.batch_size)
        show = "x0" if options.show == "x0" else "x_t"
        keep = self.pipeline.shown(frames)
        with progress(batches * len(times), "step", "sampling") as advance:
            return frames_on(
                *(self.places, self.pipeline, numbers, options.seed, self.label, options.batch_size, keep, show),
                after_step=lambda: advance(1),
            )

    def _condition_on_test_data(self) -> Tensor | None:
        """Conditions a model that needs images, if none were given, on images made from test data, with their labels.

        Returns:
            Those test images, at most n; None if they were not needed.
        """
        if self.pipeline.condition is None or self.pipeline.given is not None:
            return None
        test = self.test_data()
        index = torch.arange(min(self.n, len(test)))
        print(
            "conditioned on images made from test data; condition=photo.png, or a folder, gives others", file=sys.stderr
        )
        self.pipeline.condition_on(test, index)
        return test.get(index)

    def _check_memory(self, n: int) -> None:
        """Raises ConfigError, one line, if so many samples do not fit into memory."""
        options, shape = self.options, self.pipeline.shape
        asked = f"n={n}" + (f" frames={options.frames}" if self.frames > 1 else "")
        memory.check_samples(asked, self.in_memory(n), shape)
        memory.check(f"n={n}", 32 * n)  # the samples' numbers
        memory.check_samples(f"batch_size={options.batch_size}", min(options.batch_size, n), shape)


def held_out(config: Mapping[str, Any]) -> Examples:
    """The test data of a run's data set."""
    source = config["dataset"]["source"]
    check_source(source)
    # A picture does not justify a download: if the dataset is missing, an error says so.
    here = source | ({"download": False} if "download" in source else {})
    splits: Splits = build(here, "dataset.source").load()
    return splits.test


def settled(n: int | None, options: Options, num_classes: int) -> tuple[int, int | list[int] | None, int | None]:
    """The number of samples, their label or labels, and the number of rows."""
    classes = num_classes if options.label == "all" else 1
    if classes == 0:
        raise ConfigError("label=all: this model has no classes; train one with experiment=fast_digits_cond, say")
    label, rows = options.label, options.rows
    n = n or (8 * classes if label == "all" else max(9, len(label) if isinstance(label, list) else 0))
    if label == "all":
        if n % classes:
            raise ConfigError(
                f"label=all draws one row for each of {classes} classes: n={n} must be a multiple of {classes}"
            )
        label, rows = [k * classes // n for k in range(n)], rows or classes
    if isinstance(label, list) and len(label) > n:
        raise ConfigError(f"label={label} is more labels than n={n} has samples: leave some out, or raise n=")
    if rows is not None and rows > n:
        raise ConfigError(f"rows={rows} is more than n={n}")
    assert not isinstance(label, str)
    return n, label, rows


def with_eta(sampler: Any, own: Any, eta: float | None) -> Any:
    """The configuration of the chosen sampler, or else of the model's own, with this eta."""
    if eta is None:
        return sampler
    chosen = sampler or own
    if not isinstance(chosen, dict) or "eta" not in chosen:
        raise ConfigError(f"eta={eta} belongs to the ddim sampler: add sampler=ddim")
    return chosen | {"eta": eta}


def unwrapped(sampler: Sampler) -> Sampler:
    """The sampler itself, or the one that it repeats."""
    inner: Sampler = vars(sampler).get("sampler", sampler)
    return inner


def with_sampler(known: Mapping[str, Any], sampler: Sampler) -> dict[str, Any]:
    """What is known of samples, and their sampler's class and settings; one of these that has a name which is taken
    already is `sampler.<name>`. Of a wrapped sampler, those of the inner one."""
    inner = unwrapped(sampler)
    taken = known.keys() | {"sampler"}
    own = {f"sampler.{name}" if name in taken else name: value for name, value in vars(inner).items()}
    return {**known, "sampler": type(inner).__name__, **own}
