"""Checkpoints: finds them, and reads them without trusting them."""

import math
import os
import pickle
import sys
import textwrap
import warnings
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusion.build import ConfigError
from diffusion.machine import memory
from diffusion.runs import exchanged
from diffusion.runs.archive import Invalid, check_archive, check_tensors, stated_step
from diffusion.runs.places import ROOT, CheckpointError, is_exchanged, numbered, place
from diffusion.runs.validation import check_checkpoint
from diffusion.terminal.streams import problem

# What torch's reader and unpickler raise on bytes that are no checkpoint.
_UNREADABLE = (OSError, RuntimeError, EOFError, zipfile.BadZipFile, LookupError, ValueError, TypeError, AttributeError)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of a run.

    Args:
        path: of the file.
        step: that it was written after.
        config: the run's resolved configuration.
        state: the weights and buffers of the run's Lightning module by their names.
        data: identities of the examples by split, see `data.changes`; None in checkpoints that do not have them yet.
        held: what the one set of weights of a `.safetensors` file is, "ema", "raw" or the width of an average.
    """

    path: Path
    step: int
    config: dict[str, Any]
    state: dict[str, Tensor]
    data: dict[str, Tensor] | None
    held: str | None = None

    @property
    def alone(self) -> bool:
        """Whether its folder belongs to no run and no model folder, so that files there may be of other models."""
        of_run = self.path.parent.name == "checkpoints" and (self.folder / "config.yaml").is_file()
        return not self.path.is_dir() and not of_run

    @property
    def folder(self) -> Path:
        """The run folder that it belongs to, or the file's own folder if it was moved out of one; a model folder of
        diffusers itself."""
        if self.path.is_dir():
            return self.path
        return self.path.parent.parent if self.path.parent.name == "checkpoints" else self.path.parent

    def name_of(self, weights: str | float) -> str:
        """What the weights are that one gets by this name: a model without averages has raw ones alone."""
        if self.held is not None:
            return self.held
        return str(weights) if weights != "raw" and self.part("ema.") else "raw"

    def without_state(self) -> "Checkpoint":
        """The same without the weights, which take memory."""
        return replace(self, state={})

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names begin so, by the rest of their names."""
        return {key.removeprefix(prefix): value for key, value in self.state.items() if key.startswith(prefix)}


def read(path: Path) -> Checkpoint:
    """The checkpoint in a file, on the CPU; raises CheckpointError as `contents` does."""
    if is_exchanged(path):
        config, state, step, held = exchanged.read(path)
        return Checkpoint(path, step, config, state, None, held)
    found = contents(path)
    return Checkpoint(path, found["global_step"], found["config"], found["state_dict"], found.get("DataModule"))


def contents(path: Path) -> dict[str, Any]:
    """All that a checkpoint's file holds, read without unpickling code.

    Raises:
        CheckpointError: it is missing, torn, from another program, holds anything but tensors and plain values, or is
            not what a run with its configuration writes; see `diffusion.runs.validation`.
    """
    checkpoint = load(path)
    kinds = {"config": dict, "state_dict": dict, "global_step": int}
    if not isinstance(checkpoint, dict) or not all(isinstance(checkpoint.get(k), kind) for k, kind in kinds.items()):
        raise CheckpointError(f"{path} is a file of another program: it holds no configuration of a run")
    try:
        check_checkpoint(checkpoint)
    except ConfigError as error:
        raise CheckpointError(f"{path} is refused: {error}") from error
    return checkpoint


def load(path: Path) -> Any:
    """The tensors and plain values in a file; raises CheckpointError if it is missing, torn or holds anything else."""
    if not path.is_file():
        raise CheckpointError(
            f"there is no checkpoint {path}: give last (the newest run), a version number, a run folder or a file"
        )
    try:
        with warnings.catch_warnings():  # torch has remarks on other programs' pickles, which are refused below
            warnings.simplefilter("ignore")
            check_archive(path)
            loaded = torch.load(path, map_location="cpu", weights_only=True)
            check_tensors(loaded)
            return loaded
    except Invalid as error:
        raise CheckpointError(f"{path} is refused: {error}") from error
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is refused: it holds objects other than tensors and plain values, or is no checkpoint at all"
        ) from error
    except _UNREADABLE as error:
        if memory.ran_out(error):  # which says nothing about the file
            raise
        reason = textwrap.shorten(str(error), 100, placeholder=" ...") or type(error).__name__
        raise CheckpointError(f"{path} cannot be read ({reason}): torn or not a checkpoint") from error


def newest_good(folder: Path) -> Checkpoint:
    """The checkpoint of a run that has come furthest, passing over unreadable ones with a warning.

    Raises:
        CheckpointError: the run has none that can be read.
    """
    newest: Checkpoint | None = None
    refusals: list[str] = []
    paths = sorted((folder / "checkpoints").glob("*.ckpt"))
    # One whose step cannot be seen is read, and named if it is damaged.
    stated = {path: math.inf if (step := stated_step(path)) is None else step for path in paths}
    for path in sorted(paths, key=lambda path: _progress(path, stated[path]), reverse=True):
        if newest is not None and _progress(newest.path, newest.step) >= _progress(path, stated[path]):
            break
        try:
            found = read(path)
        except CheckpointError as error:
            refusals.append(str(error))
            continue
        if newest is None or _progress(path, found.step) > _progress(newest.path, newest.step):
            newest = found
    if newest is None:
        raise CheckpointError("; ".join(refusals) or f"{folder} holds no checkpoint in checkpoints/")
    for refusal in refusals:
        if os.environ.get("LOCAL_RANK", "0") == "0":  # said once, not by each process of a run
            problem(f"warning: {refusal}; using {newest.path} instead")
    return newest


def _progress(path: Path, step: float) -> tuple[float, bool]:
    """Orders a run's checkpoints: by step, last.ckpt after others of its step."""
    return step, path.name == "last.ckpt"


def find(spec: str, dataset: str | None = None, root: Path = ROOT) -> Checkpoint:
    """The checkpoint at the place that is named; of a run folder the newest that can be read.

    Args:
        spec, dataset, root: see `diffusion.runs.places.place`.

    Raises:
        CheckpointError: nothing is there, or nothing that can be read.
    """
    found = place(spec, dataset, root)
    same = numbered(spec, dataset, root)
    if len(same) > 1 and os.environ.get("LOCAL_RANK", "0") == "0":
        others = ", ".join(str(run) for run in same[1:])
        print(f"{spec} is the newest of {len(same)} runs, {found}; also {others}", file=sys.stderr)
    return newest_good(found) if found.is_dir() and not is_exchanged(found) else read(found)
