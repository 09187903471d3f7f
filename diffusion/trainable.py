"""What a run can train. Denoisers, classifiers of noisy data and autoencoders are such models; another kind is one more
class."""

from typing import NamedTuple

from torch import Tensor, nn

from diffusion.noise import Noise


class Curve(NamedTuple):
    """A figure of values y (n,) over x (n,); `guess` is what knowing nothing would give."""

    x: Tensor
    y: Tensor
    x_label: str
    y_label: str
    guess: float | None = None


class Trainable(nn.Module):
    """A model whose weights are those of one network; an `Objective` says what it is trained for.

    It is built from its settings and `network=`, and `schedule=` if its constructor has it.
    """

    kind: str = "model"  # what people call it
    draws: bool = False  # whether samplers draw from it
    num_classes: int = 0  # labels that it is told; 0 for none
    embedding: int = 0  # length of the vectors that it is told; 0 for none
    condition_channels: int = 0  # of the images that it is told; 0 for none
    always_told: bool = False  # whether it counts on its image, so that none can be kept from it
    learns_from_data: bool = False  # whether `prepare` takes something from them
    inputs: int = 1  # of the network for each number of x
    outputs: int = 1  # of the network for each number of x, a learned variance's not counted
    forwards: tuple[str, ...] = ("forward",)  # methods of the network that training calls

    network: nn.Module

    def prepare(self, x: Tensor, cond: dict[str, Tensor]) -> None:
        """Takes from data (n, *S), and what conditions them, what training counts on."""

    def shown(self, x: Tensor, label: Tensor, noise: Noise) -> dict[str, Tensor | Curve]:
        """What shows how well it does on data (n, *S) with labels (n,), by name: curves, and pictures (rows, columns,
        *S). Models that draw are shown by their samples."""
        return {}
