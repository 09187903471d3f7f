"""Checks that a checkpoint has what a run with its configuration writes, before anything is built from it.

A checkpoint may come from a stranger, or from a disk that lost a part of it. A missing entry, or one of another shape,
would crash deep in torch or, worse, give a model that trains on without a part of its state.
"""

import math
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from diffusion.build import build
from diffusion.machine import memory
from diffusion.models import Codec
from diffusion.objectives import optimizer_of
from diffusion.runs.archive import Invalid, leaves
from diffusion.runs.models import build_codec, planned
from diffusion.runs.parts import Parts
from diffusion.terminal.progress import counted

# What the dataset's part of a configuration holds, beside what its own source checks.
_TRAINING = ("objective", "optimizer", "learning_rate", "trainer")
_DATASET = {"name": str, "shape": list, "source": Mapping, "flip": bool, "clip": bool}


def check_checkpoint(checkpoint: Mapping[str, Any]) -> None:
    """Compares configuration, weights, averages, optimizer, loops and callbacks with what the configuration makes.

    Args:
        checkpoint: with a mapping `config`, a mapping `state_dict` and a whole number `global_step`.

    Raises:
        ConfigError: the first difference, in one line.
    """
    config, step = checkpoint["config"], checkpoint["global_step"]
    if isinstance(step, bool) or step < 0:
        raise Invalid(f"its global_step is {step!r}")
    with _building():
        check_config(config)
        parts = _parts(config)
    version = checkpoint.get("pytorch-lightning_version")
    if not isinstance(version, str) or not re.match(r"\d+\.\d+", version):
        raise Invalid("it names no version of Lightning")
    _check_state(checkpoint["state_dict"], _whole_state(parts), config)
    _check_optimizer(checkpoint, parts)
    _check_loops(checkpoint, config)
    _check_callbacks(checkpoint.get("callbacks"))
    _check_data(checkpoint.get("DataModule"))


def check_model(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """Compares one set of weights with what a configuration makes.

    Args:
        config: of a run; or, without an objective, of a model that was trained elsewhere, what sampling needs.
        state: named as in a checkpoint, the averaged weights or the others, and the objective's if there is one.

    Raises:
        ConfigError: the first difference, in one line.
    """
    trained = "objective" in config
    prefix = "ema." if any(name.startswith("ema.") for name in state) else "denoiser."
    with _building():
        check_config(config, _TRAINING if trained else ())
        parts = _parts(config) if trained else None
        model = planned(config) if parts is None else parts.model
    wanted = model.state_dict(prefix=prefix)
    wanted |= {} if parts is None else parts.objective.state_dict(prefix="objective.")
    _check_state(state, wanted, config)


@contextmanager
def _building() -> Iterator[None]:
    """Constructors check ranges; what else a crafted value makes of their arithmetic is no mistake of the program's."""
    try:
        yield
    except (ArithmeticError, LookupError, TypeError, AttributeError, RuntimeError) as error:
        said = textwrap.shorten(str(error).partition("\n")[0], 200, placeholder=" ...")  # torch adds its own stack
        raise Invalid(f"nothing can be built from its configuration ({type(error).__name__}: {said})") from error


def check_config(config: Mapping[str, Any], training: Sequence[str] = _TRAINING) -> None:
    """Raises ConfigError unless a configuration has the parts of a run, each of its kind.

    Without parts for training it needs no data either.
    """
    for name, value in leaves(config):
        if isinstance(value, Tensor) or (isinstance(value, float) and math.isnan(value)):
            raise Invalid(f"{name} in its configuration is {'a tensor' if isinstance(value, Tensor) else 'NaN'}")
    for name in ("dataset", "network", "schedule", "denoiser", *training):
        if not isinstance(config.get(name), Mapping):
            raise Invalid(f"the configuration has no {name}")
    for name in ("sampler", "grid"):
        if not isinstance(config.get(name), Mapping) or "_target_" not in config[name]:
            raise Invalid(f"the configuration has no {name}")
        build(config[name], name)
    dataset = config["dataset"]
    for name, kind in _DATASET.items():
        if not isinstance(dataset.get(name), kind):
            raise Invalid(f"dataset.{name} in its configuration is {dataset.get(name)!r}")
    if training and not isinstance(dataset["source"].get("_target_"), str):
        raise Invalid("dataset.source in its configuration names no data")
    if not re.fullmatch(r"\w[\w.-]*", dataset["name"]):
        raise Invalid(f"dataset.name in its configuration is {dataset['name']!r}, and not a plain name")
    shape = dataset["shape"]
    if not shape or not all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in shape):
        raise Invalid(f"dataset.shape in its configuration is {shape!r}")
    memory.check_samples(f"one sample of shape {tuple(shape)}", 1, shape)
    latent = config.get("autoencoder")
    drawn = latent.get("latent_shape") if isinstance(latent, Mapping) else shape
    if config["network"].get("shape", drawn) != drawn:
        raise Invalid(
            f"network.shape in its configuration is {config['network']['shape']!r}, and its data are {drawn!r}"
        )
    if "ema" not in config or not isinstance(config.get("clip"), bool):
        raise Invalid(f"the configuration has no {'clip' if 'ema' in config else 'ema'}")
    condition = dataset.get("condition")
    if condition is not None and (not isinstance(condition, Mapping) or "_target_" not in condition):
        raise Invalid(f"dataset.condition in its configuration is {condition!r}")
    dropout = config.get("condition_dropout", 0.0)
    if isinstance(dropout, bool) or not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        raise Invalid(f"condition_dropout in its configuration is {dropout!r}")


def _parts(config: Mapping[str, Any]) -> Parts:
    """What a run with this configuration puts together, on `meta`."""
    model = planned(config)
    with memory.bounded("the objective"), torch.device("meta"):
        codec = None if config.get("autoencoder") is None else _codec(config["autoencoder"])
        parts = Parts(dict(config), codec, model=model)
        for name in ("objective", "optimizer", "learning_rate", "ema"):
            getattr(parts, name)  # ConfigError for another class than a part's
    return parts


def _codec(described: Any) -> Codec:
    kinds = {"network": Mapping, "denoiser": Mapping, "clip": bool, "latent_shape": list, "digest": str}
    if not isinstance(described, Mapping):
        raise Invalid(f"autoencoder in its configuration is {described!r}")
    for name, kind in kinds.items():
        if not isinstance(described.get(name), kind):
            raise Invalid(f"autoencoder.{name} in its configuration is {described.get(name)!r}")
    return build_codec(described)


def _whole_state(parts: Parts) -> dict[str, Tensor]:
    """Weights, averages and the objective's state of a run."""
    ema = parts.ema
    averages = [] if ema is None else ["ema.", *(f"other_emas.{i}." for i in range(len(ema.weights(1)) - 1))]
    wanted: dict[str, Tensor] = dict(parts.objective.state_dict(prefix="objective."))
    for prefix in ("denoiser.", *averages):
        wanted |= parts.model.state_dict(prefix=prefix)
    return wanted


def _check_state(state: Mapping[str, Any], wanted: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    for name in (*wanted, *state):
        if name not in state or name not in wanted:
            raise Invalid(f"it {'has' if name in state else 'lacks'} the weights {name}, unlike its network")
    double = str(config.get("trainer", {}).get("precision")) in ("64", "64-true")
    for name, value in state.items():
        _check_tensor(name, value, wanted[name], double)
        # A class without data in a cluster of the fitted mixture has the logarithm of 0 there.
        finite = ~value.isnan() if name.endswith("prior.log_weights") else value.isfinite()
        if not finite.all():
            raise Invalid(f"{name} has numbers that are not finite")
        if not value.is_floating_point() and (value < 0).any():
            raise Invalid(f"{name} counts below 0")


def _check_tensor(name: str, value: Any, wanted: Tensor, double: bool = False) -> None:
    if not isinstance(value, Tensor):
        raise Invalid(f"{name} is no tensor")
    dtype = torch.float64 if double and wanted.is_floating_point() else wanted.dtype
    if value.shape != wanted.shape or value.dtype not in (dtype, wanted.dtype):
        kinds = [f"{tensor.dtype} of shape {tuple(tensor.shape)}".removeprefix("torch.") for tensor in (value, wanted)]
        raise Invalid(f"{name} is {kinds[0]}, and its network has {kinds[1]}")


def _check_optimizer(checkpoint: Mapping[str, Any], parts: Parts) -> None:
    config, beside = parts.config, parts.objective.trained_beside()
    fresh = optimizer_of(parts.optimizer, parts.model, parts.objective, fused=False)
    networks = {"": parts.model.network} | {f"network {i + 2}: ": network for i, network in enumerate(beside)}
    names = {id(p): where + name for where, network in networks.items() for name, p in network.named_parameters()}
    stored = checkpoint.get("optimizer_states")
    if checkpoint.get("lr_schedulers") != [] or not isinstance(stored, list) or len(stored) != 1:
        raise Invalid("it has no state of exactly one optimizer")
    groups, states = (
        stored[0].get(key) if isinstance(stored[0], Mapping) else None for key in ("param_groups", "state")
    )
    if not isinstance(groups, list) or len(groups) != len(fresh.param_groups) or not isinstance(states, Mapping):
        raise Invalid("the optimizer's state has other groups of weights than its network")
    parameters: list[nn.Parameter] = []
    matrices: list[bool] = []  # of each, whether Muon moves it
    for group, wanted in zip(groups, fresh.param_groups, strict=True):
        _check_group(group, wanted, len(parameters))
        parameters += wanted["params"]
        matrices += ["momentum" in wanted] * len(wanted["params"])
    step, scaled = checkpoint["global_step"], str(config["trainer"].get("precision")) in ("16", "16-mixed")
    if not states and (step == 0 or scaled):  # float16 leaves steps out whose gradients are too large for it
        return
    if states.keys() != set(range(len(parameters))):
        lost = next((names[id(p)] for i, p in enumerate(parameters) if i not in states), "of no weights")
        raise Invalid(
            f"the optimizer's state {lost} is missing"
            if lost in names.values()
            else "the optimizer's state has an entry too many"
        )
    double = str(config["trainer"].get("precision")) in ("64", "64-true")
    used: set[int] = set()
    for i, (p, matrix) in enumerate(zip(parameters, matrices, strict=True)):
        _check_moments(states[i], p, names[id(p)], ("momentum",) if matrix else ("exp_avg", "exp_avg_sq"), double)
        if not matrix:
            _check_steps(states[i]["step"], step, names[id(p)], scaled)
        for value in states[i].values():
            if value.numel() and (place := value.untyped_storage().data_ptr()) in used:
                raise Invalid(f"the optimizer's state of {names[id(p)]} shares memory with another")
            used.add(place)


def _check_group(group: Any, wanted: Mapping[str, Any], first: int) -> None:
    what = "the optimizer's group of weights"
    for name, value in leaves(group):
        if isinstance(value, Tensor):  # which has no plain comparison
            raise Invalid(f"{what} has a tensor as {name}")
    if not isinstance(group, Mapping) or group.get("params") != list(range(first, first + len(wanted["params"]))):
        raise Invalid(f"{what} numbers other weights than its network has")
    lr = group.get("lr")
    if isinstance(lr, bool) or not isinstance(lr, int | float) or not 0 <= lr <= wanted["lr"] * (1 + 1e-6):
        raise Invalid(f"{what} has lr={lr!r}, and its peak is {wanted['lr']}")
    for name, value in group.items():
        if name in ("params", "lr"):
            continue
        if name in ("fused", "foreach"):  # kernels: those of the device that it ran on
            if not isinstance(value, bool | None):
                raise Invalid(f"{what} has {name}={value!r}")
        elif name not in wanted or _listed(value) != _listed(wanted[name]):
            raise Invalid(f"{what} has {name}={value!r}, unlike its configuration")
    for name in ("betas", "eps", "momentum", "weight_decay"):
        if name in wanted and name not in group:
            raise Invalid(f"{what} has no {name}")


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _check_moments(state: Any, p: Tensor, name: str, moments: tuple[str, ...], double: bool) -> None:
    what = f"the optimizer's state of {name}"
    wanted = {*moments, "step"} if len(moments) == 2 else {*moments}
    if not isinstance(state, Mapping) or state.keys() != wanted:
        has = ", ".join(map(str, state)) if isinstance(state, Mapping) else ""
        raise Invalid(f"{what} holds {has or 'nothing'} instead of {', '.join(sorted(wanted))}")
    for key in moments:
        _check_tensor(f"{key} of {name}", state[key], p, double)
        if not state[key].isfinite().all() or (key == "exp_avg_sq" and (state[key] < 0).any()):
            raise Invalid(f"{key} of {name} has numbers that are not finite, or negative")


def _check_steps(value: Any, step: int, name: str, scaled: bool) -> None:
    """Every weight has taken every step, but those that float16 left out."""
    right = isinstance(value, Tensor) and value.shape == () and value.is_floating_point() and value.isfinite().item()
    if not right or not (1 <= value <= step if scaled else value == step):
        said = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
        raise Invalid(f"the optimizer counts {said!r} steps of {name}, but the run has taken {step}")


def _check_loops(checkpoint: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Lightning's counters: there, whole numbers, and of the same step as the rest."""
    loops, step = checkpoint.get("loops"), checkpoint["global_step"]
    _check_counters("loops", loops, _LOOPS)
    assert isinstance(loops, Mapping)
    fit = loops["fit_loop"]
    if type(checkpoint.get("epoch")) is not int or checkpoint["epoch"] != fit["epoch_progress"]["current"]["processed"]:
        raise Invalid(f"its epoch is {checkpoint.get('epoch')!r}, unlike that of its loops")
    taken = fit["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"]["total"]
    batches = fit["epoch_loop.batch_progress"]["total"]["ready"]
    if taken["completed"] != step or taken["ready"] != step:
        raise Invalid(
            f"its loops have taken {counted(taken['completed'], 'optimizer step')}, and its global_step is {step}"
        )
    accumulated = config["trainer"].get("accumulate_grad_batches")
    if accumulated is None:
        accumulated = 1
    if type(accumulated) is not int or accumulated < 1:
        raise Invalid(f"trainer.accumulate_grad_batches in its configuration is {accumulated!r}")
    if batches != step * accumulated:
        raise Invalid(f"its loops have seen {counted(batches, 'batch')} in {counted(step, 'step')}")


def _check_counters(name: str, value: Any, wanted: Any) -> None:
    if wanted in (int, bool):
        if type(value) is not wanted or value < 0:
            raise Invalid(f"{name} is {value!r}, and not {'a count' if wanted is int else 'true or false'}")
        return
    if not isinstance(value, Mapping) or not value.keys() >= wanted.keys():
        raise Invalid(f"{name} lacks {', '.join(wanted)}")
    for key, kind in wanted.items():
        _check_counters(f"{name}.{key}", value[key], kind)
    counts = [value[key] for key in _ORDER if key in wanted]
    if counts != sorted(counts, reverse=True):
        raise Invalid(f"{name} has a counter of completed work above that of begun work")
    for key in wanted.get("current", {}):
        if value["current"][key] > value["total"][key]:
            raise Invalid(f"{name} has a current {key} above the total")


_ORDER = ("ready", "started", "processed", "completed")


def _counters(*names: str) -> dict[str, Any]:
    return {when: dict.fromkeys(names, int) for when in ("current", "total")}


_BATCHES = _counters(*_ORDER) | {"is_last_batch": bool}
# What Lightning's loops keep, and what of it they read when a run goes on.
_LOOPS: dict[str, Any] = {
    "fit_loop": {
        "state_dict": {},
        "epoch_progress": _counters(*_ORDER),
        "epoch_loop.state_dict": {"_batches_that_stepped": int},
        "epoch_loop.batch_progress": _BATCHES,
        "epoch_loop.scheduler_progress": _counters("ready", "completed"),
        "epoch_loop.automatic_optimization.state_dict": {},
        "epoch_loop.automatic_optimization.optim_progress": {
            "optimizer": {
                "step": _counters("ready", "completed"),
                "zero_grad": _counters("ready", "started", "completed"),
            }
        },
        "epoch_loop.manual_optimization.state_dict": {},
        "epoch_loop.manual_optimization.optim_step_progress": _counters("ready", "completed"),
        "epoch_loop.val_loop.state_dict": {},
        "epoch_loop.val_loop.batch_progress": _BATCHES,
    },
    **{f"{name}_loop": {"state_dict": {}, "batch_progress": _BATCHES} for name in ("validate", "test")},
    "predict_loop": {"state_dict": {}, "batch_progress": _counters(*_ORDER)},
}


def _check_callbacks(callbacks: Any) -> None:
    """The best loss, and of a run with a limit of time what it has used; other callbacks keep plain mappings."""
    if not isinstance(callbacks, Mapping) or not all(isinstance(state, Mapping) for state in callbacks.values()):
        raise Invalid("it has no states of callbacks")
    best = callbacks.get("Checkpoints", {}).get("best")
    if not isinstance(best, float) or math.isnan(best):
        raise Invalid(f"its best validation loss is {best!r}")
    for name, state in callbacks.items():
        if "time_elapsed" in state:
            elapsed = state["time_elapsed"]
            if not isinstance(elapsed, Mapping) or not all(
                isinstance(s, float | int) and 0 <= s < math.inf for s in elapsed.values()
            ):
                raise Invalid(f"the time in the state of {name} is {elapsed!r}")


def _check_data(data: Any) -> None:
    """The identities of the examples of each split; older checkpoints have none."""
    if data is None:
        return
    if not isinstance(data, Mapping) or data.keys() != {"train", "val", "test"}:
        raise Invalid("its entry DataModule must have the splits train, val and test")
    for split, identities in data.items():
        if not isinstance(identities, Tensor) or identities.dtype != torch.int64 or identities.ndim != 1:
            raise Invalid(f"its entry DataModule.{split} is no list of whole numbers")
