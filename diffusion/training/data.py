"""A run's data: served, checked against the model, and encoded where it learns latents."""

import math
import warnings

import torch
import torch.nn.functional as F
from torch import Tensor

from data.module import DataModule
from data.stream import Points
from diffusion.build import ConfigError
from diffusion.denoisers import Condition
from diffusion.models import Codec
from diffusion.runs.codecs import BATCH, draws, moments
from diffusion.runs.parts import Parts
from diffusion.trainable import Trainable


def data_module(parts: Parts) -> DataModule:
    """What serves the data of a run."""
    settings, flip = parts.settings, parts.config["dataset"]["flip"]
    if not isinstance(flip, bool):
        raise ConfigError(f"dataset.flip must be true or false, got {flip!r}")
    return DataModule(
        source=parts.source,
        batch_size=settings.batch_size,
        seed=settings.seed,
        flip=flip,
        workers=settings.workers,
        limit=settings.train_images,
        condition=parts.condition,
        augment=parts.config["dataset"].get("augment", 0.0),
    )


def check_conditions(data: DataModule, model: Trainable) -> None:
    """Raises ConfigError if the model has other classes, or vectors to be conditioned on, than the data."""
    assert data.splits is not None
    embeddings = data.splits.train.embeddings
    length = 0 if embeddings is None else embeddings.shape[1]
    if model.embedding not in (0, length):
        raise ConfigError(f"network.embedding={model.embedding}, but the data's embeddings have the length {length}")
    found = 1 + max(int(split.labels.max()) for split in data.splits)
    if model.num_classes and model.num_classes != found:
        are = f"{found} classes" if found > 1 else "no labels"
        raise ConfigError(
            f"network.num_classes={model.num_classes}, but the data have {are}: use {found if found > 1 else 0}"
        )


def warn_of_likeness(data: DataModule) -> None:
    """Warns of training data that are nearly identical."""
    x, _ = data.train_sample(100)
    spread = (x.double() - x.double().mean(0)).square().mean().sqrt().item()
    if spread < 0.01:
        warnings.warn(
            f"the training data are nearly all alike (standard deviation {spread:.2g}, of data in [-1, 1]): a model of "
            f"them can only draw such data",
            stacklevel=2,
        )


def warn_of_mirrors(data: DataModule) -> None:
    """Warns if training mirrors images, and mirrored ones look unlike the others.

    Of images and their mirror images together, half have a nearest neighbour of their own kind if both have the same
    distribution, and all if these lie apart: the two-sample test of Schilling 1986 ("Multivariate two-sample tests
    based on nearest neighbors"). It gives 0.96 for digits, 0.77 for Fashion-MNIST, 0.98 for the shoes in it.
    """
    assert data.splits is not None
    n = min(data.train_size, 200)
    if not data.flip or n < 50:
        return
    x = data.splits.train.get(torch.linspace(0, data.train_size - 1, n).long())
    x = F.adaptive_avg_pool2d(x, (min(x.shape[2], 32), min(x.shape[3], 32)))
    both = torch.cat((x, x.flip(3))).flatten(1)
    distances = torch.cdist(both, both)
    for itself in (0, n, -n):  # and its mirror image, which says nothing
        distances.diagonal(itself).fill_(math.inf)
    mirrored = torch.arange(2 * n) >= n
    share = (mirrored[distances.argmin(1)] == mirrored).double().mean().item()
    if share > 0.9:
        warnings.warn(
            f"dataset.flip=true mirrors half of the training images, so half of the samples will be mirrored too, and "
            f"mirrored ones look unlike the others here ({100 * share:.0f} % have their nearest neighbour in their own "
            f"kind, where 50 % would be alike): dataset.flip=false trains on the images as they are",
            stacklevel=2,
        )


def training_data(
    codec: Codec | None, data: DataModule, device: torch.device, seed: int, most: int
) -> tuple[Tensor, Condition]:
    """What is to be diffused, data or their latents, (n, *S), and what conditions them: "label" and perhaps "image";
    n is `most` at most."""
    condition = data.condition
    x, labels = data.train_sample(most if condition is None else min(most, 20_000))  # images of conditions are large
    cond = {} if condition is None else condition.augmented(x, seed, torch.arange(len(x)))
    return draws(codec, x, device, seed), {"label": labels, **cond}


def into_latents(codec: Codec, data: DataModule, device: torch.device, cache: bool, begins: bool) -> None:
    """Measures the latents of a run that begins, and puts those of the training images in their place if they are to be
    kept."""
    assert data.splits is not None
    if cache:
        train, size = data.splits.train, data.train_size
        batches = (train.get(rows) for rows in torch.arange(size).split(BATCH))
        examples = Points(moments(codec, batches, device), train.labels[:size])
        examples.embeddings = None if train.embeddings is None else train.embeddings[:size]
        data.splits = data.splits._replace(train=examples)
    if begins:
        codec.measure(moments(codec, data.train_sample()[0].split(BATCH), device))
