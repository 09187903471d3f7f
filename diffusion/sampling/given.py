"""Inputs of sampling: reads images, masks, vectors and classifiers, and puts guidance around a model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from data.conditions import ImageCondition
from data.pictures import UnreadableImage, images_in, read_pixels
from diffusion.build import ConfigError, canonical
from diffusion.denoisers import Condition, Denoiser, Rescheduled, TrainableDenoiser
from diffusion.guidance import Autoguidance, ClassifierFreeGuidance, EnergyGuidance, Inpainting, MeasurementGuidance
from diffusion.models import LabelLogProb, NoisyClassifier
from diffusion.runs.checkpoints import Checkpoint, find
from diffusion.runs.parts import Parts, tunes
from diffusion.runs.trained import load_model
from diffusion.sampling.measurements import ROUNDING, Blur, Downsample, Grey, Known
from diffusion.settings.sampling import Steering


def steered(denoiser: Denoiser, steering: Steering, checkpoint: Checkpoint, weights: str | float = "ema") -> Denoiser:
    """The denoiser with the guidance and the mask around it.

    Args:
        denoiser: of the checkpoint.
        steering: what was asked for.
        checkpoint: the model's.
        weights: which of its weights the denoiser has.

    Raises:
        ConfigError: they do not go together.
    """
    shape = tuple(checkpoint.config["dataset"]["shape"])
    extrapolated = (steering.guidance, steering.guidance_interval, steering.guidance_rescale)
    if steering.classifier is not None:
        denoiser = _by_classifier(denoiser, steering, shape)
    elif steering.guide is not None or steering.guide_weights is not None:
        denoiser = Autoguidance(denoiser, _guide(denoiser, steering, checkpoint, weights), *extrapolated)
    elif steering.guidance != 1:
        _check_guidable(denoiser, checkpoint.config, steering.guidance)
        denoiser = ClassifierFreeGuidance(denoiser, *extrapolated)
    if steering.measure is not None:
        noise = ROUNDING if steering.noise is None else steering.noise
        denoiser = MeasurementGuidance(denoiser, *_measurement(steering, shape), noise)
    elif steering.init is not None and steering.mask is not None:
        known = read_image(steering.init, "init", shape, steering.resize)
        denoiser = Inpainting(denoiser, known, read_mask(steering.mask, shape, steering.resize))
    return denoiser


def start(steering: Steering, shape: tuple[int, ...]) -> Tensor | None:
    """The image that sampling begins from, (C, H, W) in [-1, 1]; None from t = 1 on, where only noise is left."""
    if steering.init is None or steering.t_start == 1:
        return None
    return read_image(steering.init, "init", shape, steering.resize)


def rows(steering: Steering, length: int, condition: ImageCondition | None, shape: tuple[int, ...]) -> Condition:
    """What was given to condition images on, a row each; what the model does not take, or lacks, is refused.

    Args:
        steering: what was asked for.
        length: of the vectors that the model takes; 0 if it takes none.
        condition: how the model is conditioned on images; None if it is not.
        shape: of the images that it draws.
    """
    vectors = _vectors(steering, length)
    found = {} if vectors is None else {"embedding": vectors}
    if steering.condition is not None:
        found |= _images(steering, condition, shape)
    return found


def _images(steering: Steering, condition: ImageCondition | None, shape: tuple[int, ...]) -> Condition:
    name = f"condition={steering.condition}"
    if condition is None:
        raise ConfigError(f"{name}: this model is not conditioned on images: train with dataset.condition=lowres")
    if steering.mask is not None and steering.init is None and not condition.takes_mask:
        raise ConfigError(f"mask={steering.mask} needs the image that it belongs to: add init=photo.png")
    masked = steering.mask is not None and condition.takes_mask
    mask = read_mask(str(steering.mask), shape, steering.resize) if masked else None
    path = Path(str(steering.condition))
    try:
        files = images_in(path) if path.is_dir() else [path]
    except ValueError as error:
        raise ConfigError(f"{name}: {error}") from error
    found = []
    for file in files:
        picture = read_picture(str(file), "condition", shape)
        try:
            if steering.resize and not condition.takes(picture.shape[1:], shape):
                picture = read_picture(str(file), "condition", shape, resize=True)
            found.append(condition.of_picture(picture, shape, mask))
        except ValueError as error:
            raise ConfigError(f"condition={file}: {error}") from error
    return {key: torch.cat([cond[key] for cond in found]) for key in found[0]}


def _vectors(steering: Steering, length: int) -> Tensor | None:
    """The vectors that condition a model which takes those of this length, (N, length); None if it takes none."""
    if steering.embedding is None:
        if length:
            raise ConfigError(
                f"this model is conditioned on vectors of length {length}: add embedding=file.npy to sample.py; "
                f"evaluate.py scores what that draws, samples=x.npz"
            )
        return None
    if not length:
        raise ConfigError(f"embedding={steering.embedding}: this model takes no vectors; see network.embedding")
    try:
        if not Path(steering.embedding).is_file():
            raise ValueError("no regular file is there")
        vectors = np.load(steering.embedding, allow_pickle=False)
    except (OSError, ValueError, EOFError, MemoryError, SyntaxError, TypeError) as error:
        raise ConfigError(f"embedding={steering.embedding} cannot be read as .npy: {error}") from error
    if not isinstance(vectors, np.ndarray) or vectors.ndim != 2 or vectors.shape[1] != length or not len(vectors):
        raise ConfigError(f"embedding={steering.embedding} must hold vectors of shape (n, {length})")
    found = torch.from_numpy(vectors.astype(np.float32)) if vectors.dtype.kind in "biuf" else None
    if found is None or not found.isfinite().all():
        raise ConfigError(f"embedding={steering.embedding} must hold finite real numbers, got {vectors.dtype}")
    return found


def _by_classifier(denoiser: Denoiser, steering: Steering, shape: tuple[int, ...]) -> Denoiser:
    if denoiser.num_classes:
        raise ConfigError("this model knows its classes: classifier= steers models without; use guidance= alone")
    checkpoint = find(str(steering.classifier))
    classifier = load_model(checkpoint, NoisyClassifier)
    theirs = tuple(checkpoint.config["dataset"]["shape"])
    if theirs != shape:
        raise ConfigError(f"classifier={steering.classifier} is for data of shape {theirs}, the model draws {shape}")
    log_prob = LabelLogProb(classifier, denoiser.schedule)
    guided = EnergyGuidance(denoiser, log_prob, steering.guidance)
    guided.num_classes = classifier.num_classes
    return guided


def _measurement(steering: Steering, shape: tuple[int, ...]) -> tuple[nn.Module, Tensor]:
    """The measurement that was asked for, of images of this shape, and its result: the image of init=."""
    path = str(steering.init)
    if steering.measure == "downsample":
        picture = read_picture(path, "init", shape)
        return _downsampling(path, picture, shape), picture
    if steering.measure == "grey":
        if len(shape) == 3 and shape[0] != 3:
            raise ConfigError("measure=grey takes the colours away, and this model draws grey images: leave it out")
        return Grey(), read_image(path, "init", (1, *shape[1:]), steering.resize)
    picture = read_image(path, "init", shape, steering.resize)
    if steering.measure == "blur":
        assert steering.blur_width is not None
        return Blur(steering.blur_width), picture
    mask = read_mask(str(steering.mask), shape, steering.resize)
    if mask.all():
        raise ConfigError(f"mask={steering.mask} is all white, which keeps nothing: paint black what is known")
    known = Known(1 - mask)
    return known, known(picture)


def _downsampling(path: str, picture: Tensor, shape: tuple[int, ...]) -> Downsample:
    """What reduces images of this shape to the size of the picture (C, h, w)."""
    (height, width), (rows, columns) = shape[1:], picture.shape[1:]
    factor = height // rows
    if factor < 2 or (factor * rows, factor * columns) != (height, width):
        factors = [f for f in range(2, min(height, width) + 1) if height % f == width % f == 0]
        sizes = ", ".join(f"{width // f}x{height // f}" for f in factors) or "no smaller size"
        raise ConfigError(
            f"init={path} is {columns}x{rows} pixels (width x height), and measure=downsample restores "
            f"{width}x{height} from {sizes}"
        )
    return Downsample(factor)


def _guide(denoiser: Denoiser, steering: Steering, checkpoint: Checkpoint, weights: str | float) -> Denoiser:
    """The worse version of the model, on its schedule."""
    if not isinstance(denoiser, TrainableDenoiser):
        raise ConfigError("guide= and guide_weights= are for models that were trained to denoise, and this one was not")
    found = checkpoint if steering.guide is None else find(str(steering.guide))
    chosen = "ema" if steering.guide_weights is None else steering.guide_weights
    name = "guide_weights" if steering.guide is None else "guide"
    itself = (
        f"{name}={getattr(steering, name)} is the model itself, which has no effect: name a smaller or less "
        f"trained run, or other weights of this one, such as guide_weights=0.2 of a run with ema=power"
    )
    if (found.path, chosen) == (checkpoint.path, weights):
        raise ConfigError(itself)
    ours, theirs = checkpoint.config, found.config
    shapes = [tuple(config["dataset"]["shape"]) for config in (theirs, ours)]
    if shapes[0] != shapes[1]:
        raise ConfigError(f"guide={steering.guide} draws data of shape {shapes[0]}, and the model {shapes[1]}")
    if canonical(theirs.get("autoencoder")) != canonical(ours.get("autoencoder")):
        raise ConfigError(f"guide={steering.guide} is no model in the latents of the model's own autoencoder")
    if tunes(theirs) != tunes(ours):
        raise ConfigError(
            f"guide={steering.guide}: of it and the model one is tuned for few calls, so their answers are "
            f"not of one kind: name a guide that is what the model is"
        )
    if Parts(theirs).trained_up_to < Parts(ours).trained_up_to:
        raise ConfigError(
            f"guide={steering.guide} is trained at levels of sigma / alpha up to {Parts(theirs).trained_up_to:g}, and "
            f"the model at higher ones: name a guide that was tuned as the model was"
        )
    guide: TrainableDenoiser = load_model(found, weights=chosen)
    if _same(guide.state_dict(), denoiser.state_dict()):  # a copy, or best.ckpt of the step of last.ckpt
        raise ConfigError(itself)
    for part, what in (("num_classes", "classes"), ("embedding", "vectors"), ("condition_channels", "images")):
        if getattr(guide, part) not in (0, getattr(denoiser, part)):
            raise ConfigError(f"guide={steering.guide} is conditioned on {what} in another way than the model")
    conditions = [canonical(config["dataset"].get("condition")) for config in (theirs, ours)]
    if guide.condition_channels and conditions[0] != conditions[1]:
        raise ConfigError(f"guide={steering.guide} is conditioned on images that are made in another way")
    if canonical(theirs["schedule"]) != canonical(ours["schedule"]):
        return Rescheduled(guide, denoiser.schedule)
    guide.schedule = denoiser.schedule
    return guide


def _same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    """Whether two models have the same weights, tensor by tensor."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name].to(a[name].device)) for name in a)


def _check_guidable(denoiser: Denoiser, config: Mapping[str, Any], guidance: float) -> None:
    if max(denoiser.num_classes, denoiser.embedding, denoiser.condition_channels) == 0:
        raise ConfigError(
            f"guidance={guidance:g}: this model is unconditional; train one with experiment=fast_digits_cond, say, "
            f"or add classifier=... or guide=..."
        )
    if not config.get("condition_dropout"):
        raise ConfigError(
            f"guidance={guidance:g}: this model never trained without its label or image, which guidance needs; train "
            f"one with condition_dropout=0.1"
        )


def read_image(path: str, what: str, shape: Sequence[int], resize: bool = False) -> Tensor:
    """An image file as data of this shape, (C, H, W); see `read_picture`.

    Raises:
        ConfigError: it cannot be read, or has another size.
    """
    picture = read_picture(path, what, shape, resize)
    if picture.shape[1:] != tuple(shape[1:]):
        raise ConfigError(
            f"{what}={path} is {picture.shape[2]}x{picture.shape[1]} pixels (width x height), the model draws "
            f"{shape[2]}x{shape[1]}: crop it, or add resize=true"
        )
    return picture


def read_picture(path: str, what: str, shape: Sequence[int], resize: bool = False) -> Tensor:
    """An image file with the channels of data of this shape, (C, h, w) in [-1, 1], `pixel / 127.5 - 1`.

    It has its own size, or with `resize` that of the data, as a folder of images makes it (`data.pictures.fitted`).

    Raises:
        ConfigError: it cannot be read, or the data are no images.
    """
    if len(shape) != 3:
        raise ConfigError(f"{what}={path} is an image, and this model draws points")
    try:
        pixels = read_pixels(Path(path), shape[0], (shape[1], shape[2]) if resize else None)
    except UnreadableImage as error:
        raise ConfigError(f"{what}={path} cannot be read as an image: {error}") from error
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 127.5 - 1


def read_mask(path: str, shape: Sequence[int], resize: bool = False) -> Tensor:
    """A mask file, (1, H, W): 1, to be repainted, where it is lighter than middle grey, else 0."""
    mask = (read_image(path, "mask", (1, *shape[1:]), resize) > 0).float()
    if not mask.any():
        raise ConfigError(f"mask={path} is all black, which keeps everything: paint white what is to be generated")
    return mask
