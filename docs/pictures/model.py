"""Pictures of a trained model: its samples beside real images, and their way from noise.

    python docs/pictures/model.py beside lightning_logs/fashion/version_0 docs/images/fast_fashion.png
    python docs/pictures/model.py strip lightning_logs/fashion/version_0 docs/images/strip_fashion.png

`beside` draws samples on the left and real test images on the right, of a class-conditional model a row of each class;
`strip` draws a few images in the columns of their way from noise, and real test images after them.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))

import cli
from data.stream import Examples, Source
from diffusion import media
from diffusion.build import build
from diffusion.runs.checkpoints import find
from diffusion.sampling import Pipeline
from diffusion.settings.sampling import Steering

GUIDANCE = 2.0  # of class-conditional models
GAP = 24  # pixels of white between samples and real images


def loaded(spec: str, **changes: int) -> tuple[Pipeline, Examples]:
    """A run's model, with a little guidance if it knows classes, and the test data of its data set."""
    checkpoint = find(spec)
    pipeline = Pipeline.from_checkpoint(checkpoint, **changes)
    if pipeline.num_classes:
        pipeline = Pipeline.from_checkpoint(checkpoint, steering=Steering(guidance=GUIDANCE), **changes)
    source: Source = build(checkpoint.config["dataset"]["source"])
    return pipeline, source.load().test


def real_images(test: Examples, labels: list[int] | None, n: int) -> Tensor:
    """n test images: the first ones, or the first that have these labels."""
    if labels is None:
        return test.get(torch.arange(n))
    rows = {label: iter((test.labels == label).nonzero()[:, 0].tolist()) for label in set(labels)}
    return test.get(torch.tensor([next(rows[label]) for label in labels]))


def beside(spec: str, out: str, n: int = 8) -> None:
    """Samples beside as many test images: n of each class in a row, or n rows of n."""
    pipeline, test = loaded(spec)
    rows = pipeline.num_classes or n
    labels = [row for row in range(rows) for _ in range(n)] if pipeline.num_classes else None
    samples, real = pipeline.sample(rows * n, 0, labels), real_images(test, labels, rows * n)
    media.save_picture(out, joined(media.picture(samples, rows), media.picture(real, rows)))


def strip(spec: str, out: str, n: int = 4, frames: int = 9, real: int = 3, steps: int = 40) -> None:
    """n samples from noise to data, a row each, and n rows of test images."""
    pipeline, test = loaded(spec, steps=steps)
    classes = pipeline.num_classes
    labels = [classes * row // n for row in range(n)] if classes else None
    states = pipeline.frames(n, label=labels, keep=pipeline.shown(frames)).transpose(0, 1)  # (n, frames, *S)
    others = real_images(test, None if labels is None else [label for label in labels for _ in range(real)], n * real)
    media.save_picture(out, joined(media.picture(states.flatten(0, 1), n), media.picture(others, n)))


def joined(left: media.Pixels, right: media.Pixels) -> media.Pixels:
    """Two pictures of one height side by side."""
    gap = np.full((left.shape[0], GAP, *left.shape[2:]), 255, np.uint8)
    return np.concatenate((left, gap, right), axis=1)


if __name__ == "__main__":
    drawn = {"beside": beside, "strip": strip}
    if len(sys.argv) != 4 or sys.argv[1] not in drawn:
        sys.exit(f"usage:{__doc__}")
    try:
        drawn[sys.argv[1]](sys.argv[2], sys.argv[3])
    except cli.USER_ERRORS as error:
        cli.fail(cli.one_line(error))
