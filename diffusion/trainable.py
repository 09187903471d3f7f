"""The base class of all models that a run can train: denoisers, classifiers of noisy data, autoencoders."""

from typing import NamedTuple

from torch import Tensor, nn

from diffusion.noise import Noise


class Curve(NamedTuple):
    """A figure of values y (n,) over x (n,); `guess` is the value by chance."""

    x: Tensor
    y: Tensor
    x_label: str
    y_label: str
    guess: float | None = None


class Trainable(nn.Module):
    """A model whose weights are those of one network; an `Objective` says what it is trained for.

    It is built from its settings and `network=`, and `schedule=` if its constructor has it.
    """

    kind: str = "model"  # its name in messages
    draws: bool = False  # whether samplers draw from it
    num_classes: int = 0  # labels that condition it; 0 for none
    embedding: int = 0  # length of the vectors that condition it; 0 for none
    condition_channels: int = 0  # channels of the images that condition it; 0 for none
    always_conditioned: bool = False  # whether it always needs its image, so that the image cannot be withheld
    learns_from_data: bool = False  # whether `prepare` fits data statistics
    inputs: int = 1  # input channels of the network, as a multiple of those of x
    outputs: int = 1  # output channels, likewise, without those of a learned variance
    forwards: tuple[str, ...] = ("forward",)  # methods of the network that training calls

    network: nn.Module

    def prepare(self, x: Tensor, cond: dict[str, Tensor]) -> None:
        """Fits statistics of data (n, *S) and their conditions before the first step."""

    def shown(self, x: Tensor, label: Tensor, noise: Noise) -> dict[str, Tensor | Curve]:
        """Curves and pictures (rows, columns, *S), by name, that show its quality on data (n, *S) with labels (n,).
        Models that draw are shown by their samples instead."""
        return {}
