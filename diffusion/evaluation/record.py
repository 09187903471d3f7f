"""`metrics.json`: what was found last, of each split in a file of its own, so that none takes the place of another."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusion.media.atomic import atomic, check_regular


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


def headline(folder: Path, step: int, weights: str | float, split: str = "test") -> str | None:
    """The first score of samples of these weights at this step, with its name; None if there is none."""
    record = _read(folder, split)
    if (record.get("step"), str(record.get("weights"))) != (step, str(weights)):
        return None
    for name, row in record.get("scores", {}).items():
        value = row.get("samples", {}).get("value")
        if value is not None:
            return f"{name} {value:.4g}"
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
