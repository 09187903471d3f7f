"""Pictures of a trained model: its samples beside real images, and their way from noise.

    python docs/pictures/model.py beside lightning_logs/fashion/version_0 docs/images/fast_fashion.png
    python docs/pictures/model.py gif lightning_logs/digits/version_0 docs/images/digits.gif

`beside` draws samples on the left and real test images on the right; `gif` is `sample.py`'s, with more images.
"""

import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

import cli
from data.stream import Source
from diffusion import media
from diffusion.build import build
from diffusion.runs.checkpoints import find
from diffusion.sampling import Pipeline


def beside(spec: str, out: str, n: int = 64) -> None:
    """n samples beside n test images, under the same seed."""
    checkpoint = find(spec)
    pipeline = Pipeline.from_checkpoint(checkpoint)
    source: Source = build(checkpoint.config["dataset"]["source"])
    real = source.load().test.get(torch.arange(n))
    left, right = media.picture(pipeline.sample(n, seed=0)), media.picture(real)
    gap = np.full((left.shape[0], 24, *left.shape[2:]), 255, np.uint8)
    media.save_picture(out, np.concatenate((left, gap, right), axis=1))


def gif(spec: str, out: str, n: int = 24, rows: int = 3, frames: int = 21) -> None:
    """n images on their way from noise."""
    pipeline = Pipeline.load(spec)
    states = pipeline.frames(n, keep=media.evenly(len(pipeline.times), frames))
    media.save(out, states[-1], list(states), rows)


if __name__ == "__main__":
    if len(sys.argv) != 4 or sys.argv[1] not in ("beside", "gif"):
        sys.exit(f"usage:{__doc__}")
    try:
        {"beside": beside, "gif": gif}[sys.argv[1]](sys.argv[2], sys.argv[3])
    except cli.USER_ERRORS as error:
        cli.fail(cli.one_line(error))
