"""The parts of a run, from its configuration."""

import math
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch

from data.conditions import ImageCondition
from data.stream import Source
from diffusion.build import ConfigError, build, resolve
from diffusion.denoisers import Denoiser, Wrapper
from diffusion.models import Codec, LatentObjective
from diffusion.objectives import ConditionDropout, Objective
from diffusion.optimizers import EMA, AdamW, LearningRate, Muon, PowerEMA
from diffusion.runs.models import build_model
from diffusion.samplers import Grid, Sampler
from diffusion.settings.training import Settings, settings
from diffusion.trainable import Trainable


def tunes(config: Mapping[str, Any]) -> bool:
    """Whether the objective of a configuration makes a trained model one that draws in a few calls."""
    cls = _objective(config)
    return cls is not None and cls.tunes


def distils(config: Mapping[str, Any]) -> bool:
    """Whether it does so by comparing samples with those of the model as it was."""
    cls = _objective(config)
    return cls is not None and cls.distils


def _objective(config: Mapping[str, Any]) -> type[Objective] | None:
    described = config.get("objective")  # models of other programs have none
    if not isinstance(described, Mapping):
        return None
    cls = resolve(described.get("_target_"), "objective")
    return cls if issubclass(cls, Objective) else None


class Parts:
    """The parts that a resolved configuration describes. Each is built once, when it is first used.

    Using a part raises ConfigError if its settings are wrong.

    Args:
        config: a plain dict, which does not change any more.
        codec: makes the latents that the model learns; None if it learns the data themselves.
        built: parts that are already built, by name.
    """

    def __init__(self, config: dict[str, Any], codec: Codec | None = None, **built: Any) -> None:
        self.config, self.codec = config, codec
        vars(self).update(built)

    @cached_property
    def settings(self) -> Settings:
        """The plain values at the top level of the configuration."""
        return settings(self.config)

    @property
    def trainer(self) -> Mapping[str, Any]:
        """Options of Lightning's trainer."""
        options: Mapping[str, Any] = self.config["trainer"]
        return options

    @property
    def images_per_step(self) -> int:
        """Of one optimizer step, over all devices and accumulated batches."""
        return self.settings.batch_size * self.accumulated

    @property
    def accumulated(self) -> int:
        """Batches of one optimizer step."""
        return self.trainer.get("accumulate_grad_batches") or 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one example."""
        return tuple(self.config["dataset"]["shape"])

    @cached_property
    def source(self) -> Source:
        """Where the data come from."""
        found: Source = build(self.config["dataset"]["source"], "dataset.source")
        return found

    @cached_property
    def condition(self) -> ImageCondition | None:
        """How image conditions are made; None for a model without."""
        described = self.config["dataset"].get("condition")
        return None if described is None else self._built(described, "dataset.condition", ImageCondition)

    @cached_property
    def model(self) -> Trainable:
        """Untrained; its weights follow from the seed."""
        torch.manual_seed(self.settings.seed)
        return build_model(self.config)

    @cached_property
    def objective(self) -> Objective:
        """The loss, of latents if the model learns these."""
        objective = self._part("objective", Objective)
        if dropout := self.config.get("condition_dropout"):
            objective = ConditionDropout(objective, dropout)
        if self.codec is not None:
            objective = LatentObjective(objective, self.codec)
        if objective.distils:
            objective.begin(self.model)
        return objective

    @cached_property
    def tunes(self) -> bool:
        """Whether the model is a consistency model, whose D is the end of its ODE and no posterior mean."""
        return tunes(self.config)

    @property
    def start_level(self) -> float:
        """sigma / alpha at which sampling begins; inf is t = 1."""
        return _level("start_level", self.config.get("start_level"))

    @property
    def highest_setting(self) -> str:
        """The setting that bounds the levels in training."""
        described = self.config.get("objective") or {}
        return f"objective.{'start_level' if 'start_level' in described else 'times.highest'}"

    @property
    def trained_up_to(self) -> float:
        """The highest level sigma / alpha in training; inf where that is t = 1."""
        described = self.config.get("objective") or {}  # models of other programs have none
        times = described.get("times") or {}
        return min(
            _level("objective.times.highest", times.get("highest")),
            _level("objective.start_level", described.get("start_level")),
        )

    @cached_property
    def optimizer(self) -> AdamW | Muon:
        return self._part("optimizer", AdamW, Muon)

    @cached_property
    def learning_rate(self) -> LearningRate:
        return self._part("learning_rate", LearningRate)

    @cached_property
    def ema(self) -> EMA | PowerEMA | None:
        return None if self.config["ema"] is None else self._part("ema", EMA, PowerEMA)

    @cached_property
    def sampler(self) -> Sampler:
        return self._part("sampler", Sampler)

    @cached_property
    def grid(self) -> Grid:
        return self._part("grid", Grid)

    def wrapped(self, denoiser: Denoiser) -> Denoiser:
        """The denoiser in the wrapper that is asked for, if one is."""
        described = self.config.get("wrapper")
        return denoiser if described is None else self._built(described, "wrapper", Wrapper, denoiser=denoiser)

    def _part(self, name: str, *classes: type) -> Any:
        described = self.config.get(name)
        if not isinstance(described, Mapping):  # a value in the place of its settings, `learning_rate=0.001`
            raise ConfigError(
                f"{name}={described}: {name} has settings of its own, {name}.name=value; --help lists them"
            )
        return self._built(described, name, *classes)

    def _built(self, described: Any, name: str, *classes: type, **extra: Any) -> Any:
        part = build(described, name, **extra)
        if not isinstance(part, classes):
            raise ConfigError(f"{name} names a {type(part).__name__}, which is no {name.rpartition('.')[2]}")
        return part


def _level(name: str, value: Any) -> float:
    """A level of sigma / alpha of a configuration; None is inf."""
    if value is None:
        return math.inf
    if not isinstance(value, int | float) or not value > 0:
        raise ConfigError(f"{name} must be a level of sigma / alpha above 0, got {value!r}")
    return float(value)
