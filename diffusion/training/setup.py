"""From the composed configuration to the parts of a run, a new or a resumed one."""

import inspect
import math
import re
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from data.augmentation import LENGTH, augmentation
from data.conditions import ImageCondition
from diffusion.build import ConfigError, Unfit, build, check_source, resolve
from diffusion.denoisers import TrainableDenoiser
from diffusion.exchange.folders import is_folder
from diffusion.machine.devices import has_bf16
from diffusion.runs import codecs, resume
from diffusion.runs.checkpoints import Checkpoint
from diffusion.runs.exchanged import of_folder
from diffusion.runs.models import planned
from diffusion.runs.parts import Parts, tunes
from diffusion.runs.trained import stored_codec
from diffusion.sampling.method import method_of
from diffusion.settings.following import of_limits, of_timesteps, put
from diffusion.settings.idle import refuse_idle_source, refuse_idle_training
from diffusion.trainable import Trainable
from diffusion.training.tuning import KEPT, of_tuned, to_tune

STEPS_MEANT = (
    "steps= is how many steps a sampler takes: trainer.max_steps=... sets how long to train, and timesteps=... the "
    "number of noising steps"
)


def parts_of(config: DictConfig, typed: dict[str, Any], of_sweep: bool = False) -> tuple[Parts, Checkpoint | None]:
    """The parts of the run, and the checkpoint that it resumes, if any.

    Args:
        config: as Hydra composed it.
        typed: name -> value of the settings that a person wrote.
        of_sweep: whether the run is one of a sweep.

    Raises:
        ConfigError: a setting is wrong, or no part of this run uses it.
    """
    for name in typed:
        if name.endswith(".shape"):
            raise ConfigError(f"{name} cannot be set: it follows from the data")
    spec = config.resume
    if spec in (None, "auto"):
        new = resolved(config, typed)
        refuse_idle_training(new.config, typed)
        found = None if spec is None else resume.searched_once(lambda: resume.find_begun(new.config, of_sweep=of_sweep))
        if found is None:
            return new, None
    else:
        found = resume.searched_once(lambda: resume.find_named(str(spec), typed.get("dataset")))
        assert found is not None
    if "autoencoder" in typed and spec != "auto":
        codecs.check_same(str(config.autoencoder), found.config)
    changes = {name: value for name, value in typed.items() if name != "autoencoder"}
    old = resume.continued(found, changes, auto=spec == "auto")
    refuse_idle_source(old, changes)
    return Parts(old, codec=stored_codec(found)), found.without_state()


def resolved(config: DictConfig, typed: Mapping[str, Any] | None = None) -> Parts:
    """The parts of a new run.

    Settings that follow from others are put into the composed configuration here. What the data tell the network is
    added by `fitted`; after that nothing changes.
    """
    typed = typed or {}
    tuned = to_tune(config, typed) if tunes(config) else None
    if tuned is not None:
        put(config, of_tuned(tuned, typed, config))
    put(config, of_timesteps(config))
    if is_folder(Path(str(config.init_from))):
        put(config, of_folder(config, typed))
    put(config, of_limits(typed))
    if not re.fullmatch(r"\w[\w.-]*", str(config.dataset.name)) or config.dataset.name is None:
        raise ConfigError(f"dataset.name={config.dataset.name} names the folder of its runs: give one plain name")
    if config.get("network") is None:
        raise ConfigError(
            f"dataset={config.dataset.name} has no network of its own in configs/network: choose one, network=unet for "
            f"images or network=mlp for points"
        )
    check_source(config.dataset.source)
    source = build(OmegaConf.to_container(config.dataset.source, resolve=True), "dataset.source")
    shape = list(source.shape)
    put(config, {"dataset.shape": shape})
    codec = described = None
    if tuned is not None:
        codec, described = stored_codec(tuned), tuned.config.get("autoencoder")
    elif config.autoencoder is not None:  # the model's data are latents, which are no pixels and have unit variance
        codec, described = codecs.codec_of(str(config.autoencoder), config.dataset.name, shape)
        of_latents = {"shape": described["latent_shape"], "clip": False, "recipe.sigma_data": 1.0}
        put(config, {f"dataset.{path}": value for path, value in of_latents.items()})
    put(config, of_precision(config))
    plain: Any = OmegaConf.to_container(config, resolve=True)
    plain |= {"autoencoder": described, "dataset": plain["dataset"] | {"shape": shape}}
    condition = None
    if plain["dataset"].get("condition") is not None:
        if codec is not None:
            raise ConfigError("dataset.condition= needs pixels, and autoencoder= trains on latents: leave one out")
        condition = build(plain["dataset"]["condition"], "dataset.condition")
    return Parts(fitted(plain, condition, typed), source=source, condition=condition, codec=codec)


def of_precision(config: DictConfig) -> dict[str, str]:
    """What `trainer.precision=auto` is: bfloat16 for images, on a GPU that has it. Points need all their digits."""
    if config.trainer.get("precision") != "auto":
        return {}
    images = len(config.dataset.shape) == 3
    return {"trainer.precision": "bf16-mixed" if images and has_bf16(config.accelerator) else "32-true"}


def fitted(config: dict[str, Any], condition: ImageCondition | None, typed: Container[str]) -> dict[str, Any]:
    """The configuration with what the data tell the network in that of the network: the channels of an image condition,
    the length of an augmentation's vectors.

    Raises:
        Unfit: network, schedule, denoiser, objective, sampler and grid do not go together; no weight is drawn yet.
    """

    def with_shapes_of_data(other: dict[str, Any]) -> dict[str, Any]:
        network, dataset = other["network"], other["dataset"]
        if condition is not None:
            network = conditioned(network, condition, dataset["shape"])
        if augmentation(dataset.get("augment", 0.0), dataset["shape"]) is not None:
            network = augmented(network)
        return other | {"network": network}

    plan = _kept(planned)

    def attempt(other: dict[str, Any]) -> None:
        for _ in _checked(with_shapes_of_data(other), plan):
            pass

    groups: tuple[str, ...] = ("network",)
    try:
        whole = with_shapes_of_data(config)
        for groups in _checked(whole, plan):  # noqa: B007 (the last one is that of the check that failed)
            pass
    except ValueError as error:
        meant = mistaken(config, typed) if "sampler" in groups else ""
        open_to_choice = tuple(group for group in groups if not (tunes(config) and group in KEPT))
        raise Unfit(f"{error}; {meant}" if meant else str(error), open_to_choice, config, attempt) from error
    return whole


def mistaken(config: Mapping[str, Any], typed: Container[str]) -> str:
    """A hint if `steps=`, the sampler's, was typed with at least as many steps as the schedule has: people confuse them
    with training steps. Else empty."""
    steps, noising = config.get("steps"), config["schedule"].get("timesteps") or 1000
    return STEPS_MEANT if "steps" in typed and isinstance(steps, int) and steps >= noising else ""


def _kept(plan: Callable[[Mapping[str, Any]], Trainable]) -> Callable[[Mapping[str, Any]], Trainable]:
    """Plans a model as long as it is another than the last one: other samplers and grids go with the same model, and
    dozens of them are tried."""
    last: tuple[dict[str, Any], Trainable] | None = None

    def planned_once(config: Mapping[str, Any]) -> Trainable:
        nonlocal last
        described = {name: config.get(name) for name in ("network", "denoiser", "schedule")}
        if last is None or last[0] != described:
            last = described, plan(config)
        return last[1]

    return planned_once


def _checked(config: dict[str, Any], plan: Callable[[Mapping[str, Any]], Trainable]) -> Iterator[tuple[str, ...]]:
    """Before each check, the groups whose other choices may help if it fails; raises ValueError where it does."""
    yield ("network", "denoiser", "schedule")
    model = plan(config)
    parts = Parts(config, model=model)
    yield ("objective", "denoiser", "schedule")
    parts.objective.check(model)
    if parts.tunes and config.get("init_from") is None:
        raise ConfigError("this objective tunes a trained model, and there is none: add init_from=")
    if not parts.tunes and parts.trained_up_to < math.inf:
        raise ConfigError(
            "objective.times.highest is for a model that is tuned, experiment=few_step, where it follows from "
            "start_level=: leave both out"
        )
    yield ("sampler", "grid", "denoiser", "schedule")
    if isinstance(model, TrainableDenoiser):
        method_of(parts, model)


def conditioned(network: Mapping[str, Any], condition: ImageCondition, shape: Sequence[int]) -> dict[str, Any]:
    """The configuration of a network that is conditioned on images; raises ConfigError if it cannot be."""
    given = {"condition_channels": condition.channels(shape), "condition_level": condition.leveled}
    cls = resolve(network.get("_target_"), "network")
    if not given.keys() <= inspect.signature(cls).parameters.keys():
        raise ConfigError(f"{cls.__name__} cannot be conditioned on images")
    return {**network, **given}


def augmented(network: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a network that is conditioned on an augmentation; raises ConfigError if it cannot be."""
    cls = resolve(network.get("_target_"), "network")
    if "augmentation" not in inspect.signature(cls).parameters:
        raise ConfigError(
            f"dataset.augment= conditions the network on how images were transformed, and {cls.__name__} takes no "
            f"such condition: use network=unet or dit, or dataset.augment=0"
        )
    return {**network, "augmentation": LENGTH}
