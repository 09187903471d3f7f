"""What conditions the images that are drawn, beside labels: vectors, and images that the project's data sets define."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeGuard

from torch import Tensor

from diffusion.build import ConfigError, build
from diffusion.denoisers import Condition, Denoiser


class ImageCondition(Protocol):
    """How a model's image conditions are made; see `data.conditions.ImageCondition`."""

    leveled: bool
    takes_mask: bool

    def __call__(self, x: Tensor, seed: int, serials: Tensor) -> Condition: ...
    def takes(self, size: Sequence[int], shape: Sequence[int]) -> bool: ...
    def of_picture(self, picture: Tensor, shape: Sequence[int], mask: Tensor | None = None) -> Condition: ...


class Enlarging(ImageCondition, Protocol):
    """One that enlarges small images; see `data.conditions.LowRes`."""

    noise: float

    def small(self, shape: Sequence[int]) -> tuple[int, int, int]: ...
    def enlarged(self, low: Tensor, level: Tensor) -> Condition: ...


def is_image_condition(part: object) -> TypeGuard[ImageCondition]:
    """Whether it has all that an `ImageCondition` has, wherever it keeps that."""
    names = ("leveled", "takes_mask", "takes", "of_picture", "__call__")
    return all(getattr(part, name, None) is not None for name in names)


def enlarges(part: object) -> TypeGuard[Enlarging]:
    """Whether it has all that `Enlarging` has, wherever it keeps that."""
    names = ("noise", "small", "enlarged")
    return is_image_condition(part) and all(getattr(part, name, None) is not None for name in names)


def condition_of(config: Mapping[str, Any]) -> ImageCondition | None:
    """What the model of this configuration is told of images; None if it is told nothing."""
    described = config["dataset"].get("condition")
    if described is None:
        return None
    condition = build(described, "dataset.condition")
    if not is_image_condition(condition):
        raise ConfigError("dataset.condition must name an image condition of this project")
    return condition


class Examples(Protocol):
    """A finite set of data: `labels` (N,), `embeddings` (N, d) if there are any, `get(indices)` -> float32 (b, *S)."""

    labels: Tensor
    embeddings: Tensor | None

    def __len__(self) -> int: ...
    def get(self, indices: Tensor) -> Tensor: ...


def of_images(condition: ImageCondition, examples: Examples, index: Tensor) -> Condition:
    """The conditions made from these images, always the same: what a trained model is shown."""
    return condition(examples.get(index), 0, index)


def of_examples(denoiser: Denoiser, condition: ImageCondition | None, examples: Examples, index: Tensor) -> Condition:
    """All that a model is told of these examples (n,), which belongs together: labels, vectors, conditions made from
    the images."""
    told = {} if condition is None else of_images(condition, examples, index)
    if denoiser.num_classes:
        told["label"] = examples.labels[index]
    if denoiser.embedding and examples.embeddings is not None:
        told["embedding"] = examples.embeddings[index]
    return told


class Given(Protocol):
    """What conditions a pipeline's images beside their labels."""

    def __call__(self, index: Tensor, seed: int, label: int | Sequence[int] | None) -> Condition: ...


@dataclass(frozen=True)
class Rows:
    """Tensors of which row k modulo their length N conditions image k."""

    rows: Condition

    def __len__(self) -> int:
        return min(len(value) for value in self.rows.values())

    def __call__(self, index: Tensor, seed: int, label: int | Sequence[int] | None) -> Condition:
        return {name: value.to(index.device)[index % len(value)] for name, value in self.rows.items()}


def as_picture(image: Tensor, shape: Sequence[int]) -> Tensor:
    """Image conditions (n, C', H, W) as images (n, C, H, W) of this shape; grey where they say nothing."""
    return image[:, :-1].expand(-1, *shape)
