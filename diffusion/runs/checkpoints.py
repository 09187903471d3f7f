"""Checkpoints: finds them, and reads them without trusting them."""

import os
import pickle
import re
import sys
import textwrap
import warnings
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusion.build import ConfigError
from diffusion.machine import memory
from diffusion.runs import exchanged
from diffusion.runs.archive import Invalid, check_archive, check_tensors
from diffusion.runs.exchanged import is_exchanged
from diffusion.runs.validation import check_checkpoint
from diffusion.terminal.streams import problem

ROOT = Path("lightning_logs")
# What torch's reader and unpickler raise on bytes that are no checkpoint.
_UNREADABLE = (OSError, RuntimeError, EOFError, zipfile.BadZipFile, LookupError, ValueError, TypeError, AttributeError)


class CheckpointError(ConfigError):
    """A checkpoint that is missing, torn, or not ours; its text is one line."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of a run.

    Args:
        path: of the file.
        step: that it was written after.
        config: the run's resolved configuration.
        state: the weights and buffers of the run's Lightning module by their names.
        data: identities of the examples by split, see `data.changes`; None in checkpoints that do not have them yet.
    """

    path: Path
    step: int
    config: dict[str, Any]
    state: dict[str, Tensor]
    data: dict[str, Tensor] | None

    @property
    def folder(self) -> Path:
        """The run folder that it belongs to, or the file's own folder if it was moved out of one; a model folder of
        diffusers itself."""
        if self.path.is_dir():
            return self.path
        return self.path.parent.parent if self.path.parent.name == "checkpoints" else self.path.parent

    def without_state(self) -> "Checkpoint":
        """The same without the weights, which take memory."""
        return replace(self, state={})

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names begin so, by the rest of their names."""
        return {key.removeprefix(prefix): value for key, value in self.state.items() if key.startswith(prefix)}


def read(path: Path) -> Checkpoint:
    """The checkpoint in a file, on the CPU; raises CheckpointError as `contents` does."""
    if is_exchanged(path):
        config, state, step = exchanged.read(path)
        return Checkpoint(path, step, config, state, None)
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


def runs(root: Path = ROOT) -> list[Path]:
    """Run folders that hold a checkpoint, newest checkpoint first."""
    newest = {
        folder: max((file.stat().st_mtime_ns for file in (folder / "checkpoints").glob("*.ckpt")), default=None)
        for folder in root.glob("*/version_*")
    }
    dated = [(time, folder) for folder, time in newest.items() if time is not None]
    return [folder for _, folder in sorted(dated, reverse=True)]


def newest_good(folder: Path) -> Checkpoint:
    """The checkpoint of a run that has come furthest, passing over unreadable ones with a warning.

    Raises:
        CheckpointError: the run has none that can be read.
    """
    found, refusals = [], []
    for path in sorted((folder / "checkpoints").glob("*.ckpt")):
        try:
            checkpoint = read(path)
        except CheckpointError as error:
            refusals.append(str(error))
        else:
            found.append(checkpoint)
    if not found:
        raise CheckpointError("; ".join(refusals) or f"{folder} holds no checkpoint in checkpoints/")
    newest = max(found, key=lambda checkpoint: (checkpoint.step, checkpoint.path.name == "last.ckpt"))
    for refusal in refusals:
        if os.environ.get("LOCAL_RANK", "0") == "0":  # said once, not by each process of a run
            problem(f"warning: {refusal}; using {newest.path} instead")
    return newest


def find(spec: str, dataset: str | None = None, root: Path = ROOT) -> Checkpoint:
    """A checkpoint by what people type: `last`, a version number, a run folder or a file.

    Args:
        spec: what was typed.
        dataset: looks for `last` and numbers among the runs of this dataset only.
        root: where the runs are.

    Raises:
        CheckpointError: nothing is there, or nothing that can be read.
    """
    if not spec:
        raise CheckpointError(
            "no checkpoint is named: give last (the newest run), a version number, a folder or a file"
        )
    if re.match(r"[a-z][a-z0-9+.-]*://", spec):
        raise CheckpointError(f"{spec} is an address: download the checkpoint first, then give its path")
    found = runs(root)
    candidates = [run for run in found if dataset in (None, run.parent.name)]
    among = f"in {root / (dataset or '')}"
    if spec == "last":
        if not candidates:
            command = "python train.py" + (f" dataset={dataset}" if dataset else "")
            raise CheckpointError(
                f"there is no run with a checkpoint {among} yet: train one with {command}{_others(found)}"
            )
        return newest_good(candidates[0])
    if spec.isdecimal():
        numbered = [run for run in candidates if run.name == f"version_{spec}"]
        if not numbered:
            raise CheckpointError(f"there is no run version_{spec} {among}{_others(candidates or found)}")
        if len(numbered) > 1 and os.environ.get("LOCAL_RANK", "0") == "0":
            others = ", ".join(str(run) for run in numbered[1:])
            print(f"{spec} is the newest of {len(numbered)} runs, {numbered[0]}; also {others}", file=sys.stderr)
        return newest_good(numbered[0])
    path = Path(spec)
    if path.name == "checkpoints" and path.is_dir():
        path = path.parent
    if not path.exists() and (meant := _meant(spec, found)):
        raise CheckpointError(f"there is no checkpoint {spec}: did you mean {' or '.join(meant)}?")
    if path.is_dir() and not is_exchanged(path):
        if not (path / "checkpoints").is_dir():
            inside = [run for run in runs(path.parent) + runs(path) if run.is_relative_to(path)]
            if inside:
                raise CheckpointError(f"{path} is a folder of runs, name one{_others(inside)}")
        return newest_good(path)
    if path.is_file() and (path.suffix in (".yaml", ".csv") or (path.parent / "checkpoints").is_dir()):
        raise CheckpointError(f"{path} is a file of a run and no checkpoint: give the run folder, {path.parent}")
    return read(path)


def _meant(spec: str, found: Sequence[Path]) -> list[str]:
    """What stands under a name that is not quite a checkpoint's: `digits`, `version_0`, `best`, `newest`, `a\\b`."""
    path = Path(spec.replace("\\", "/").strip())
    if spec.lower() in ("latest", "newest", "true", "yes", "latest.ckpt", "last.ckpt", "-1"):
        return ["last"]
    if path.stem == "best" and found:
        return [str(found[0] / "checkpoints" / "best.ckpt")]
    files = [path, path.with_name(f"{path.name}.ckpt"), path.with_suffix(".ckpt")] if path.name else []
    if existing := [str(file) for file in files if file.exists()]:
        return existing[:1]
    numbered = path.with_name(f"version_{path.name}") if path.name else path
    runs_there = [run for run in found if run.parts[-len(path.parts) :] in (path.parts, numbered.parts)]
    of_folder = [run for run in found if path.parts in (run.parent.parts, run.parent.parts[-1:], run.parts[:-1])]
    siblings = [run for run in found if run.parent == path.parent]
    return [str(run) for run in sorted(runs_there or of_folder or siblings, key=by_number)]


def by_number(run: Path) -> tuple[str, int]:
    """The order of run folders in a list: version_2 before version_10."""
    return str(run.parent), int(run.name.removeprefix("version_")) if run.name[8:].isdecimal() else -1


def _others(found: Sequence[Path]) -> str:
    return "; runs with a checkpoint: " + (", ".join(map(str, sorted(found, key=by_number))) or "none")
