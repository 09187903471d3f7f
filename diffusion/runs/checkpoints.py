"""Checkpoints: where they are, and loading one without trusting it."""

import os
import pickle
import re
import sys
import textwrap
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffusion.build import ConfigError
from diffusion.denoisers import TrainableDenoiser
from diffusion.machine import memory
from diffusion.models import NoisyClassifier
from diffusion.optimizers import WIDEST, coefficients, exponent
from diffusion.runs import exchanged
from diffusion.runs.archive import Invalid, check_archive, check_tensors
from diffusion.runs.exchanged import is_exchanged
from diffusion.runs.models import build_denoiser, build_model
from diffusion.runs.validation import check_checkpoint

ROOT = Path("lightning_logs")
# How far, at most, an average that is put together may be from the one that was asked for.
FARTHEST = 0.15
# The root mean square of what rounding a snapshot to half precision changes, as a share of each weight.
HALF_PRECISION = 2e-4
# What torch's reader and unpickler raise on bytes that are no checkpoint.
_UNREADABLE = (OSError, RuntimeError, EOFError, zipfile.BadZipFile, LookupError, ValueError, TypeError, AttributeError)


class CheckpointError(ConfigError):
    """A checkpoint that is missing, torn, or not ours; its text is one line."""


def read(path: Path) -> dict[str, Any]:
    """The checkpoint's contents, on the CPU, read without unpickling code.

    Raises:
        CheckpointError: it is missing, torn, from another program, holds anything but tensors and plain values, or is
            not what a run with its configuration writes; see `diffusion.runs.validation`.
    """
    if is_exchanged(path):
        config, state, step = exchanged.read(path)
        return {"config": config, "state_dict": state, "global_step": step}
    checkpoint = _load(path)
    kinds = {"config": dict, "state_dict": dict, "global_step": int}
    if not isinstance(checkpoint, dict) or not all(isinstance(checkpoint.get(k), kind) for k, kind in kinds.items()):
        raise CheckpointError(f"{path} is a file of another program: it holds no configuration of this project")
    try:
        check_checkpoint(checkpoint)
    except ConfigError as error:
        raise CheckpointError(f"{path} is refused: {error}") from error
    return checkpoint


def _load(path: Path) -> Any:
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


def newest_good(folder: Path) -> tuple[Path, dict[str, Any]]:
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
            found.append((checkpoint.get("global_step", 0), path.name == "last.ckpt", path, checkpoint))
    if not found:
        raise CheckpointError("; ".join(refusals) or f"{folder} holds no checkpoint in checkpoints/")
    _, _, path, checkpoint = max(found, key=lambda entry: entry[:2])
    for refusal in refusals:
        if os.environ.get("LOCAL_RANK", "0") == "0":  # said once, not by each process of a run
            print(f"warning: {refusal}; using {path} instead", file=sys.stderr)
    return path, checkpoint


def find(spec: str, dataset: str | None = None, root: Path = ROOT) -> tuple[Path, dict[str, Any]]:
    """A checkpoint by what people type: `last`, a version number, a run folder or a file.

    Args:
        spec: what was typed.
        dataset: looks for `last` and numbers among the runs of this dataset only.
        root: where the runs are.

    Returns:
        The file and its contents.

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
    if path.is_dir() and not is_exchanged(path):
        if not (path / "checkpoints").is_dir():
            inside = [run for run in runs(path.parent) + runs(path) if run.is_relative_to(path)]
            if inside:
                raise CheckpointError(f"{path} is a folder of runs, name one{_others(inside)}")
        return newest_good(path)
    if path.suffix in (".yaml", ".csv") and path.is_file():
        raise CheckpointError(f"{path} is a file of a run and no checkpoint: give the run folder, {path.parent}")
    return path, read(path)


def by_number(run: Path) -> tuple[str, int]:
    """The order of run folders in a list: version_2 before version_10."""
    return str(run.parent), int(run.name.removeprefix("version_")) if run.name[8:].isdecimal() else -1


def _others(found: Sequence[Path]) -> str:
    return "; runs with a checkpoint: " + (", ".join(map(str, sorted(found, key=by_number))) or "none")


def run_folder(checkpoint: Path) -> Path:
    """The run folder that a checkpoint file belongs to, or the file's own folder if it was moved out of one."""
    return checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint.parent


def trained_denoiser(checkpoint: Mapping[str, Any], path: Path, weights: str | float = "ema") -> TrainableDenoiser:
    """The denoiser of a checkpoint: frozen, in evaluation mode, on the CPU.

    Args:
        checkpoint: its contents, as `read` gives them.
        path: where it is, for messages.
        weights: "ema" or "raw"; a model trained without EMA has raw weights only, which then serve for both. Or a
            number, sigma_rel of the average to make from the snapshots of a run with `ema=power`.
    """
    if weights not in ("ema", "raw") and not (isinstance(weights, float) and 0 < weights <= WIDEST):
        raise ConfigError(
            f"weights must be ema or raw, or the width of an average, above 0 and at most {WIDEST}, got {weights!r}"
        )
    denoiser = build_denoiser(checkpoint["config"])
    load_weights(denoiser, checkpoint, path, weights)
    return denoiser.eval().requires_grad_(False)


def trained_classifier(checkpoint: Mapping[str, Any], path: Path) -> NoisyClassifier:
    """The classifier of a checkpoint: frozen, in evaluation mode, on the CPU, with averaged weights if it has them.

    Raises:
        ConfigError: it is no classifier.
    """
    classifier = build_model(checkpoint["config"])
    if not isinstance(classifier, NoisyClassifier):
        raise ConfigError(f"{path} is no classifier: train one with python train.py experiment=classifier_digits, say")
    load_weights(classifier, checkpoint, path)
    return classifier.eval().requires_grad_(False)


def load_weights(denoiser: nn.Module, checkpoint: Mapping[str, Any], path: Path, weights: str | float = "ema") -> None:
    """Puts a checkpoint's weights into a denoiser.

    Raises:
        CheckpointError: they have other names or shapes.
    """
    state = checkpoint["state_dict"]
    averaged = weights != "raw" and any(key.startswith("ema.") for key in state)
    chosen = part_of(state, "ema." if averaged else "denoiser.")
    if not chosen:
        raise CheckpointError(f"{path} holds averaged weights alone: leave weights={weights} out")
    if isinstance(weights, float):
        chosen |= _average(checkpoint, path, weights, [name for name, _ in denoiser.named_parameters()])
    try:
        denoiser.load_state_dict(chosen)
    except RuntimeError as error:
        reason = textwrap.shorten(" ".join(str(error).splitlines()[1:2]), 160, placeholder=" ...")
        raise CheckpointError(f"the weights in {path} do not fit this network: {reason}") from error


def part_of(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin so, by the rest of their names."""
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _average(checkpoint: Mapping[str, Any], path: Path, sigma_rel: float, names: Sequence[str]) -> dict[str, Tensor]:
    """The parameters averaged over this width, from the checkpoint's own averages and the snapshots taken before it."""
    config, step = checkpoint["config"].get("ema"), checkpoint["global_step"]
    widths = config.get("sigma_rels") if isinstance(config, Mapping) else None
    if not isinstance(widths, list):
        raise CheckpointError(
            f"weights={sigma_rel} is an average whose width is chosen after training, which needs a run with "
            f"ema=power; {path} has weights=ema and weights=raw alone"
        )
    gammas, wanted = [exponent(width) for width in widths], exponent(sigma_rel)
    prefixes = ["ema.", *(f"other_emas.{i}." for i in range(len(widths) - 1))]
    own = [part_of(checkpoint["state_dict"], prefix) for prefix in prefixes]
    if not all([*own, part_of(checkpoint["state_dict"], "denoiser.")]):
        raise CheckpointError(f"{path} holds one set of weights alone: leave weights={sigma_rel} out")
    folder = run_folder(path) / "averages"
    before = sorted(int(file.stem) for file in folder.glob("*.pt") if file.stem.isdecimal() and int(file.stem) < step)
    steps = [taken for taken in [*before, step] for _ in widths]
    c, error = coefficients(steps, gammas * (len(before) + 1), step, wanted)
    error += HALF_PRECISION * c[: len(before) * len(widths)].norm().item()
    if error > FARTHEST:
        raise CheckpointError(
            f"weights={sigma_rel} is out of reach: the averages {widths} in the checkpoint and the {len(before)} "
            f"snapshots of them in {folder} miss it by {100 * error:.0f} %, more than {100 * FARTHEST:.0f} %"
        )
    parts = [part for taken in before for part in _snapshot(folder / f"{taken}.pt", own, names)] + own
    sums = {name: sum(c_i * part[name].double() for c_i, part in zip(c, parts, strict=True)) for name in names}
    return {name: value.to(own[0][name].dtype) for name, value in sums.items()}


def _snapshot(file: Path, own: Sequence[Mapping[str, Tensor]], names: Sequence[str]) -> list[dict[str, Tensor]]:
    """The averages in a snapshot, which have to be those of the checkpoint's network."""
    found = _load(file)
    averages = found.get("averages") if isinstance(found, dict) else None
    shapes = [{name: part[name].shape for name in names} for part in own]
    if not isinstance(averages, list) or shapes != [
        {name: value.shape for name, value in part.items() if isinstance(value, Tensor)}
        for part in averages
        if isinstance(part, dict)
    ]:
        raise CheckpointError(f"{file} holds no averages of this checkpoint's weights")
    return averages
