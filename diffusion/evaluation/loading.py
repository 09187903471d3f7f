"""What is evaluated, and by which data: a data set's splits, and samples that a model draws."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from data.stream import Examples, Splits
from diffusion.build import build, check_source
from diffusion.evaluation.classifiers import class_count
from diffusion.media import quantised
from diffusion.sampling import Pipeline
from diffusion.sampling.parallel import frames_on
from diffusion.terminal.progress import counted, progress


def placed(dataset: Mapping[str, Any], data_dir: str | None) -> dict[str, Any]:
    """The source of a `dataset` configuration with its files in this folder; None leaves them where they are.

    Raises:
        ValueError: the data come from no files.
    """
    check_source(dataset["source"])
    source = dict(dataset["source"])
    name = next((name for name in ("data_dir", "path") if name in source), None)
    if data_dir is not None:
        if name is None:
            raise ValueError(f"data_dir={data_dir}: {dataset['name']} does not come from files")
        source[name] = data_dir
    elif name == "data_dir" and source[name] is None:
        source[name] = "data/raw"
    return source


def loaded(
    dataset: Mapping[str, Any], data_dir: str | None, download: bool, shape: Sequence[int] | None = None
) -> tuple[dict[str, Any], Splits]:
    """The data of a `dataset` configuration, and that configuration with the data's shape.

    Args:
        dataset: of the run, or as `dataset=` chose it.
        data_dir: where the data are; None is where the configuration has them.
        download: fetch data that are not there.
        shape: of the model's samples, if there is one.

    Raises:
        ValueError: the data have another shape, which is found before they are read, or come from no files.
    """
    source = placed(dataset, data_dir)
    if "download" in source:
        source["download"] = download
    built = build(source, "dataset.source")
    if shape is not None and list(built.shape) != list(shape):
        raise ValueError(
            f"dataset={dataset['name']} has data of shape {tuple(built.shape)}, and the model's are {tuple(shape)}: "
            f"leave dataset= out, or name the one that it was trained on"
        )
    return dict(dataset) | {"shape": list(built.shape)}, built.load()  # a folder's shape is known only now


def check_classes(num_classes: int, splits: Splits, name: str) -> None:
    """Raises ValueError if a model knows other classes than the data of this name, whose labels are to condition it."""
    found = class_count(torch.cat([splits.train.labels, splits.val.labels, splits.test.labels]))
    if num_classes not in (0, found):
        raise ValueError(
            f"dataset={name} has {counted(found, 'class') if found else 'no labels'}, and the model knows "
            f"{counted(num_classes, 'class')}: leave dataset= out, or name the one that it was trained on"
        )


def draw_samples(
    pipeline: Pipeline, examples: Examples, conditioning: Tensor, seed: int, places: Sequence[str], batch_size: int
) -> tuple[Tensor, Tensor | None]:
    """A model's first n samples of a seed as they are scored, bytes (n, C, H, W) or points, and their labels (n,).

    Args:
        pipeline: what draws.
        examples: the data.
        conditioning: which of them sample k is conditioned on, (n,), if the model is conditional.
        seed: of the noise.
        places: the devices that share them.
        batch_size: samples at a time on each.

    Raises:
        ValueError: some are not finite.
    """
    n = len(conditioning)
    pipeline.condition_on(examples, conditioning)
    steps = math.ceil(math.ceil(n / len(places)) / batch_size) * len(pipeline.times)
    with progress(steps, "step", "sampling") as advance:
        samples = frames_on(places, pipeline, range(n), seed, None, batch_size, after_step=lambda: advance(1))[-1]
    return quantised(samples) if samples.ndim == 4 else samples, pipeline.labels(torch.arange(n), None)
