"""The kinds of drawings: each checks what was asked of it, then draws and writes its kind of file."""

import math
import sys
from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffusion import media
from diffusion.build import ConfigError
from diffusion.denoisers import Condition
from diffusion.forward import trajectory
from diffusion.media import processes
from diffusion.media.atomic import atomic
from diffusion.models import encoded
from diffusion.noise import EVALUATION, Noise
from diffusion.sampling.conditions import as_picture
from diffusion.sampling.drawing import Drawing
from diffusion.sampling.given import read_image
from diffusion.sampling.interpolation import check_deterministic, inverted, morphed
from diffusion.sampling.parallel import check_finite
from diffusion.settings.idle import refuse
from diffusion.settings.outputs import ANIMATIONS
from diffusion.settings.sampling import Options, Steering
from diffusion.terminal.progress import counted, progress


def kind_of(options: Options, steering: Steering) -> type[Drawing]:
    """The kind of drawing that these settings ask for."""
    if steering.invert:
        return Inversion
    if steering.interpolate is not None:
        return Morph
    if options.show == "condition":
        return BesideConditions
    if options.show == "both":
        return BothProcesses
    return File if options.out is None or Path(options.out).suffix else Folder


class File(Drawing):
    """An animation, a grid or arrays of samples."""

    def write(self) -> None:
        numbers = range(self.n)
        labels = self.pipeline.labels(torch.arange(self.n), self.label)
        self.save(list(self.states(numbers, self.frames)), self.rows, labels)


class Folder(Drawing):
    """One file a sample, written a batch at a time, so that an interrupted command can continue."""

    def in_memory(self, n: int) -> int:
        return min(n, self.options.batch_size * len(self.places))

    def write(self) -> None:
        settings = self.record()
        media.check_claim(self.out, settings)
        numbers = media.missing(self.out, self.n)
        # Other processes need seconds to start, so they get many batches at once.
        share = self.options.batch_size * len(self.places) * (1 if len(self.places) == 1 else 32)
        with progress(len(numbers), "sample", "writing") as advance:
            for begin in range(0, len(numbers), share):
                batch = numbers[begin : begin + share]
                samples = self.states(batch)[-1]
                if begin == 0:  # a folder only for what was drawn
                    media.claim(self.out, settings)
                media.save_folder(self.out, samples, batch)
                advance(len(batch))
        if len(numbers) < self.n:
            print(f"{self.n - len(numbers)} of {counted(self.n, 'sample')} were there already", file=sys.stderr)


class BothProcesses(Drawing):
    """Real data becoming noise above samples coming out of it."""

    def check(self, typed: Collection[str]) -> None:
        processes.check_out(self.out, self.options.show)

    @property
    def frames(self) -> int:
        return self.options.frames

    def in_memory(self, n: int) -> int:
        return 2 * super().in_memory(n)

    def write(self) -> None:
        above, below = self._noised(), self.states(range(self.n), self.frames)
        processes.save(self.out, above, below, self.rows, self.options.fps, self.options.hold)

    def _noised(self) -> Tensor:
        """Test data, noised to the times of the states that are drawn: (frames, n, *S)."""
        test, pipeline, n = self.test_data(), self.pipeline, self.n
        if n > len(test):
            raise ConfigError(f"n={n}: show=both draws as many real samples, and the test split has {len(test)}")
        index = torch.arange(n)
        times = pipeline.times[pipeline.shown(self.frames)]
        x0 = encoded(pipeline.codec, test.get(index))
        states = trajectory(pipeline.denoiser.schedule, x0, times, Noise(self.options.seed, index, EVALUATION))
        return torch.stack([pipeline.decoded(x_t, t) for x_t, t in zip(states, times, strict=True)])


class BesideConditions(Drawing):
    """Samples below the images that they were conditioned on, and above the true ones where these are known."""

    def check(self, typed: Collection[str]) -> None:
        processes.check_out(self.out, self.options.show)
        if self.pipeline.condition is None:
            raise ConfigError(
                "show=condition: this model is not conditioned on images: train with dataset.condition=lowres"
            )

    def in_memory(self, n: int) -> int:
        return 3 * super().in_memory(n)

    def write(self) -> None:
        n = self.n
        conditions = self._conditions()
        tables = [with_conditions(conditions, state, self.truth) for state in self.states(range(n), self.frames)]
        self.save(tables, len(tables[-1]) // n)

    def _conditions(self) -> Condition:
        """On the CPU; the first stage of a cascade draws them on the device."""
        index, seed = torch.arange(self.n, device=self.places[0]), self.options.seed
        parts = [self.pipeline.conditions(part, seed, self.label) for part in index.split(self.options.batch_size)]
        return {name: torch.cat([part[name].cpu() for part in parts]) for name in parts[0]}


class _Between(Drawing):
    """What leads from images to their noise by a deterministic sampler."""

    seeded = False
    setting: str
    suffixes: tuple[str, ...]
    idle: tuple[str, ...]

    def check(self, typed: Collection[str]) -> None:
        check_deterministic(self.pipeline, self.setting)
        if self.out.suffix.lower() not in self.suffixes:
            raise ConfigError(f"out={self.out}: {self.setting} writes {' or '.join(self.suffixes)}")
        refuse(typed, self.idle, self.setting)
        if len(self.places) > 1:
            raise ConfigError(
                f"{self.setting} runs on one device, not on {len(self.places)}: leave devices= out, or name one"
            )

    def read(self, path: str, setting: str) -> Tensor:
        """The image that a setting names, (1, *shape)."""
        return read_image(path, setting, self.pipeline.shape, self.steering.resize)[None]

    def noise_of(self, image: Tensor) -> Tensor:
        """The state at the first time from which an image (1, *shape) is drawn, (1, *S)."""
        return inverted(self.pipeline, image.to(self.places[0]), self.label)


class Inversion(_Between):
    """The noise from which an image is drawn, and how far what is drawn from it is from the image."""

    name = "noise.npz"
    setting, suffixes, idle = "invert=true", (".npz",), ("show", "n", "rows", "seed", "batch_size")

    def check(self, typed: Collection[str]) -> None:
        super().check(typed)
        self.path = str(self.steering.init)
        self.image = self.read(self.path, "init")

    @property
    def only_one(self) -> bool:
        return True

    def write(self) -> None:
        noise = self.noise_of(self.image)
        check_finite(noise)
        index = torch.arange(1, device=noise.device)
        *_, last = self.pipeline.states(index, 0, self.label, noise)
        error = (self.pipeline.decoded(last.x_t).cpu() - self.image).square().mean().sqrt().item()
        with atomic(self.out) as file:
            np.savez(file, noise.cpu().numpy())
        print(
            f"the image drawn from this noise differs from {self.path} by {127.5 * error:.2g} of 255 levels (root mean "
            f"square)",
            file=sys.stderr,
        )


class Morph(_Between):
    """An animation of the samples between two ends: seeds, or images by their noise."""

    name = "morph.gif"
    setting, suffixes, idle = "interpolate=", ANIMATIONS, ("show", "seed")

    def check(self, typed: Collection[str]) -> None:
        super().check(typed)
        paths = self.steering.interpolated_images()
        if paths and self.options.n not in (None, 1):
            raise ConfigError(f"n={self.options.n}: interpolate={paths[0]} is one image; leave n= out")
        self.images = {path: self.read(path, "interpolate") for path in paths}

    @property
    def only_one(self) -> bool:
        return bool(self.images)

    def in_memory(self, n: int) -> int:
        return n * self.frames

    def write(self) -> None:
        samples = self._samples()
        check_finite(samples.flatten(0, 1))
        self.save(list(samples), self.rows)

    def _samples(self) -> Tensor:
        """The samples between one end and the other, (frames, n, *S)."""
        assert self.steering.interpolate is not None
        options = self.options
        begin, end = (
            self.noise_of(self.images[end]).cpu()
            if isinstance(end, str)
            else self.pipeline.start(torch.arange(self.n), end)
            for end in self.steering.interpolate
        )
        batches = math.ceil(options.frames * self.n / options.batch_size)
        with progress(batches * len(self.pipeline.times), "step", "sampling") as advance:
            return morphed(
                *(self.pipeline, begin, end, options.frames, self.label, options.batch_size, self.places[0]),
                after_step=lambda: advance(1),
            )


def with_conditions(cond: Condition, samples: Tensor, truth: Tensor | None) -> Tensor:
    """Three rows of images in one batch: the conditions, the samples, and the true images if they are known."""
    rows = [as_picture(cond["image"], samples.shape[1:]), samples]
    if truth is not None:
        rows.append(truth[torch.arange(len(samples)) % len(truth)])
    return torch.cat(rows)
