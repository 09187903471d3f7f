"""Conditions of the samples beside labels: vectors, and images made from data."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from data.conditions import ImageCondition
from data.stream import Examples
from diffusion.denoisers import Condition, Denoiser


def of_images(condition: ImageCondition, examples: Examples, index: Tensor) -> Condition:
    """The conditions made from these images, without the random changes of training."""
    return condition(examples.get(index), 0, index)


def of_examples(denoiser: Denoiser, condition: ImageCondition | None, examples: Examples, index: Tensor) -> Condition:
    """What of these examples (n,) a model is conditioned on: labels, vectors, conditions made from the images."""
    cond = {} if condition is None else of_images(condition, examples, index)
    if denoiser.num_classes:
        cond["label"] = examples.labels[index]
    if denoiser.embedding and examples.embeddings is not None:
        cond["embedding"] = examples.embeddings[index]
    return cond


class Given(Protocol):
    """The condition of a pipeline's images beside their labels."""

    def __call__(self, index: Tensor, seed: int, label: int | Sequence[int] | None) -> Condition: ...


@dataclass(frozen=True)
class Rows:
    """Tensors of length N; row k modulo N conditions image k."""

    rows: Condition

    def __len__(self) -> int:
        return min(len(value) for value in self.rows.values())

    def __call__(self, index: Tensor, seed: int, label: int | Sequence[int] | None) -> Condition:
        return {name: value.to(index.device)[index % len(value)] for name, value in self.rows.items()}


def as_picture(image: Tensor, shape: Sequence[int]) -> Tensor:
    """Image conditions (n, C', H, W) as images (n, C, H, W) of this shape; grey where they say nothing."""
    return image[:, :-1].expand(-1, *shape)
