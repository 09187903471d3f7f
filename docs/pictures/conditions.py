"""The first picture of docs/conditions.md: what models were given of test images, what they made of it, and the images.

    python docs/pictures/conditions.py docs/images/conditions.png lightning_logs/fashion/version_3 [...]

Three rows for each run, of the same images.
"""

import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from data.stream import Source
from diffusion import media
from diffusion.build import build
from diffusion.runs.checkpoints import find
from diffusion.sampling import Pipeline
from diffusion.sampling.conditions import as_picture


def block(spec: str, n: int) -> media.Pixels:
    """Of one run: n conditions, the samples, the test images."""
    checkpoint = find(spec)
    pipeline = Pipeline.from_checkpoint(checkpoint)
    source: Source = build(checkpoint.config["dataset"]["source"])
    test, index = source.load().test, torch.arange(n)
    if not pipeline.condition_on(test, index):
        sys.exit(f"{checkpoint.path} is not conditioned on images: train with dataset.condition=lowres, say")
    conditioned = as_picture(pipeline.conditions(index)["image"], pipeline.shape)
    return media.picture(torch.cat((conditioned, pipeline.sample(n, seed=0), test.get(index))), rows=3)


def main(out: str, *specs: str, n: int = 12) -> None:
    """The blocks of the runs below each other."""
    blocks = [block(spec, n) for spec in specs]
    gap = np.full((24, *blocks[0].shape[1:]), 255, np.uint8)
    media.save_picture(out, np.concatenate([part for made in blocks for part in (gap, made)][1:]))


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(f"usage:{__doc__}")
    main(*sys.argv[1:])
