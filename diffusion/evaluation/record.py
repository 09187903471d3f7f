"""`metrics.json`: what was found last, of each split in a file of its own, so that none takes the place of another."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusion.build import ConfigError
from diffusion.evaluation.results import record_of
from diffusion.media.atomic import atomic, check_regular
from diffusion.runs.checkpoints import Checkpoint

# name -> samples, real, noisy -> value, low, high
Scores = dict[str, dict[str, dict[str, float]]]


def marked(name: str, split: str) -> str:
    """The name of something found on a split: metrics, or metrics_val for another split than the test split."""
    return name if split == "test" else f"{name}_{split}"


def headlines(points: bool) -> list[str]:
    """The curves of the test split in TensorBoard that `evaluate.py ckpt=...` writes of points, or of images."""
    names = ("sliced_wasserstein_n2000",) if points else ("frechet_classifier_n2000", "frechet_random_n2000")
    return [f"{curves_of('test')}/{name}" for name in names]


def curves_of(split: str) -> str:
    """The group of a split's figures in TensorBoard, whose groups are in alphabetical order: these follow train and
    val, which training writes."""
    return f"versus_{split}"


def record_path(folder: Path, split: str) -> Path:
    """The file of a split's figures in a folder."""
    return folder / f"{marked('metrics', split)}.json"


def write_scores(folder: Path, split: str, record: Mapping[str, Any]) -> None:
    """Writes a table of scores with its settings; likelihoods that were found before stay."""
    kept = {name: value for name, value in _read(folder, split).items() if name == "likelihood"}
    _write(folder, split, dict(record) | kept)


def write_likelihood(folder: Path, split: str, kind: str, record: Mapping[str, Any]) -> None:
    """Writes a likelihood ("vlb" or "ode") with its settings; everything else that was found stays."""
    before = _read(folder, split)
    _write(folder, split, before | {"likelihood": before.get("likelihood", {}) | {kind: dict(record)}})


def scores_of(checkpoint: Checkpoint, weights: str | float, split: str = "test") -> Scores:
    """What was found last of samples of these weights at a checkpoint's step; empty if that was of anything else.

    Raises:
        ConfigError: the file is damaged.
    """
    path = record_path(checkpoint.folder, split)
    check_regular(path)
    if not path.exists():
        return {}
    # Of a model that another program wrote nobody knows the data.
    data = checkpoint.config["dataset"]["name"] if "objective" in checkpoint.config else None
    try:
        record = record_of(path)
        if (record.get("step"), str(record.get("weights"))) != (checkpoint.step, str(weights)):
            return {}
        if (data is not None and record.get("dataset", data) != data) or _of_cascade(record):
            return {}
        if checkpoint.alone and Path(str(record.get("checkpoint"))).name != checkpoint.path.name:
            return {}  # of another model in the same folder
        return {
            str(name): {column: _numbers(cell) for column, cell in row.items() if isinstance(cell, Mapping)}
            for name, row in record.get("scores", {}).items()
        }
    except (ValueError, AttributeError, ArithmeticError) as error:
        raise ConfigError(f"{path} is damaged: score the run again, or remove that file") from error


def _of_cascade(record: Mapping[str, Any]) -> bool:
    """Whether scores are those of several models, of which the last one's folder has them."""
    return "calls_per_sample" not in record and ", " in str(record.get("checkpoint"))


def _numbers(cell: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in cell.items() if isinstance(value, int | float)}


def headline(scores: Scores) -> str | None:
    """The first score of samples, with its name; None if there is none."""
    for name, row in scores.items():
        if "value" in row.get("samples", {}):
            return f"{name} {row['samples']['value']:.4g}"
    return None


def _read(folder: Path, split: str) -> dict[str, Any]:
    path = record_path(folder, split)
    check_regular(path)
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):  # torn by something else: written anew
        return {}
    return found if isinstance(found, dict) else {}


def _write(folder: Path, split: str, record: Mapping[str, Any]) -> None:
    with atomic(record_path(folder, split)) as file:
        file.write(json.dumps(record, indent=1).encode())
