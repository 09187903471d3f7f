"""Resuming a run: from which checkpoint, and with which changes of its settings."""

import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from diffusion.build import ConfigError, canonical
from diffusion.optimizers import LearningRate
from diffusion.runs.checkpoints import Checkpoint, find, newest_good, read
from diffusion.runs.parts import Parts
from diffusion.runs.places import ROOT, CheckpointError, is_exchanged, runs
from diffusion.settings.following import LIMITS
from diffusion.settings.training import Settings
from diffusion.terminal.commands import pasted

# Settings that a resumed run may change: they do not decide what it computes.
CHANGEABLE = (
    *("trainer.max_steps", "trainer.max_epochs", "trainer.max_time"),
    *("trainer.strategy", "trainer.num_nodes", "trainer.profiler", "trainer.deterministic", "trainer.benchmark"),
    *("devices", "accelerator", "compile", "capture", "checkpoint_every", "workers"),
    *("data_dir", "download", "dataset.path"),
    *("logger", "project"),
)
# Settings that the dataset's source repeats.
OF_SOURCE = {"data_dir": "data_dir", "download": "download", "dataset.path": "path"}
# The environment variable that tells the processes of a run which checkpoint to resume; empty: none.
_AGREED = "DIFFUSION_RESUME"


def searched_once(search: Callable[[], Checkpoint | None]) -> Checkpoint | None:
    """The checkpoint that `search` finds; in a process that another one started, the one that this found.

    "The newest" may be another file a moment later, and all processes have to begin with the same.
    """
    if int(os.environ.get("LOCAL_RANK", "0")) > 0 and _AGREED in os.environ:
        path = os.environ[_AGREED]
        return read(Path(path)) if path else None
    found = search()
    os.environ[_AGREED] = "" if found is None else str(found.path.resolve())
    return found


def find_begun(config: Mapping[str, Any], root: Path = ROOT, of_sweep: bool = False) -> Checkpoint | None:
    """The checkpoint of the run with this very configuration that `resume=auto` goes on with.

    The newest run with the same limits; else the newest that has not come further than `trainer.max_steps`. A line says
    which one and why.

    Args:
        config: of the run that is asked for.
        root: where the runs are.
        of_sweep: only a run with the same limits, since one with others may be another job of the sweep.

    Returns:
        None if there is no such run.
    """
    wanted = {name: config["trainer"][name] for name in LIMITS}
    if config["budget_minutes"] is not None:  # which a run turns into steps of its own
        wanted |= {"max_steps": None, "max_epochs": None}
    others, further = [], []
    for folder in runs(root):
        if folder.parent.name != config["dataset"]["name"]:
            continue
        try:
            checkpoint = newest_good(folder)
        except CheckpointError:  # another run's; this one's own would be read
            continue
        stored, step = checkpoint.config, checkpoint.step
        if essence(stored) != essence(config):
            continue
        if all(wanted[name] in (None, stored["trainer"].get(name)) for name in LIMITS):
            print(f"resume=auto goes on with {folder}, step {step}: the newest run with these settings")
            return checkpoint
        if of_sweep:
            continue
        if step > (wanted["max_steps"] or step):
            further.append(f"{folder} has come further, to step {step}")
        else:
            others.append(checkpoint)
    limits = ", ".join(f"trainer.{name}={wanted[name]}" for name in LIMITS if wanted[name] is not None)
    if others:
        print(
            f"resume=auto goes on with {others[0].folder}, step {others[0].step}: the newest run with these settings, "
            f"now with {limits}"
        )
        return others[0]
    print(f"resume=auto begins a new run: {further[0] if further else 'none was begun with these settings'}")
    return None


def find_named(spec: str, dataset: str | None) -> Checkpoint:
    """The checkpoint that `resume=` names.

    Args:
        spec: as in `diffusion.runs.checkpoints.find`.
        dataset: what was typed beside it; `last` and numbers are looked for among its runs.

    Raises:
        ConfigError: there is none, it is not ours, or it belongs to a run on another dataset.
    """
    same = [run for run in runs() if run.name == f"version_{spec}" and dataset in (None, run.parent.name)]
    if len(same) > 1:  # going on with the wrong run would change it
        commands = " or ".join(f"resume={pasted(run)}" for run in same)
        raise ConfigError(f"resume={spec} is one of {len(same)} runs: write {commands}")
    checkpoint = find(spec, dataset)
    if checkpoint.path.parent.name != "checkpoints" or is_exchanged(checkpoint.path):
        raise ConfigError(
            f"resume={spec} is a checkpoint outside of a run folder, where a resumed run would have to write: give the "
            f"run folder, or begin a new run from its weights with init_from={spec}"
        )
    found = checkpoint.config.get("dataset", {}).get("name")
    if dataset not in (None, found):
        raise ConfigError(f"resume={spec} is a run on {found}, not on {dataset}: leave dataset={dataset} out")
    return checkpoint


def continued(checkpoint: Checkpoint, typed: Mapping[str, Any], auto: bool = False) -> dict[str, Any]:
    """A checkpoint's configuration with what was typed beside `resume=`.

    Args:
        checkpoint: to go on from.
        typed: name -> value.
        auto: the typed configuration is the stored one's, so that only its changeable part matters.

    Raises:
        ConfigError: something was typed that a run cannot change on its way.
    """
    stored = checkpoint.config
    if not all(isinstance(stored.get(name), Mapping) for name in ("trainer", "dataset", "learning_rate")):
        raise ConfigError(f"{checkpoint.path} lacks parts of a run's configuration")
    if not stored["trainer"].keys() >= set(LIMITS):
        raise ConfigError(f"{checkpoint.path} does not say when its run ends: trainer lacks {', '.join(LIMITS)}")
    config = _copy(stored)
    for name, value in typed.items():
        if name in CHANGEABLE:
            _put(config, name, value)
            if name in OF_SOURCE and OF_SOURCE[name] in config["dataset"]["source"]:
                config["dataset"]["source"][OF_SOURCE[name]] = value
        elif name not in ("resume", "dataset") and not auto:
            again = f"{name}={value}".replace(" ", "")
            raise ConfigError(
                f"a resumed run keeps its settings, so {name} cannot change (only {', '.join(CHANGEABLE)} can); a new "
                f"run that begins with its weights: init_from={checkpoint.folder} {again}; to repeat a run's whole "
                f"command: resume=auto"
            )
    # Epochs were turned into steps when the run began, so only the limit that was typed counts now.
    steps, epochs = "trainer.max_steps" in typed, "trainer.max_epochs" in typed
    if steps != epochs:
        config["trainer"]["max_epochs" if steps else "max_steps"] = None
    return config


def goes_on(checkpoint: Checkpoint, parts: Parts, max_steps: int | None) -> bool:
    """Whether the run has steps left; if not, prints how to train longer. Also says how a decaying rate changes."""
    finished = max_steps is not None and checkpoint.step >= max_steps
    if finished:
        max_steps = 2 * checkpoint.step
        print(f"{checkpoint.path} is finished at step {checkpoint.step}; raise trainer.max_steps to train on:")
        print(f"  python train.py resume={pasted(checkpoint.folder)} trainer.max_steps={max_steps}")
    peak = parts.config["optimizer"].get("lr", parts.settings.lr)
    lift = rate_lift(checkpoint, parts.learning_rate, peak, parts.images_per_step, max_steps)
    if lift is not None and finished:
        print(f"  then {lift}")
    elif lift is not None:
        warnings.warn(lift, stacklevel=2)
    return not finished


def rate_lift(
    checkpoint: Checkpoint, learning_rate: LearningRate, peak: float, images_per_step: int, max_steps: int | None
) -> str | None:
    """What happens to a decaying learning rate if the run now ends at `max_steps`, and what avoids it.

    Returns:
        None if the rate is not above what it would have been.
    """

    def rate(step: int, last: int) -> float:
        return peak * learning_rate(step * images_per_step, last * images_per_step)

    planned_steps = checkpoint.config["trainer"].get("max_steps")
    if learning_rate.decay == "none" or planned_steps is None or max_steps is None or checkpoint.step == 0:
        return None
    last, planned, lifted = (
        rate(checkpoint.step - 1, planned_steps),
        rate(checkpoint.step, planned_steps),
        rate(checkpoint.step, max_steps),
    )
    if lifted <= planned:
        return None
    return (
        f"learning_rate.decay={learning_rate.decay} ends at step {max_steps} instead of {planned_steps}, so "
        f"the learning rate rises from {last:.2g} to {lifted:.2g}; to train on at a low rate, begin a new run: the "
        f"settings of this one, without resume=, and init_from={pasted(checkpoint.folder)} lr={peak / 10:.2g} "
        f"learning_rate.warmup_images=0"
    )


def essence(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a configuration that decides what is computed, so that equal essences are one run.

    A setting that an older version had not counts as its default.
    """
    whole = {f.name: f.default for f in fields(Settings) if f.default is not MISSING} | dict(config)
    rest = _copy({name: value for name, value in whole.items() if name not in ("resume", *CHANGEABLE)})
    for part, names in (("trainer", CHANGEABLE), ("dataset", CHANGEABLE)):
        for name in names:
            rest.get(part, {}).pop(name.removeprefix(f"{part}."), None)
    for name in OF_SOURCE.values():
        rest.get("dataset", {}).get("source", {}).pop(name, None)
    found: dict[str, Any] = canonical(rest)
    return found


def _copy(node: Any) -> Any:
    return {name: _copy(value) for name, value in node.items()} if isinstance(node, Mapping) else node


def _put(config: dict[str, Any], name: str, value: Any) -> None:
    *parents, last = name.split(".")
    for parent in parents:
        config = config.setdefault(parent, {})
    config[last] = value
