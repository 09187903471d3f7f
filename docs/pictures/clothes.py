"""A folder of photographs to try things on: clothes of Fashion-MNIST, a PNG each.

    python docs/pictures/clothes.py shoes classes=5,7,9
    python docs/pictures/clothes.py others classes=0,1,2,3,4,6,8 count=3000

The classes are 0 T-shirts, 1 trousers, 2 pullovers, 3 dresses, 4 coats, 5 sandals, 6 shirts, 7 sneakers, 8 bags and
9 ankle boots; `count` (6000) of all together are written.
"""

import sys
from pathlib import Path

import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2]))

from data.images import USUAL, DataUnavailable, Fashion
from diffusion.media import quantised


def write(folder: Path, classes: list[int], count: int = 6000) -> None:
    """Writes the first `count` training images of these classes, 28x28, grey."""
    train = Fashion(USUAL, pad=0, holdout=0).load().train
    rows = torch.isin(train.labels, torch.tensor(classes)).nonzero()[:count, 0]
    folder.mkdir(parents=True, exist_ok=True)
    for number, pixels in enumerate(quantised(train.get(rows))):
        Image.fromarray(pixels[0].numpy()).save(folder / f"{number:05}.png")


def typed(arguments: list[str]) -> tuple[Path, list[int], int]:
    """Folder, classes and count of a command line; raises ValueError for what is none."""
    folder, *pairs = arguments
    options = dict(pair.split("=") for pair in pairs)
    classes = [int(name) for name in options.pop("classes").split(",")]
    count = int(options.pop("count", 6000))
    if folder.startswith("-") or options or count < 1 or not all(0 <= number <= 9 for number in classes):
        raise ValueError
    return Path(folder), classes, count


if __name__ == "__main__":
    try:
        asked = typed(sys.argv[1:])
    except (ValueError, KeyError):
        sys.exit(f"usage:{__doc__}")
    try:
        write(*asked)
    except DataUnavailable as error:
        sys.exit(f"error: {error}")
