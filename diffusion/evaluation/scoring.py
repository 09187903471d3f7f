"""Scores many runs by several samplers, each where it is not scored yet, so that what was cut off goes on."""

import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from diffusion.build import ConfigError
from diffusion.evaluation import commands
from diffusion.evaluation.extractors import names
from diffusion.evaluation.loading import placed
from diffusion.evaluation.record import record_path
from diffusion.evaluation.results import SCORES, record_of
from diffusion.machine.devices import devices
from diffusion.media import check_writable
from diffusion.runs.checkpoints import Checkpoint, find
from diffusion.sampling import Pipeline
from diffusion.settings.comparison import OWN, Options


class Method(NamedTuple):
    """How samples are drawn.

    Args:
        sampler: its name.
        steps: of it; None is the run's own.
        parts: descriptions of "sampler" and "grid", None where they are the run's own.
    """

    sampler: str
    steps: int | None
    parts: dict[str, Any]


def methods(options: Options, grid: dict[str, Any] | None, described: Callable[[str], dict[str, Any]]) -> list[Method]:
    """Every sampler with every number of steps.

    Args:
        options: that name them.
        grid: of all; None is that of the run.
        described: a sampler's settings, by its name.
    """
    return [
        Method(name, steps, {"sampler": None if name == OWN else described(name), "grid": grid})
        for name, steps in product(options.named_samplers(), options.each_steps())
    ]


def files(folders: Sequence[Path], wanted: Sequence[Method], options: Options) -> Iterator[Path]:
    """Scores each run by each method where that lacks, and yields the file of figures of each.

    Raises:
        ConfigError: before anything slow, a run has no checkpoint that can be read, draws no samples, or does not go
            with a sampler.
    """
    names(options.extractors)
    devices(options.devices, options.accelerator)
    todo = []
    for folder in folders:
        checkpoint = find(str(folder))
        check_writable(folder)
        for method in wanted:
            place = folder / SCORES / _name(method, options)
            if not _done(record_path(place, options.split), checkpoint):
                _check(checkpoint, method, options)
                todo.append((folder, method, place))
    for number, (folder, method, place) in enumerate(todo, start=1):
        print(f"scoring {number} of {len(todo)}: {folder}, {_in_words(method)}", file=sys.stderr, flush=True)
        evaluation = options.evaluation(str(folder), str(place), method.steps)
        commands.score(evaluation, None, method.parts, (), say=lambda line: None)
    for folder, method in product(folders, wanted):
        yield record_path(folder / SCORES / _name(method, options), options.split)


def _check(checkpoint: Checkpoint, method: Method, options: Options) -> None:
    """Raises ConfigError if the samples of such a run cannot be drawn in this way, or its data cannot be there."""
    try:
        placed(checkpoint.config["dataset"], options.data_dir)
        Pipeline.from_checkpoint(checkpoint, options.weights, steps=method.steps, **method.parts)
    except ValueError as error:
        raise ConfigError(f"{checkpoint.folder}, {_in_words(method)}: {error}") from error


def _done(file: Path, checkpoint: Checkpoint) -> bool:
    """Whether a run was scored in this way since its last step."""
    return file.exists() and record_of(file).get("step") == checkpoint.step


def _in_words(method: Method) -> str:
    sampler = "its own sampler" if method.sampler == OWN else method.sampler
    return sampler if method.steps is None else f"{sampler}, {method.steps} steps"


def _name(method: Method, options: Options) -> str:
    """A folder's name, another one for each way of scoring."""
    asked: Mapping[str, Any] = {
        **{name: vars(options)[name] for name in ("n", "seed", "weights")},
        "extractors": names(options.extractors), "steps": method.steps, **method.parts,
    }  # fmt: skip
    return f"{method.sampler}_{hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:8]}"
