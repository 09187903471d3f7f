"""Settings of sampling: how many samples, by which method and to which file; guidance, an image to begin from."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from diffusion.build import ConfigError, construct
from diffusion.settings.devices import check_form
from diffusion.settings.idle import refuse
from diffusion.settings.kinds import check_kinds
from diffusion.settings.outputs import ANIMATIONS, suffix_of

# Measurements that an image can be restored from, see `diffusion.sampling.measurements`.
MEASUREMENTS = ("blur", "downsample", "mask", "grey")


def check_level(level: float | None) -> None:
    """Raises ValueError for a value of `start_level` that is no noise level."""
    if level is not None and not level > 0:
        raise ValueError(f"start_level must be a level of sigma / alpha above 0, or inf for noise, got {level:g}")


@dataclass(frozen=True)
class Steering:
    """Guidance, masks and starts of one sampling run; the defaults change nothing.

    Args:
        guidance: w, which tilts each noise level's density to `p(x_t) p(label | x_t)^w`; 1 is the label's own.
        guidance_interval: levels sigma / alpha between which guidance acts; not for guidance by a classifier.
        guidance_rescale: see `Extrapolation`.
        guide: checkpoint of a worse version of the model, for autoguidance.
        guide_weights: which weights of the guide, as for the model; without `guide` the weights of the model itself
            that are its worse version.
        classifier: checkpoint that steers a model without classes, as `checkpoint.find` takes it.
        embedding: .npy file of vectors (N, d), the condition of a model that takes vectors instead of labels.
        condition: image file, or folder of images, the condition of a model that takes images.
        init: image to begin from, or to complete.
        mask: image of the same size; white is repainted, black is kept.
        resize: crop the centre of images of another size than the model's and resize it, as in training on a folder.
        resample: RePaint's rounds of each step; 1 is the replacement method.
        t_start: where sampling begins.
        t_end: where it ends.
        interpolate: two ends between which the starting noise moves: each a seed, or an image, which is inverted.
        measure: how the image of `init` was made from the wanted one: "blur", "downsample", "mask" or "grey".
        noise: standard deviation of the noise in that image, whose values lie in [-1, 1]; None is that of rounding to
            8 bits.
        blur_width: standard deviation of the blur, in pixels.
        invert: compute the noise from which a deterministic sampler draws the image of `init`.
    """

    guidance: float = 1.0
    guidance_interval: list[float] | None = None
    guidance_rescale: float = 0.0
    guide: str | int | None = None
    guide_weights: str | float | None = None
    classifier: str | int | None = None
    embedding: str | None = None
    condition: str | None = None
    init: str | None = None
    mask: str | None = None
    resize: bool = False
    resample: int = 1
    t_start: float = 1.0
    t_end: float = 0.0
    interpolate: list[str | int] | None = None
    measure: str | None = None
    noise: float | None = None
    blur_width: float | None = None
    invert: bool = False

    def __post_init__(self) -> None:
        if not math.isfinite(self.guidance):
            raise ValueError(f"guidance must be a finite number (1 is off), got {self.guidance}")
        for name in ("guidance_interval", "guidance_rescale"):
            if getattr(self, name) and (self.guidance == 1 or self.classifier is not None):
                raise ValueError(f"{name} belongs to guidance by classes or guide=: add guidance=2, say")
        for name in ("guide", "guide_weights"):
            if getattr(self, name) is not None and self.guidance == 1:
                raise ValueError(f"{name}= does nothing at guidance=1: add guidance=1.5, say")
            if getattr(self, name) is not None and self.classifier is not None:
                raise ValueError(f"{name}={getattr(self, name)} and classifier={self.classifier}: give one of them")
        interval = self.guidance_interval
        if interval is not None and (len(interval) != 2 or not 0 <= interval[0] < interval[1]):
            raise ValueError(
                f"guidance_interval must be two rising levels of sigma / alpha, like [0.3,5], got {interval}"
            )
        if not 0 <= self.guidance_rescale <= 1:
            raise ValueError(f"guidance_rescale must lie in [0, 1], got {self.guidance_rescale}")
        if not 0 <= self.t_end < self.t_start <= 1:
            raise ValueError(
                f"t_start and t_end need 0 <= t_end < t_start <= 1 (1 is noise, 0 is data), got "
                f"t_start={self.t_start:g} and t_end={self.t_end:g}"
            )
        self._check_measure()
        if self.mask is not None and self.init is None and self.condition is None:
            raise ValueError(f"mask={self.mask} needs the image that it belongs to: add init=photo.png")
        if self.init is None and self.t_start < 1:
            raise ValueError(f"t_start={self.t_start:g} needs an image to begin from: add init=photo.png")
        self._check_between()
        used = self.mask is not None or self.measure is not None or self.invert
        if self.init is not None and self.t_start == 1 and not used:
            raise ValueError(
                "init= has no effect at t_start=1 (pure noise): add t_start=0.6 to begin near it, or mask= for a part"
            )
        if self.resize and self.init is None and self.condition is None and not self.interpolated_images():
            raise ValueError("resize=true is for the images of init=, mask= and condition=: leave it out, or add one")
        if self.resample < 1:
            raise ValueError(f"resample must be at least 1 (1 is off), got {self.resample}")
        if self.resample > 1 and (self.mask is None or self.init is None):
            raise ValueError(f"resample={self.resample} belongs to inpainting: add init=photo.png mask=mask.png")

    @property
    def needs_path(self) -> bool:
        """Whether noise and sample have to determine each other, as they do for deterministic samplers."""
        return self.invert or self.interpolate is not None

    def checkpoints(self) -> list[str]:
        """What was named beside the model."""
        return [str(spec) for spec in (self.guide, self.classifier) if spec is not None]

    def check_files(self) -> None:
        """Raises ConfigError if an image, a folder of images or a file of vectors is not there."""
        named = [("interpolate", path) for path in self.interpolated_images()]
        named += [(name, path) for name in ("init", "mask", "condition") if (path := getattr(self, name)) is not None]
        for name, path in named:
            if not Path(path).exists():
                raise ConfigError(f"{name}={path} cannot be read as an image: No such file or directory")
        if self.embedding is not None and not Path(self.embedding).exists():
            raise ConfigError(f"embedding={self.embedding} cannot be read as .npy: no regular file is there")

    def interpolated_images(self) -> list[str]:
        """The ends of `interpolate` that are images."""
        return [end for end in self.interpolate or [] if isinstance(end, str)]

    def _check_between(self) -> None:
        """Raises ValueError if an interpolation or an inversion cannot be, or not together with the rest."""
        ends = self.interpolate
        if ends is not None and (len(ends) != 2 or ends[0] == ends[1]):
            raise ValueError(f"interpolate must be two seeds or images, like [1,2] or [a.png,b.png], got {ends}")
        if any(isinstance(end, int) and not 0 <= end < 2**63 for end in ends or []):
            raise ValueError(f"the seeds of interpolate must be from 0 to 2**63 - 1, got {ends}")
        if self.invert and (self.init is None or ends is not None):
            raise ValueError("invert=true turns one image into its noise: add init=photo.png, without interpolate=")
        others = {"init": None, "mask": None, "t_start": 1.0, "t_end": 0.0}
        for name, default in others.items():
            if getattr(self, name) == default or (name == "init" and self.invert):
                continue
            if self.invert or ends is not None:
                what = "invert=true" if self.invert else "interpolate="
                raise ValueError(f"{name}={getattr(self, name)} does not go with {what}: leave one of them out")

    def _check_measure(self) -> None:
        """Raises ValueError if an image cannot be restored, or not together with the rest."""
        if self.measure is None:
            for name in ("noise", "blur_width"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name}={getattr(self, name):g} belongs to restoration: add measure=blur, say")
            return
        if self.measure not in MEASUREMENTS:
            raise ValueError(f"measure must be one of {', '.join(MEASUREMENTS)}, got {self.measure!r}")
        what = f"measure={self.measure}"
        if self.init is None:
            raise ValueError(f"{what} restores an image: add init=photo.png, the image as it was measured")
        if self.noise is not None and not 0 <= self.noise < math.inf:
            raise ValueError(
                f"noise must be a standard deviation, at least 0, of values from -1 to 1, got {self.noise:g}"
            )
        for name, kind, example in (("mask", "mask", "mask.png"), ("blur_width", "blur", "1.5")):
            given = getattr(self, name) is not None
            if self.measure == kind and not given:
                raise ValueError(f"{what} needs {name}: add {name}={example}")
            if self.measure != kind and given:
                raise ValueError(f"{name}= does nothing for {what}: leave it out")
        if self.blur_width is not None and not 0 < self.blur_width < math.inf:
            raise ValueError(f"blur_width must be a positive number of pixels, got {self.blur_width:g}")
        if self.resize and self.measure == "downsample":
            raise ValueError(f"resize=true does nothing for {what}, whose image has a smaller size than the model's")
        if self.t_start < 1 or self.resample > 1 or self.invert:
            name = "t_start" if self.t_start < 1 else "resample" if self.resample > 1 else "invert"
            raise ValueError(f"{name}={getattr(self, name)} does not go with {what}: leave one of them out")

    def given(self) -> dict[str, Any]:
        """What differs from the defaults."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}

    def check_latents(self) -> None:
        """Raises ConfigError for what needs a model of pixels."""
        if self.mask is not None:
            raise ConfigError(
                f"mask={self.mask}: this model draws latents, whose decoder would not keep the known pixels: "
                f"use a model of pixels, or begin from the image with t_start=0.6"
            )
        if self.measure is not None:
            raise ConfigError(
                f"measure={self.measure} restores pixels, and this model draws latents, of which their measurement is "
                f"no linear one: use a model of pixels"
            )
        if self.classifier is not None:
            raise ConfigError(f"classifier={self.classifier} knows noisy pixels, and this model draws latents")


@dataclass
class Options:
    """The plain values of configs/sample.yaml with their types and ranges."""

    ckpt: str | int | list[str | int] | None
    out: str | None
    n: int | None
    rows: int | None
    steps: int | None
    start_level: float | None
    eta: float | None
    seed: int
    label: int | str | list[int] | None
    conditioning_noise: float | None
    weights: str | float
    clip: bool | str | None
    batch_size: int
    devices: int | str | list[int]
    accelerator: str
    show: str
    frames: int
    fps: float
    hold: int

    def refuse_idle(self, typed: Iterable[str], out: Path, shape: Sequence[int]) -> None:
        """Raises ConfigError, one line, if something was typed that changes nothing of such a file of such samples."""
        moving, picture = out.suffix.lower() in ANIMATIONS, out.suffix.lower() == ".png"
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
        if self.out is not None:
            suffix_of(self.out)
        check_form(self.devices)
        check_level(self.start_level)
        if self.conditioning_noise is not None and len(self.checkpoints()) == 1:
            raise ValueError("conditioning_noise belongs to a cascade: give its stages, ckpt=[base,sr]")
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


def read(config: Mapping[str, Any], typed: Collection[str] = ()) -> tuple[Options, Steering, dict[str, Any]]:
    """The checked values of a composed configuration, as a plain dict; with the sampler, the grid and the wrapper that
    were asked for, by these names, each None where there is none but the model's own."""
    plain = dict(config)
    check_kinds(plain, typed)
    method = {name: plain.pop(name, None) for name in ("sampler", "grid", "wrapper")}
    if plain["eta"] is not None and "sampler.eta" in typed:
        raise ConfigError(f"eta={plain['eta']} and sampler.eta={method['sampler']['eta']}: give one of them")
    steering: Steering = construct(Steering, {f.name: plain.pop(f.name) for f in fields(Steering)})
    options: Options = construct(Options, plain)
    if options.start_level is not None and steering.t_start < 1:
        raise ConfigError(
            f"start_level={options.start_level:g} and t_start={steering.t_start:g} both say where sampling begins: "
            f"give one of them"
        )
    if steering.interpolate is not None and options.frames < 2:
        raise ConfigError(f"frames={options.frames}: interpolate= draws at least 2, one for each end")
    if isinstance(options.clip, str) and options.clip != "dynamic":
        raise ConfigError(f"clip must be true, false or dynamic, got {options.clip!r}")
    return options, steering, method
