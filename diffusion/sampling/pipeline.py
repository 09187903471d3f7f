"""The one way in which samples are drawn: by a sampler on its grid of times, from a denoiser and its conditions."""

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from data.conditions import ImageCondition
from data.stream import Examples
from diffusion import media
from diffusion.build import ConfigError
from diffusion.denoisers import ClippedDenoiser, Condition, Conditioned, Denoiser, DynamicThreshold
from diffusion.models import Codec, decoded, encoded
from diffusion.noise import SAMPLING, Noise
from diffusion.runs.checkpoints import Checkpoint, find
from diffusion.runs.parts import Parts
from diffusion.runs.trained import load_denoiser
from diffusion.samplers import Evaluation, RePaintSampler, Sampler, begun, prior
from diffusion.sampling import given
from diffusion.sampling.captured import graphed
from diffusion.sampling.conditions import Given, Rows, of_images
from diffusion.sampling.method import sampler_and_times
from diffusion.settings.idle import refuse_clip
from diffusion.settings.sampling import Steering

_Module = TypeVar("_Module", bound=nn.Module)

# Below, the noise is seven times the data; above, it is two of 255 grey levels: neither changes what one sees.
VISIBLE_LOG_SNR = (-4.0, 8.0)


def clipped(denoiser: Denoiser, clip: bool | str) -> Denoiser:
    """The denoiser with D brought into [-1, 1]: "dynamic" divides by its range, true clamps, false does neither."""
    if clip == "dynamic":
        return DynamicThreshold(denoiser)
    return ClippedDenoiser(denoiser) if clip else denoiser


def visible(log_snr: Tensor, frames: int) -> list[int]:
    """At most so many of the states with these log-SNRs (N,): even in log-SNR, where a change of it is visible, with
    the first state and the last.

    Of steps that are even in t, most states are too noisy to show anything.
    """
    low, high = VISIBLE_LOG_SNR
    seen = [0, *(i for i in range(1, len(log_snr) - 1) if low < log_snr[i] < high), len(log_snr) - 1]
    return [seen[k] for k in media.evenly(log_snr[seen].clamp(low, high).tolist(), frames)]


@dataclass(repr=False)
class Pipeline:
    """A denoiser with all that sampling needs.

    Args:
        denoiser: frozen.
        sampler: the method.
        times: at which the sampler calls the denoiser, falling from 1 to 0.
        shape: of one sample.
        num_classes: labels that the model knows, 0 for none.
        init: data, or their latents, to begin from, noised to the first time; None begins with noise at t = 1, and
            below with data of the denoiser's prior, which it then needs.
        condition: how the model's image conditions are made; None for a model without.
        given: the condition of image k beside its label, for a model that needs one.
        label: the default label; see `labels`.
        stream: of the noise; the later stages of a cascade have their own.
        codec: decodes the latents that the denoiser draws; None if it draws data.
    """

    denoiser: Denoiser
    sampler: Sampler
    times: Tensor
    shape: tuple[int, ...]
    num_classes: int
    init: Tensor | None = None
    condition: ImageCondition | None = None
    given: Given | None = None
    label: int | Sequence[int] | None = None
    stream: int = SAMPLING
    codec: Codec | None = None
    _on: torch.device | None = field(default=None, init=False, repr=False)
    _fast: Denoiser | None = field(default=None, init=False, repr=False)

    def __repr__(self) -> str:
        sampler, steps = type(self.sampler).__name__, len(self.times) - 1
        return f"Pipeline({type(self.denoiser).__name__}, {sampler}, {steps} steps, shape={self.shape})"

    @classmethod
    def load(
        cls, spec: str, weights: str | float = "ema", steering: Steering | None = None, **changes: Any
    ) -> "Pipeline":
        """From a checkpoint: `last`, a version number, a run folder or a file; see `from_checkpoint`."""
        return cls.from_checkpoint(find(spec), weights, steering, **changes)

    @classmethod
    def from_checkpoint(
        cls,
        checkpoint: Checkpoint,
        weights: str | float = "ema",
        steering: Steering | None = None,
        *,
        sampler: Mapping[str, Any] | None = None,
        grid: Mapping[str, Any] | None = None,
        wrapper: Mapping[str, Any] | None = None,
        steps: int | None = None,
        start_level: float | None = None,
        clip: bool | str | None = None,
    ) -> "Pipeline":
        """From a checkpoint.

        Args:
            checkpoint: see `diffusion.runs.checkpoints`.
            weights: "ema", "raw" or a width; see `diffusion.runs.trained.load_model`.
            steering: guidance, masks and starts.
            sampler: in the place of the run's own, a configuration; None keeps the run's own, here and below.
            grid: a configuration.
            wrapper: around the denoiser, a configuration.
            steps: of the sampler.
            start_level: sigma / alpha where sampling begins.
            clip: whether D is brought into [-1, 1].
        """
        steering = steering or Steering()
        changes = {
            "sampler": sampler, "grid": grid, "wrapper": wrapper, "steps": steps, "start_level": start_level,
            "clip": clip,
        }  # fmt: skip
        parts = Parts(checkpoint.config | {key: value for key, value in changes.items() if value is not None})
        refuse_clip(clip, parts.config["dataset"])
        model, codec = load_denoiser(checkpoint, weights)
        if codec is not None:
            steering.check_latents()
            if clip is not None:
                raise ConfigError("clip= clamps the pixels of each step, and this model draws latents: leave it out")
        if parts.tunes and steering.measure is not None:
            raise ConfigError(
                f"measure={steering.measure} needs the mean of the data given x_t, which a model tuned for "
                f"sampler=consistency does not give: restore with the model that it was tuned from"
            )
        if steering.needs_path and parts.trained_up_to < math.inf:
            raise ConfigError(
                "interpolate= and invert=true need the whole way between noise and data, and this model is trained at "
                "low noise alone: use the model that it was tuned from"
            )
        denoiser = parts.wrapped(given.steered(model, steering, checkpoint, weights))
        if denoiser.of_pixels and (codec is not None or len(parts.shape) == 1):
            drawn = "latents" if codec is not None else "points"
            raise ConfigError(f"wrapper= scales pixels into [-1, 1], and this model draws {drawn}: leave it out")
        init = given.start(steering, parts.shape)
        chosen, times = sampler_and_times(parts, denoiser, steering)
        if steering.resample > 1 and not (times[1:] > 0).any():
            raise ConfigError(
                f"resample={steering.resample} repeats each step but the last, and there is no other: add steps=20, say"
            )
        rows = given.rows(steering, denoiser.embedding, parts.condition, parts.shape)
        return cls(
            denoiser=clipped(denoiser, parts.config["clip"]) if codec is None else denoiser,
            sampler=chosen if steering.resample == 1 else RePaintSampler(chosen, steering.resample),
            times=times,
            shape=parts.shape,
            num_classes=denoiser.num_classes,
            init=None if init is None else encoded(codec, init[None])[0],
            condition=parts.condition,
            given=Rows(rows) if rows else None,
            codec=codec,
        )

    def labels(self, index: Tensor, label: int | Sequence[int] | None) -> Tensor | None:
        """The labels of these images; None for a model without classes. `label` is one label for all images, or a list
        that is repeated over the images; None is the pipeline's own label, or each class in turn.

        Raises:
            ConfigError: a label that the model does not know.
        """
        if self.num_classes == 0:
            if label is not None:
                raise ConfigError(f"label={label}: this model is unconditional; train one with network.num_classes")
            return None
        label = self.label if label is None else label
        if label is None:
            return index % self.num_classes
        several = [label] if isinstance(label, int) else list(label)
        if not several or any(isinstance(item, bool) or not 0 <= item < self.num_classes for item in several):
            raise ConfigError(f"label must be a whole number from 0 to {self.num_classes - 1}, got {label!r}")
        return torch.tensor(several, device=index.device)[index % len(several)]

    def condition_on(self, examples: Examples, index: Tensor) -> bool:
        """Conditions the samples on these examples (N,), which are repeated: on their labels if the model has classes,
        and on images made from them if it needs images and has none. Returns whether it set such images."""
        if self.num_classes:
            self.label = examples.labels[index].tolist()
        if self.condition is None or self.given is not None:
            return False
        self.given = Rows(of_images(self.condition, examples, index))
        return True

    def conditions(self, index: Tensor, seed: int = 0, label: int | Sequence[int] | None = None) -> Condition:
        """The whole condition of the images with these numbers.

        Raises:
            ConfigError: the model needs an image, and none was given.
        """
        label = self.label if label is None else label
        labels = self.labels(index, label)
        cond = {} if labels is None else {"label": labels}
        if self.given is not None:
            return cond | self.given(index, seed, label)
        if self.condition is not None:
            raise ConfigError("this model is conditioned on images: give some, condition=photo.png or a folder of them")
        return cond

    @property
    def calls(self) -> int | None:
        """Calls of the denoiser that a sample takes, one for a step to t = 0; None where they depend on the sample."""
        steps = int((self.times[1:] > 0).sum())
        return self.sampler.calls * steps + len(self.times) - 1 - steps if self.sampler.calls else None

    @property
    def first_level(self) -> float:
        """sigma / alpha where sampling begins, in so many digits as a person types."""
        return float(f"{(-self.denoiser.schedule.log_snr(self.times[0]) / 2).exp().item():.5g}")

    def start(self, index: Tensor, seed: int = 0, cond: Condition | None = None) -> Tensor:
        """The states at the first time of the images with these numbers, (n, *S) on the index's device: noise, below
        t = 1 with what belongs under it, `init` or data of the denoiser's prior for the condition."""
        schedule, shape = self.denoiser.schedule, self.shape if self.codec is None else self.codec.latent_shape
        noise = Noise(seed, index, self.stream)
        t = self.times[0].item()
        if self.init is None:
            return begun(self.denoiser, noise, shape, t, cond)
        x = prior(schedule, noise, shape, t)
        return x + schedule(self.times[0])[0].item() * self.init.to(x)

    @torch.no_grad()
    def states(
        self, index: Tensor, seed: int = 0, label: int | Sequence[int] | None = None, x: Tensor | None = None
    ) -> Iterator[Evaluation]:
        """Every state, from noise to sample, of the images with these numbers, on the index's device; see `decoded`.

        Image k's noise depends only on (seed, k), so the image is the same in any batch. Sampling begins from x
        (n, *S), or if that is None from `start`.
        """
        conditioned = Conditioned(self._called(index.device), self.conditions(index, seed, label))
        with torch.autocast(index.device.type, enabled=False):
            x = self.start(index, seed, conditioned.cond) if x is None else x
            yield from self.sampler(conditioned, x, self.times, Noise(seed, index, self.stream))

    def _called(self, device: torch.device) -> Denoiser:
        """The denoiser on this device, by CUDA graphs where that pays; they are kept for the next batch."""
        if self._on != device or device.type == "cpu":
            self._on, self._fast = device, graphed(self.denoiser.to(device), device, calls=len(self.times) - 1)
        assert self._fast is not None
        return self._fast

    def __getstate__(self) -> dict[str, Any]:
        """Without the graphs, which belong to this process, and on the CPU: another process has a device of its own."""
        codec = None if self.codec is None else _on_cpu(self.codec)
        return vars(self) | {"_on": None, "_fast": None, "denoiser": _on_cpu(self.denoiser), "codec": codec}

    def decoded(self, x_t: Tensor, t: Tensor | float = 0.0) -> Tensor:
        """States at t, (), decoded to data, (n, *shape); unchanged if there is no codec."""
        codec = None if self.codec is None else self.codec.to(x_t.device)
        return decoded(codec, self.denoiser.schedule, x_t, torch.as_tensor(t, dtype=torch.float64))

    def sample(
        self,
        n: int | Sequence[int],
        seed: int = 0,
        label: int | Sequence[int] | None = None,
        batch_size: int = 64,
        device: str = "cpu",
    ) -> Tensor:
        """Samples, (n, *shape) on the CPU; the arguments are those of `frames`."""
        return self.frames(n, seed, label, batch_size, device)[-1]

    def shown(self, frames: int) -> list[int]:
        """The states of an animation of at most so many frames, as `keep=` of `frames`; see `visible`."""
        return visible(self.denoiser.schedule.log_snr(self.times), frames)

    def frames(
        self,
        n: int | Sequence[int],
        seed: int = 0,
        label: int | Sequence[int] | None = None,
        batch_size: int = 64,
        device: str = "cpu",
        keep: Sequence[int] = (-1,),
        show: str = "x_t",
        after_step: Callable[[], object] = lambda: None,
    ) -> Tensor:
        """Chosen states on the way from noise to samples, (len(keep), n, *shape) on the CPU.

        Args:
            n: how many samples, or the numbers of those wanted.
            seed: of the noise.
            label: of a class-conditional model, see `labels`; None takes each class in turn.
            batch_size: samples at a time.
            device: to compute on.
            keep: which states; 0 is noise and the last, `len(times) - 1` or -1, the samples.
            show: "x_t", or "x0", the data that the model predicts there.
            after_step: called after each step of each batch.
        """
        if show not in ("x_t", "x0"):
            raise ConfigError(f"show must be x_t or x0, got {show!r}")
        numbers = torch.arange(n) if isinstance(n, int) else torch.tensor(list(n))
        wanted = [range(len(self.times))[i] for i in keep]
        batches = []
        for index in numbers.to(device).split(batch_size):
            kept = {}
            for i, state in enumerate(self.states(index, seed, label)):
                if i in wanted:
                    kept[i] = (self.decoded(state.x_t, state.t) if show == "x_t" else self.decoded(state.x0)).cpu()
                after_step()
            batches.append(torch.stack([kept[i] for i in wanted]))
        return torch.cat(batches, dim=1)


def _on_cpu(module: _Module) -> _Module:
    """It, or a copy where it lies elsewhere."""
    places = {tensor.device.type for tensor in (*module.parameters(), *module.buffers())}
    return module if places <= {"cpu"} else copy.deepcopy(module).cpu()
