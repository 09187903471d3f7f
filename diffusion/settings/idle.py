"""Settings that someone typed and that have no effect: each is refused in one line, before anything slow.

Only what was typed is refused: an experiment may set more than each of its models reads. Nothing here imports torch.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from diffusion.build import ConfigError
from diffusion.settings.several import listed

# How samples are drawn.
DRAWING = ("sampler", "grid", "steps", "start_level", "clip")
# Settings that are the defaults of others: where their values go.
GO_TO = {
    "lr": ("optimizer.lr",),
    "ema_decay": ("ema.decay",),
    "timesteps": ("schedule.timesteps",),
    **{name: (f"dataset.source.{name}",) for name in ("data_dir", "download")},
    **{f"dataset.{name}": (f"dataset.source.{name}",) for name in ("path", "image_size", "channels")},
    "dataset.recipe.batch_size": ("batch_size",),
    "dataset.recipe.lr": ("lr",),
    "dataset.recipe.warmup_images": ("learning_rate.warmup_images",),
    "dataset.recipe.max_steps": ("trainer.max_steps",),
    "dataset.recipe.val_every": ("val_every", "preview_every"),
    "dataset.recipe.sigma_data": ("denoiser.precond.sigma_data",),
    "dataset.recipe.sigma_max": ("schedule.sigma_max",),
}
# What has those places, where not every run does.
READERS = {
    "ema_decay": "ema=exponential",
    "dataset.recipe.sigma_data": "denoiser=edm",
    "dataset.recipe.sigma_max": "schedule=ve",
}


def refuse(typed: Iterable[str], idle: Iterable[str], what: str, instead: str = "") -> None:
    """Raises ConfigError if something was typed that does nothing for `what`.

    Args:
        typed: full names, such as "sampler.eta".
        idle: names of what does nothing, with all that is inside them.
        what: was asked for.
        instead: what to do, other than to leave it out.
    """
    for name in typed:
        if any(name == other or name.startswith(f"{other}.") for other in idle):
            raise ConfigError(f"{name}= does nothing for {what}: leave it out{f', or {instead}' if instead else ''}")


def refuse_idle_source(config: Mapping[str, Any], typed: Iterable[str]) -> None:
    """Raises ConfigError if a place for the data was typed, and the data come from no files there."""
    dataset = config["dataset"]
    refuse(
        typed,
        [name for name in ("data_dir", "download") if name not in dataset["source"]],
        f"dataset={dataset['name']}",
    )


def refuse_idle_training(config: Mapping[str, Any], typed: Mapping[str, Any]) -> None:
    """Raises ConfigError if something was typed that no part of this training run reads.

    Args:
        config: the run's, resolved.
        typed: name -> value.
    """
    kind, dataset, network = config["denoiser"]["_target_"].rpartition(".")[2], config["dataset"], config["network"]
    refuse_idle_source(config, typed)
    if kind == "NoisyClassifier":
        refuse(typed, (*DRAWING, "dataset.clip"), "a classifier, which draws no samples")
    if kind == "Autoencoder":
        refuse(typed, ("clip",), "an autoencoder, which has dataset.clip", "set that")
        refuse(typed, ("start_level",), "an autoencoder, which draws from noise")
    if config["trainer"].get("limit_val_batches") == 0:
        refuse(typed, ("val_every",), "trainer.limit_val_batches=0, which leaves out validation")
    if network.get("attention") == []:
        refuse(typed, ("network.head_channels",), "network.attention=[]", "name levels with attention")
    if config["objective"].get("weighting") == "gap":
        refuse(typed, ("objective.sigma_data",), "objective.weighting=gap", "add objective.weighting=edm")
    if config.get("autoencoder") is not None:
        refuse(typed, ("dataset.clip",), "a model of latents, which have no bounds")
    if not {"wandb", "mlflow", "trackio"} & set(listed(config.get("logger"))):
        refuse(typed, ("project",), "runs that no service collects", "add logger=wandb, mlflow or trackio")
    refuse_clip(typed.get("clip"), dataset)
    classes = typed.get("dataset.num_classes")
    if classes and classes not in (network.get("num_classes"), network.get("classes")):
        raise ConfigError(
            f"dataset.num_classes={classes} alone trains an unconditional model: add network.num_classes={classes} "
            f"condition_dropout=0.1 for one that draws each class, or leave it out"
        )
    for name in typed.keys() & GO_TO.keys():
        _refuse_overruled(name, config, typed)


def refuse_clip(clip: bool | str | None, dataset: Mapping[str, Any]) -> None:
    """Raises ConfigError if points without bounds were to be clamped, or in a way that does not exist."""
    if isinstance(clip, str) and clip != "dynamic":
        raise ConfigError(f"clip must be true, false or dynamic, got {clip!r}")
    if clip and len(dataset["shape"]) == 1 and not dataset.get("clip"):
        said = clip if isinstance(clip, str) else "true"
        raise ConfigError(f"clip={said} brings pixels into [-1, 1], and these points have no bounds: leave it out")


def _refuse_overruled(name: str, config: Mapping[str, Any], typed: Mapping[str, Any]) -> None:
    """Raises ConfigError if the value of this typed default went nowhere."""
    value = typed[name]
    if isinstance(value, str) and "${" in value:
        value = _value(config, name)
    found = {place: typed.get(place, _value(config, place)) for place in GO_TO[name]}
    if value in found.values():
        return
    place, other = next(iter(found.items()))
    said = "null" if other is None else other
    if place in typed:
        raise ConfigError(f"{name}={value} and {place}={said}: give one of them")
    if other is None and name in READERS:
        raise ConfigError(f"{name}={value} does nothing here: only {READERS[name]} reads it; leave it out")
    raise ConfigError(f"{name}={value} does nothing here, where {place} is {said}: set {place}={value}")


def _value(config: Mapping[str, Any], name: str) -> Any:
    """The value at this place, None without such a place."""
    node: Any = config
    for key in name.split("."):
        node = node.get(key) if isinstance(node, Mapping) else None
    return node
