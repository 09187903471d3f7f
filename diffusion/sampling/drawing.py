"""The work of `sample.py`: everything is checked first, then samples are drawn and written."""

import math
import shlex
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.stream import Examples, Splits
from diffusion import media
from diffusion.build import ConfigError, build, check_source
from diffusion.denoisers import Condition
from diffusion.forward import trajectory
from diffusion.machine import memory
from diffusion.machine.devices import devices
from diffusion.media import processes
from diffusion.media.atomic import atomic
from diffusion.models import encoded
from diffusion.noise import EVALUATION, Noise
from diffusion.runs.checkpoints import find
from diffusion.samplers import Sampler
from diffusion.sampling.cascade import from_checkpoints
from diffusion.sampling.conditions import Rows, as_picture
from diffusion.sampling.given import read_image
from diffusion.sampling.interpolation import check_deterministic, inverted, morphed
from diffusion.sampling.parallel import check_finite, frames_on
from diffusion.settings.idle import refuse
from diffusion.settings.sampling import Options, Steering
from diffusion.terminal.progress import counted, progress


class Drawing:
    """Samples to draw and write.

    Args:
        options: how many samples, how they are drawn, and where they are written.
        steering: guidance, masks and starts.
        method: "sampler", "grid" and "wrapper", each a configuration, or None for the model's own.
        typed: names of the settings that a person wrote.

    Raises:
        ConfigError: what does not go together, or does not fit into memory. Nothing is written yet.
    """

    def __init__(
        self, options: Options, steering: Steering, method: Mapping[str, Any], typed: Iterable[str] = ()
    ) -> None:
        self.options, self.steering, self.wrapper = options, steering, method.get("wrapper")
        self.places = devices(options.devices, options.accelerator)
        if options.out is not None:
            media.check_out(options.out)
        self.stages = [find(spec) for spec in options.checkpoints()]
        self.model = self.stages[-1]
        own = self.model.config.get("sampler") if len(self.stages) == 1 else None
        self.pipeline = from_checkpoints(
            self.stages,
            options.weights,
            steering,
            options.conditioning_noise,
            sampler=with_eta(method.get("sampler"), own, options.eta),
            grid=method.get("grid"),
            wrapper=method.get("wrapper"),
            steps=options.steps,
            clip=options.clip,
        )
        name = "noise.npz" if steering.invert else "morph.gif" if steering.interpolate else "pred.gif"
        self.out = self.model.folder / "samples" / name if options.out is None else Path(options.out)
        media.check_out(self.out, self.pipeline.shape)
        options.refuse_idle(typed, self.out, self.pipeline.shape)
        if options.show in ("both", "condition"):
            processes.check_out(self.out, options.show)
        if options.show == "condition" and self.pipeline.condition is None:
            raise ConfigError(
                "show=condition: this model is not conditioned on images: train with dataset.condition=lowres"
            )
        self._check_between(typed)
        n, given = options.n, self.pipeline.given
        if steering.invert or steering.interpolated_images():
            n = 1
        if steering.condition is not None and isinstance(given, Rows) and n is None:
            n = len(given) if len(given) > 1 else None  # one for each that was given
        self._check_memory(n or 1)
        self.n, self.label, self.rows = settled(n, options, self.pipeline.num_classes)
        self.pipeline.labels(torch.arange(self.n), self.label)  # refused before test data are read
        self.truth = self._condition_on_test_data()

    @property
    def moving(self) -> bool:
        """Whether the file is an animation from noise to samples."""
        return self.out.suffix.lower() in (".gif", ".webp")

    def write(self) -> None:
        """Draws and writes."""
        options, numbers = self.options, range(self.n)
        frames = options.frames if self.moving else 1
        if self.steering.invert:
            self._write_noise()
        elif self.steering.interpolate is not None:
            samples = list(self._morph())
            check_finite(torch.cat(samples))
            media.save(self.out, samples[-1], samples, self.rows, fps=options.fps, hold=options.hold)
        elif options.show == "condition":
            conditions = self.pipeline.conditions(torch.arange(self.n), options.seed, self.label)
            tables = [with_conditions(conditions, state, self.truth) for state in self._states(numbers, frames)]
            rows = len(tables[-1]) // self.n
            media.save(self.out, tables[-1], tables, rows, fps=options.fps, hold=options.hold)
        elif options.show == "both":
            above, below = self._noised(), self._states(numbers, options.frames)
            processes.save(self.out, above, below, self.rows, options.fps, options.hold)
        elif self.out.suffix:
            states = list(self._states(numbers, frames))
            labels = self.pipeline.labels(torch.arange(self.n), self.label)
            media.save(self.out, states[-1], states, self.rows, fps=options.fps, hold=options.hold, labels=labels)
        else:
            self._write_folder()

    def summary(self) -> str:
        """One line about the samples and the method."""
        models = ", ".join(f"{stage.path} at step {stage.step}" for stage in self.stages)
        # The grid does not decide how often an adaptive sampler calls the denoiser.
        steps = counted(len(self.pipeline.times) - 1, "step") if self.pipeline.sampler.calls else "adaptive steps"
        return (
            f"{counted(self.n, 'sample')} of {models}: weights {self.options.weights}, seed {self.options.seed}, "
            f"{sampler_settings(self.pipeline.sampler)['sampler']}, {steps}"
        )

    def following(self) -> str:
        """What to do next, in one line."""
        seed, ckpt = self.options.seed + 1, self.options.ckpt
        spec = f"[{','.join(map(str, ckpt))}]" if isinstance(ckpt, list) else str(ckpt)
        return f"next: others by seed={seed}; scores by python evaluate.py ckpt={shlex.quote(spec)}"

    def _check_between(self, typed: Iterable[str]) -> None:
        """Raises ConfigError if an interpolation or an inversion cannot be computed or written."""
        steering, options = self.steering, self.options
        if not steering.invert and steering.interpolate is None:
            return
        name = "invert=true" if steering.invert else "interpolate="
        check_deterministic(self.pipeline, name)
        suffixes = (".npz",) if steering.invert else (".gif", ".webp")
        if self.out.suffix.lower() not in suffixes:
            raise ConfigError(f"out={self.out}: {name} writes {' or '.join(suffixes)}")
        refuse(typed, ("show", *(("n", "rows", "seed") if steering.invert else ("seed",))), name)
        if options.frames < 2 and not steering.invert:
            raise ConfigError(f"frames={options.frames}: interpolate= draws at least 2, one for each end")
        images = steering.interpolated_images()
        if images and options.n not in (None, 1):
            raise ConfigError(f"n={options.n}: interpolate={images[0]} is one image; leave n= out")
        paths, setting = ([str(steering.init)], "init") if steering.invert else (images, "interpolate")
        self.images = {path: read_image(path, setting, self.pipeline.shape, steering.resize) for path in paths}

    def _noise_of(self, path: str) -> Tensor:
        """The state at the first time from which this image is drawn, (1, *S)."""
        return inverted(self.pipeline, self.images[path][None].to(self.places[0]), self.label)

    def _morph(self) -> Tensor:
        """The samples between one end and the other, (frames, n, *S)."""
        assert self.steering.interpolate is not None
        options, index = self.options, torch.arange(self.n)
        begin, end = (
            self._noise_of(end).cpu() if isinstance(end, str) else self.pipeline.start(index, end)
            for end in self.steering.interpolate
        )
        batches = math.ceil(options.frames * self.n / options.batch_size)
        with progress(batches * len(self.pipeline.times), "step", "sampling") as advance:
            return morphed(
                *(self.pipeline, begin, end, options.frames, self.label, options.batch_size, self.places[0]),
                after_step=lambda: advance(1),
            )

    def _write_noise(self) -> None:
        """Writes the noise of the image of init=, and prints the error of the image that is drawn from it."""
        path = str(self.steering.init)
        noise = self._noise_of(path)
        check_finite(noise)
        *_, last = self.pipeline.states(torch.arange(1, device=noise.device), 0, self.label, noise)
        error = (self.pipeline.decoded(last.x_t).cpu() - self.images[path]).square().mean().sqrt().item()
        with atomic(self.out) as file:
            np.savez(file, noise.cpu().numpy())
        print(
            f"the image drawn from this noise differs from {path} by {127.5 * error:.2g} of 255 levels (root mean "
            f"square)",
            file=sys.stderr,
        )

    def _write_folder(self) -> None:
        """Writes a batch at a time, so that an interrupted command can continue."""
        options, steering = self.options, self.steering
        settings = {
            "checkpoint": str(self.model.path) if len(self.stages) == 1 else [str(stage.path) for stage in self.stages],
            "step": self.model.step, "weights": options.weights, "seed": options.seed,
            "label": self.label, "clip": options.clip, **sampler_settings(self.pipeline.sampler),
            "times": self.pipeline.times.tolist(), **steering.given(),
            **({"conditioning_noise": options.conditioning_noise} if options.conditioning_noise else {}),
            **({} if self.wrapper is None else {"wrapper": self.wrapper}),
        }  # fmt: skip
        media.check_claim(self.out, settings)
        numbers = media.missing(self.out, self.n)
        # Other processes need seconds to start, so they get many batches at once.
        share = options.batch_size * len(self.places) * (1 if len(self.places) == 1 else 32)
        with progress(len(numbers), "sample", "writing") as advance:
            for begin in range(0, len(numbers), share):
                batch = numbers[begin : begin + share]
                samples = self._states(batch)[-1]
                if begin == 0:  # a folder only for what was drawn
                    media.claim(self.out, settings)
                media.save_folder(self.out, samples, batch)
                advance(len(batch))
        if len(numbers) < self.n:
            print(f"{self.n - len(numbers)} of {counted(self.n, 'sample')} were there already", file=sys.stderr)

    def _states(self, numbers: "range | list[int]", frames: int = 1) -> Tensor:
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

    def _noised(self) -> Tensor:
        """Real data of the test split, noised to the times of the states that are drawn: (frames, n, *S)."""
        test, pipeline = held_out(self.model.config), self.pipeline
        if self.n > len(test):
            raise ConfigError(f"n={self.n}: show=both draws as many real samples, and the test split has {len(test)}")
        index = torch.arange(self.n)
        times = pipeline.times[pipeline.shown(self.options.frames)]
        x0 = encoded(pipeline.codec, test.get(index))
        noise = Noise(self.options.seed, index, EVALUATION)
        states = trajectory(pipeline.denoiser.schedule, x0, times, noise)
        return torch.stack([pipeline.decoded(x_t, t) for x_t, t in zip(states, times, strict=True)])

    def _condition_on_test_data(self) -> Tensor | None:
        """Conditions a model that needs images, if none were given, on images made from test data, with their labels.

        Returns:
            Those test images, at most n; None if they were not needed.
        """
        if self.pipeline.condition is None or self.pipeline.given is not None:
            return None
        test = held_out(self.model.config)
        index = torch.arange(min(self.n, len(test)))
        print(
            "conditioned on images made from test data; condition=photo.png, or a folder, gives others", file=sys.stderr
        )
        self.pipeline.condition_on(test, index)
        return test.get(index)

    def _check_memory(self, n: int) -> None:
        """Raises ConfigError, one line, if so many samples do not fit into memory."""
        options, shape = self.options, self.pipeline.shape
        # A folder is written a batch at a time; all else is in memory at once, with each frame.
        kept = n if self.out.suffix else min(n, options.batch_size * len(self.places))
        frames = min(options.frames, len(self.pipeline.times)) if self.moving else 1
        frames = frames if self.steering.interpolate is None else options.frames
        memory.check_samples(f"n={n}", kept * frames, shape)
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
    n, label, rows = n or (8 * classes if options.label == "all" else 9), options.label, options.rows
    if label == "all":
        if n % classes:
            raise ConfigError(
                f"label=all draws one row for each of {classes} classes: n={n} must be a multiple of {classes}"
            )
        label, rows = [k * classes // n for k in range(n)], rows or classes
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


def sampler_settings(sampler: Sampler) -> dict[str, Any]:
    """The sampler's settings, as a folder of images records them; of a wrapped sampler, those of the inner one."""
    inner = vars(sampler).get("sampler", sampler)
    return {"sampler": type(inner).__name__, **vars(inner)}


def with_conditions(cond: Condition, samples: Tensor, truth: Tensor | None) -> Tensor:
    """Three rows of images in one batch: the conditions, the samples, and the true images if they are known."""
    rows = [as_picture(cond["image"], samples.shape[1:]), samples]
    if truth is not None:
        rows.append(truth[torch.arange(len(samples)) % len(truth)])
    return torch.cat(rows)
