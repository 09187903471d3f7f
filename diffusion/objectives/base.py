"""Objectives: a loss of a model on a batch, and one around another that withholds conditions."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from diffusion.denoisers import Condition, TrainableDenoiser, dropped
from diffusion.noise import Noise
from diffusion.schedules import Schedule
from diffusion.trainable import Trainable

# Which of a sample's draws is for what: a run keeps its numbers when a new use is added at the end.
TIME, NOISE, DROP, ENCODE = range(4)


def conditions(batch: Mapping[str, Tensor]) -> Condition:
    """What a batch says of its data."""
    return {name: value for name, value in batch.items() if name not in ("x", "serial")}


class Objective(nn.Module, ABC):
    """A loss: `objective(model, batch, noise)` is a dict of "loss", "log_snr" and more to be logged, (B,) each."""

    trains: type[nn.Module] = Trainable  # the models that it is a loss of
    tunes: bool = False  # whether it makes a consistency model of one that is trained already

    @abstractmethod
    def forward(self, model: Any, batch: Mapping[str, Tensor], noise: Noise) -> dict[str, Tensor]:
        """The loss of each sample.

        Args:
            model: in training.
            batch: "x", the data (B, *S); all but "serial" of the rest conditions the model.
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
    """Another objective that withholds the condition of some samples (Ho & Salimans 2022, arXiv 2207.12598, alg. 1).

    Which samples these are depends on a random number of each sample's own. In validation it is told all.

    Args:
        objective: the loss.
        share: of the samples, in (0, 1).
    """

    trains = TrainableDenoiser

    def __init__(self, objective: Objective, share: float) -> None:
        super().__init__()
        if not 0 < share < 1:
            raise ValueError(f"condition_dropout must be at least 0 and below 1, got {share}")
        self.objective, self.share = objective, share

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
                f"condition dropout of {self.share:g}: this network is conditioned on nothing that could be withheld"
            )
        if model.always_told:
            raise ValueError(f"condition dropout of {self.share:g}: this denoiser needs its image always")
        self.objective.check(model)


def noising_steps(schedule: Schedule) -> int:
    """T of a discrete schedule; raises ValueError for another."""
    if schedule.timesteps is None:
        raise ValueError("a variational bound needs noising steps, and this schedule is continuous")
    return schedule.timesteps
