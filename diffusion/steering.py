"""What sampling can be told beside a model: labels' guidance, an image to begin from or to complete."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.pictures import UnreadableImage, images_in, read_pixels
from diffusion.build import ConfigError
from diffusion.checkpoint import find, trained_classifier
from diffusion.classifiers import LabelLogProb
from diffusion.conditioning import ImageCondition
from diffusion.denoisers import Condition, Denoiser
from diffusion.guidance import ClassifierFreeGuidance, EnergyGuidance, Inpainting


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
                "init= is forgotten from t_start=1 on: add t_start=0.6 to begin nearer to it, or mask= to keep parts"
            )
        if self.resample < 1:
            raise ValueError(f"resample must be at least 1 (1 is off), got {self.resample}")
        if self.resample > 1 and (self.mask is None or self.init is None):
            raise ValueError(f"resample={self.resample} belongs to inpainting: add init=photo.png mask=mask.png")

    def given(self) -> dict[str, Any]:
        """What differs from the defaults."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}

    def around(self, denoiser: Denoiser, config: Mapping[str, Any]) -> Denoiser:
        """The denoiser with the guidance and the mask around it.

        Args:
            denoiser: of a checkpoint.
            config: the checkpoint's.

        Raises:
            ConfigError: they do not go together.
        """
        shape = tuple(config["dataset"]["shape"])
        if self.classifier is not None:
            denoiser = self._by_classifier(denoiser, shape)
        elif self.guidance != 1:
            _check_guidable(denoiser, config, self.guidance)
            denoiser = ClassifierFreeGuidance(denoiser, self.guidance, self.guidance_interval, self.guidance_rescale)
        if self.init is not None and self.mask is not None:
            denoiser = Inpainting(denoiser, read_image(self.init, "init", shape), read_mask(self.mask, shape))
        return denoiser

    def check_latents(self) -> None:
        """Raises ConfigError for what needs a model of pixels."""
        if self.mask is not None:
            raise ConfigError(
                f"mask={self.mask}: this model draws latents, whose decoder would not keep the known pixels: "
                f"use a model of pixels, or begin from the image with t_start=0.6"
            )
        if self.classifier is not None:
            raise ConfigError(f"classifier={self.classifier} knows noisy pixels, and this model draws latents")

    def start(self, shape: tuple[int, ...]) -> Tensor | None:
        """The image that sampling begins from, (C, H, W) in [-1, 1]; None from t = 1 on, where only noise is left."""
        return None if self.init is None or self.t_start == 1 else read_image(self.init, "init", shape)

    def rows(self, length: int, condition: ImageCondition | None, shape: tuple[int, ...]) -> Condition:
        """What was given to condition images on, a row each; what the model does not take, or lacks, is refused.

        Args:
            length: of the vectors that the model takes; 0 if it takes none.
            condition: how it is told images; None if it is not.
            shape: of the images that it draws.
        """
        vectors = self._vectors(length)
        rows = {} if vectors is None else {"embedding": vectors}
        if self.condition is not None:
            rows |= self._images(condition, shape)
        return rows

    def _images(self, condition: ImageCondition | None, shape: tuple[int, ...]) -> Condition:
        name = f"condition={self.condition}"
        if condition is None:
            raise ConfigError(f"{name}: this model is told no images; train one with dataset.condition=lowres, say")
        if self.mask is not None and self.init is None and not condition.takes_mask:
            raise ConfigError(f"mask={self.mask} needs the image that it belongs to: add init=photo.png")
        mask = None if self.mask is None or not condition.takes_mask else read_mask(self.mask, shape)
        path = Path(str(self.condition))
        try:
            files = images_in(path) if path.is_dir() else [path]
        except ValueError as error:
            raise ConfigError(f"{name}: {error}") from error
        found = []
        for file in files:
            picture = read_picture(str(file), "condition", shape)
            try:
                found.append(condition.of_picture(picture, shape, mask))
            except ValueError as error:
                raise ConfigError(f"condition={file}: {error}") from error
        return {key: torch.cat([told[key] for told in found]) for key in found[0]}

    def _vectors(self, length: int) -> Tensor | None:
        """The vectors that condition a model which takes those of this length, (N, length); None if it takes none."""
        if self.embedding is None:
            if length:
                raise ConfigError(
                    f"this model is conditioned on vectors of length {length}: add embedding=file.npy to sample.py; "
                    f"evaluate.py scores what that draws, samples=x.npz"
                )
            return None
        if not length:
            raise ConfigError(f"embedding={self.embedding}: this model takes no vectors; see network.embedding")
        try:
            if not Path(self.embedding).is_file():
                raise ValueError("no regular file is there")
            vectors = np.load(self.embedding, allow_pickle=False)
        except (OSError, ValueError, EOFError, MemoryError, SyntaxError, TypeError) as error:
            raise ConfigError(f"embedding={self.embedding} cannot be read as .npy: {error}") from error
        if not isinstance(vectors, np.ndarray) or vectors.ndim != 2 or vectors.shape[1] != length or not len(vectors):
            raise ConfigError(f"embedding={self.embedding} must hold vectors of shape (n, {length})")
        return torch.from_numpy(vectors.astype(np.float32))

    def _by_classifier(self, denoiser: Denoiser, shape: tuple[int, ...]) -> Denoiser:
        if denoiser.num_classes:
            raise ConfigError("this model knows its classes: classifier= steers models without; use guidance= alone")
        path, checkpoint = find(str(self.classifier))
        classifier = trained_classifier(checkpoint, path)
        theirs = tuple(checkpoint["config"]["dataset"]["shape"])
        if theirs != shape:
            raise ConfigError(f"classifier={self.classifier} is for data of shape {theirs}, the model draws {shape}")
        log_prob = LabelLogProb(classifier, denoiser.schedule)
        guided = EnergyGuidance(denoiser, log_prob, self.guidance)
        guided.num_classes = classifier.num_classes
        return guided


def _check_guidable(denoiser: Denoiser, config: Mapping[str, Any], guidance: float) -> None:
    if max(denoiser.num_classes, denoiser.embedding, denoiser.condition_channels) == 0:
        raise ConfigError(
            f"guidance={guidance:g}: this model is unconditional; train one with experiment=fast_digits_cond, say, "
            f"or add classifier=..."
        )
    if not config.get("condition_dropout"):
        raise ConfigError(
            f"guidance={guidance:g}: this model was always told the label, or the image, and cannot do without; train "
            f"one with condition_dropout=0.1"
        )


def read_image(path: str, what: str, shape: Sequence[int]) -> Tensor:
    """An image file as data of this shape, (C, H, W); see `read_picture`.

    Raises:
        ConfigError: it cannot be read, or has another size.
    """
    picture = read_picture(path, what, shape)
    if picture.shape[1:] != tuple(shape[1:]):
        raise ConfigError(
            f"{what}={path} is {picture.shape[2]}x{picture.shape[1]} pixels (width x height), the model draws "
            f"{shape[2]}x{shape[1]}: resize or crop it"
        )
    return picture


def read_picture(path: str, what: str, shape: Sequence[int]) -> Tensor:
    """An image file of any size with the channels of data of this shape, (C, h, w) in [-1, 1], `pixel / 127.5 - 1`.

    Raises:
        ConfigError: it cannot be read, or the data are no images.
    """
    if len(shape) != 3:
        raise ConfigError(f"{what}={path} is an image, and this model draws points")
    try:
        pixels = read_pixels(Path(path), shape[0])
    except UnreadableImage as error:
        raise ConfigError(f"{what}={path} cannot be read as an image: {error}") from error
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 127.5 - 1


def read_mask(path: str, shape: Sequence[int]) -> Tensor:
    """A mask file, (1, H, W): 1, to be repainted, where it is lighter than middle grey, else 0."""
    mask = (read_image(path, "mask", (1, *shape[1:])) > 0).float()
    if not mask.any():
        raise ConfigError(f"mask={path} is all black, which keeps everything: paint white what is to be generated")
    return mask
