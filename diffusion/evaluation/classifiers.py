"""The classifiers that scores are computed with: shipped for some data sets, else trained on first use and kept.

Train a shipped one again: `python evaluate.py train_classifier=true dataset=fashion out=.`. On the machine that made
it, with one thread, it is the same file.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffusion.evaluation.cache import Arrays, Cache, fingerprint, read_arrays, write_arrays
from diffusion.evaluation.extractors import Classifier, train_classifier
from diffusion.terminal.progress import counted

SHIPPED = Path(__file__).parent / "shipped"
SOURCES = {
    "digits": "data.images.Digits",
    "fashion": "data.images.Fashion",
    "mnist5k": "data.mnist5k.Mnist5k",
}
# sha256 of the files, by the data set that they were trained on.
SHA256 = {
    "digits": "5de728d33ede723215a3a5b33763a667a448f3883ad1a8ef800a8364513683e6",
    "fashion": "0be660293d5ae2204fd8c57b994f4593c94dab3b5db9b089164ef5305267e8e9",
    "mnist5k": "f1c1f13294ae47710508d951eda9a47dd7881e624adff4aed258206cf182f5b6",
}


# Training images held out when they were trained; of more, some would be judged by a classifier that learned them.
HELD_OUT = 5000


def training_steps(images: int) -> int:
    """Batches of 64: about five epochs, at least 600 and at most 4,000."""
    return min(4000, max(600, 5 * images // 64))


def shipped(dataset: Mapping[str, Any]) -> Classifier | None:
    """The classifier that comes with the project for these data, if there is one.

    Raises:
        ValueError: the file is not the one that was shipped.
    """
    name, shape = dataset["name"], dataset["shape"]
    source = dataset["source"]
    if source["_target_"] != SOURCES.get(name):
        return None
    if source.get("holdout", 0) > HELD_OUT:
        return None
    path = SHIPPED / f"{name}.npz"
    if hashlib.sha256(path.read_bytes()).hexdigest() != SHA256[name]:
        raise ValueError(f"{path} is not the file that was shipped: restore it")
    arrays = read_arrays(path)
    return loaded(arrays, shape) if arrays["shape"].tolist() == list(shape) else None


def classifier(dataset: Mapping[str, Any], pixels: Tensor, labels: Tensor, cache: Cache) -> Classifier:
    """The classifier for a data set: the shipped one, the kept one, or one that is trained now and kept.

    Args:
        dataset: the run's `dataset` configuration.
        pixels: training images as bytes (N, C, H, W).
        labels: theirs (N,).
        cache: where a trained one is kept.
    """
    found = shipped(dataset)
    if found is not None:
        return found
    classes, steps = class_count(labels), training_steps(len(pixels))
    key = {"pixels": fingerprint(pixels), "labels": fingerprint(labels), "steps": steps, "version": 1}

    def make() -> Arrays:
        print(f"training a classifier of {dataset['name']} to score with, once: {counted(steps, 'step')}")
        return stored(train_classifier(pixels, labels, classes, steps))

    return loaded(cache.get("classifier", key, make), dataset["shape"])


def class_count(labels: Tensor) -> int:
    """How many classes labels (N,) tell apart: 0 where all are alike."""
    return int(labels.max()) + 1 if labels.max() > 0 else 0


def train_shipped(dataset: Mapping[str, Any], pixels: Tensor, labels: Tensor, folder: Path) -> Path:
    """Trains a classifier and writes it as it is shipped; prints the sha256 that belongs in `SHA256`."""
    classes = class_count(labels)
    if not classes:
        raise ValueError(f"train_classifier=true: {dataset['name']} has no classes to tell apart")
    made = train_classifier(pixels, labels, classes, training_steps(len(pixels)))
    path = folder / f"{dataset['name']}.npz"
    write_arrays(path, stored(made) | {"shape": np.array(dataset["shape"])})
    print(f"{path}: {path.stat().st_size} bytes, sha256 {hashlib.sha256(path.read_bytes()).hexdigest()}")
    return path


def stored(made: Classifier) -> Arrays:
    """A classifier's weights as float16 arrays: half the size, and no different to a score."""
    return {
        name: value.numpy().astype(np.float16) if value.is_floating_point() else value.numpy()
        for name, value in made.state_dict().items()
    }


def loaded(arrays: Arrays, shape: list[int]) -> Classifier:
    """The classifier that `stored` arrays describe, for images of this shape; raises KeyError if one is missing."""
    made = Classifier(shape, len(arrays["head.bias"]))
    made.load_state_dict({name: torch.from_numpy(arrays[name]) for name in made.state_dict()})
    return made.eval().requires_grad_(False)
