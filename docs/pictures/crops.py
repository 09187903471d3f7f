"""A folder of 300 photographs to try things on: pieces of two photographs that scikit-learn carries.

    python docs/pictures/crops.py photos

Both are CC BY 2.0: china.jpg by danielbuechele, flower.jpg by vultilion.
"""

import random
import sys
from pathlib import Path

from PIL import Image
from sklearn.datasets import load_sample_images


def write(folder: Path, count: int = 300) -> None:
    """Writes JPEGs of different sizes and shapes, in turn of one photograph and the other."""
    chance = random.Random(0)
    photographs = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        photograph = photographs[number % len(photographs)]
        width = chance.randint(160, 400)
        height = min(int(width * chance.choice([1, 0.75, 1.33])), photograph.height - 1)
        left, top = chance.randint(0, photograph.width - width), chance.randint(0, photograph.height - height)
        piece = photograph.crop((left, top, left + width, top + height))
        piece.save(folder / f"IMG_{1000 + number}.jpg", quality=88)


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(f"usage:{__doc__}")
    write(Path(sys.argv[1]))
