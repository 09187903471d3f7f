"""Pixels from the image files that a command is given."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

# What `read_pixels` raises.
UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)


def read_pixels(path: Path, channels: int) -> NDArray[np.uint8]:
    """An image file's pixels (H, W, C), upright, in grey for one channel.

    Raises ValueError or another of Pillow's errors for a file that cannot be read, or that has no such pixels: more
    than 8 bits a channel, or transparent parts.
    """
    with Image.open(path) as file:
        image = ImageOps.exif_transpose(file)
    if image.mode.startswith(("I", "F")):
        raise ValueError("it has more than 8 bits a channel: save it with 8")
    if image.has_transparency_data and image.convert("RGBA").getchannel("A").getextrema()[0] != 255:
        raise ValueError("parts of it are transparent: save it on a background")
    pixels = np.array(image.convert("L" if channels == 1 else "RGB"))
    return pixels.reshape(*pixels.shape[:2], channels)
