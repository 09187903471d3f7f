"""What sampling can be told beside a model: labels' guidance, an image to begin from or to complete."""

import math
from dataclasses import dataclass, fields
from typing import Any

from diffusion.build import ConfigError


@dataclass(frozen=True)
class Steering:
    """Guidance, masks and starts of one sampling run; the defaults change nothing.

    Args:
        guidance: w, which tilts each noise level's density to `p(x_t) p(label | x_t)^w`; 1 is the label's own.
        guidance_interval: levels sigma / alpha between which a class-conditional model is guided.
        guidance_rescale: see `ClassifierFreeGuidance`.
        classifier: checkpoint that steers a model without classes, as `checkpoint.find` takes it.
        embedding: .npy file of the vectors (N, d) that condition a model in the place of labels.
        condition: image file, or folder of them, that a model which is conditioned on images is told.
        init: image to begin from, or to complete.
        mask: image of the same size; white is repainted, black is kept.
        resize: crop the centre of these images and resize it, as a folder of images to train on is, where they have
            another size than the model's.
        resample: RePaint's rounds of each step; 1 is the replacement method.
        t_start: where sampling begins.
        t_end: where it ends.
    """

    guidance: float = 1.0
    guidance_interval: list[float] | None = None
    guidance_rescale: float = 0.0
    classifier: str | int | None = None
    embedding: str | None = None
    condition: str | None = None
    init: str | None = None
    mask: str | None = None
    resize: bool = False
    resample: int = 1
    t_start: float = 1.0
    t_end: float = 0.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.guidance):
            raise ValueError(f"guidance must be a finite number (1 is off), got {self.guidance}")
        for name in ("guidance_interval", "guidance_rescale"):
            if getattr(self, name) and (self.guidance == 1 or self.classifier is not None):
                raise ValueError(f"{name} belongs to guidance of a class-conditional model: add guidance=2, say")
        if self.guidance_interval is not None and len(self.guidance_interval) != 2:
            raise ValueError(f"guidance_interval must be two levels of sigma / alpha, got {self.guidance_interval}")
        if not 0 <= self.t_end < self.t_start <= 1:
            raise ValueError(
                f"t_start and t_end need 0 <= t_end < t_start <= 1 (1 is noise, 0 is data), got "
                f"t_start={self.t_start:g} and t_end={self.t_end:g}"
            )
        if self.mask is not None and self.init is None and self.condition is None:
            raise ValueError(f"mask={self.mask} needs the image that it belongs to: add init=photo.png")
        if self.init is None and self.t_start < 1:
            raise ValueError(f"t_start={self.t_start:g} needs an image to begin from: add init=photo.png")
        if self.init is not None and self.mask is None and self.t_start == 1:
            raise ValueError(
                "init= has no effect at t_start=1 (pure noise): add t_start=0.6 to begin near it, or mask= for a part"
            )
        if self.resize and self.init is None and self.condition is None:
            raise ValueError("resize=true is for the images of init=, mask= and condition=: leave it out, or add one")
        if self.resample < 1:
            raise ValueError(f"resample must be at least 1 (1 is off), got {self.resample}")
        if self.resample > 1 and (self.mask is None or self.init is None):
            raise ValueError(f"resample={self.resample} belongs to inpainting: add init=photo.png mask=mask.png")

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
        if self.classifier is not None:
            raise ConfigError(f"classifier={self.classifier} knows noisy pixels, and this model draws latents")
