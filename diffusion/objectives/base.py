"""Objectives: a model's loss on a batch, and a wrapper around an objective that withholds conditions."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from diffusion.denoisers import Condition, TrainableDenoiser, dropped
from diffusion.noise import Noise
from diffusion.schedules import Schedule
from diffusion.trainable import Trainable

# What each draw of a sample is used for. Add new uses at the end, so that a run keeps its random numbers.
TIME, NOISE, DROP, ENCODE, CALL = range(5)


def conditions(batch: Mapping[str, Tensor]) -> Condition:
    """The entries of a batch that condition the model."""
    return {name: value for name, value in batch.items() if name not in ("x", "serial")}


class Objective(nn.Module, ABC):
    """A loss: `objective(model, batch, noise)` is a dict of "loss" and more to be logged, (B,) each; with noise levels
    "log_snr" too."""

    trains: type[nn.Module] = Trainable  # the class of models that it can train
    tunes: bool = False  # whether it turns a trained denoiser into a model that draws in a few calls
    distils: bool = False  # whether it keeps copies of the model as it begins, which `begin` makes
    pace: float = 1.0  # the factor on the learning rates of the model
    idle_images: int = 0  # after how many training images the model begins to learn
    rewinds: bool = False  # whether it sets torch's generator back, which a CUDA graph cannot

    @abstractmethod
    def forward(self, model: Any, batch: Mapping[str, Tensor], noise: Noise) -> dict[str, Tensor]:
        """The loss of each sample.

        Args:
            model: in training.
            batch: "x", the data (B, *S), and "serial"; all other entries condition the model.
            noise: the batch's random numbers.
        """

    def begin(self, model: nn.Module) -> None:
        """Copies what it needs of the model as it is before the first step, where it `distils`."""

    def trained_beside(self) -> list[nn.Module]:
        """The networks that it trains beside the model's."""
        return []

    def check(self, model: nn.Module) -> None:
        """Raises ValueError if this objective cannot train that model."""
        if not isinstance(model, self.trains):
            raise ValueError(
                f"{type(self).__name__} is a loss of a {self.trains.__name__}, and this model is a "
                f"{type(model).__name__}"
            )


class ObjectiveWrapper(Objective):
    """An objective around another one.

    Args:
        objective: the loss.
    """

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.objective = objective
        self.tunes, self.distils, self.rewinds = objective.tunes, objective.distils, objective.rewinds
        self.pace, self.idle_images = objective.pace, objective.idle_images

    def begin(self, model: nn.Module) -> None:
        self.objective.begin(model)

    def trained_beside(self) -> list[nn.Module]:
        return self.objective.trained_beside()

    def check(self, model: nn.Module) -> None:
        super().check(model)
        self.objective.check(model)


class ConditionDropout(ObjectiveWrapper):
    """A wrapper around an objective that withholds the condition of some samples (Ho & Salimans 2022, arXiv 2207.12598,
    algorithm 1).

    A random number of each sample decides whether its condition is withheld. In validation none is.

    Args:
        objective: the loss.
        share: of the samples whose condition is withheld, in (0, 1).
    """

    trains = TrainableDenoiser

    def __init__(self, objective: Objective, share: float) -> None:
        super().__init__(objective)
        if not 0 < share < 1:
            raise ValueError(f"condition_dropout must be at least 0 and below 1, got {share}")
        self.share = share

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


def noising_steps(schedule: Schedule) -> int:
    """T of a discrete schedule; raises ValueError for another."""
    if schedule.timesteps is None:
        raise ValueError("a variational bound needs noising steps, and this schedule is continuous")
    return schedule.timesteps


def optimizer_of(
    make: Callable[[nn.Module, bool], torch.optim.Optimizer], model: Trainable, objective: Objective, fused: bool
) -> torch.optim.Optimizer:
    """The optimizer of the weights of a model and of the networks that its objective trains beside it.

    Args:
        make: of one network, `fused` or not.
        model: in training.
        objective: its loss, where it `distils` after `begin`.
        fused: AdamW in one kernel.
    """
    optimizer = make(model.network, fused)
    for group in optimizer.param_groups:
        group["lr"] *= objective.pace
    for network in objective.trained_beside():
        for group in make(network, fused).param_groups:
            optimizer.add_param_group(group)
    return optimizer
