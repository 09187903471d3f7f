"""Objectives: a model's loss on a batch, and a wrapper around an objective that withholds conditions."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from diffusion.denoisers import Condition, TrainableDenoiser, dropped
from diffusion.noise import Noise
from diffusion.schedules import Schedule
from diffusion.trainable import Trainable

# What each draw of a sample is used for. Add new uses at the end, so that a run keeps its random numbers.
TIME, NOISE, DROP, ENCODE = range(4)


def conditions(batch: Mapping[str, Tensor]) -> Condition:
    """The entries of a batch that condition the model."""
    return {name: value for name, value in batch.items() if name not in ("x", "serial")}


class Objective(nn.Module, ABC):
    """A loss: `objective(model, batch, noise)` is a dict of "loss" and more to be logged, (B,) each; with noise levels
    "log_snr" too."""

    trains: type[nn.Module] = Trainable  # the class of models that it can train
    tunes: bool = False  # whether it turns a trained denoiser into a consistency model
    rewinds: bool = False  # whether it sets torch's generator back, which a CUDA graph cannot

    @abstractmethod
    def forward(self, model: Any, batch: Mapping[str, Tensor], noise: Noise) -> dict[str, Tensor]:
        """The loss of each sample.

        Args:
            model: in training.
            batch: "x", the data (B, *S), and "serial"; all other entries condition the model.
            noise: the batch's random numbers.
        """

    def check(self, model: nn.Module) -> None:
        """Raises ValueError if this objective cannot train that model."""
        if not isinstance(model, self.trains):
            raise ValueError(
                f"{type(self).__name__} is a loss of a {self.trains.__name__}, and this model is a "
                f"{type(model).__name__}"
            )


class ConditionDropout(Objective):
    """A wrapper around an objective that withholds the condition of some samples (Ho & Salimans 2022, arXiv 2207.12598,
    algorithm 1).

    A random number of each sample decides whether its condition is withheld. In validation none is.

    Args:
        objective: the loss.
        share: of the samples whose condition is withheld, in (0, 1).
    """

    trains = TrainableDenoiser

    def __init__(self, objective: Objective, share: float) -> None:
        super().__init__()
        if not 0 < share < 1:
            raise ValueError(f"condition_dropout must be at least 0 and below 1, got {share}")
        self.objective, self.share = objective, share
        self.tunes, self.rewinds = objective.tunes, objective.rewinds

    def forward(self, model: nn.Module, batch: Mapping[str, Tensor], noise: Noise) -> dict[str, Tensor]:
        """The loss of each sample; see `DenoisingObjective`."""
        self.check(model)
        if self.training:
            batch = dict(batch) | dropped(conditions(batch), noise.uniform(draw=DROP) < self.share)
        out: dict[str, Tensor] = self.objective(model, batch, noise)
        return out

    def check(self, model: nn.Module) -> None:
        super().check(model)
        assert isinstance(model, TrainableDenoiser)
        if not (model.num_classes or model.embedding or model.condition_channels):
            raise ValueError(
                f"condition dropout of {self.share:g}: this network has no condition that could be withheld"
            )
        if model.always_conditioned:
            raise ValueError(f"condition dropout of {self.share:g}: this denoiser always needs its image")
        self.objective.check(model)


def noising_steps(schedule: Schedule) -> int:
    """T of a discrete schedule; raises ValueError for another."""
    if schedule.timesteps is None:
        raise ValueError("a variational bound needs noising steps, and this schedule is continuous")
    return schedule.timesteps
