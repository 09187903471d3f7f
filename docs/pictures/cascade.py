"""The second picture of docs/conditions.md: a cascade's stages, without and with conditioning augmentation.

    python docs/pictures/cascade.py BASE PLAIN AUGMENTED docs/images/cascade.png

BASE is a run of experiment=cascade_base, AUGMENTED one of experiment=cascade_sr, PLAIN one of the same with
dataset.condition=lowres. The rows: what the base draws; what conditions the next stage; what PLAIN makes of that, and
AUGMENTED at conditioning_noise 0, 0.1 and 0.3; and real test images.
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from data.stream import Source
from diffusion import media
from diffusion.build import build
from diffusion.runs.checkpoints import find
from diffusion.sampling import Pipeline
from diffusion.sampling.cascade import cascade_of
from diffusion.sampling.conditions import as_picture

LEVELS = (0.0, 0.1, 0.3)
COLUMNS = 12


def main(base: str, plain: str, augmented: str, out: str) -> None:
    """Draws the same images, numbered alike and with the same seed, by each cascade."""
    n = COLUMNS
    first, second, third = (find(spec) for spec in (base, plain, augmented))
    cascade = cascade_of([first, second])
    index, side = torch.arange(n), cascade.shape[1]
    small = Pipeline.from_checkpoint(first).sample(n)
    times = side // small.shape[2]
    rows = [
        small.repeat_interleave(times, 2).repeat_interleave(times, 3),
        as_picture(cascade.conditions(index)["image"], cascade.shape),
        cascade.sample(n),
        *(cascade_of([first, third], conditioning_noise=level).sample(n) for level in LEVELS),
    ]
    source: Source = build(second.config["dataset"]["source"])
    rows.append(source.load().test.get(index))
    media.save_picture(out, media.picture(torch.cat(rows), rows=len(rows)))


if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit(f"usage:{__doc__}")
    main(*sys.argv[1:])
