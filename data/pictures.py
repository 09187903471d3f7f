"""Image files as every part of the project reads them: which names count as images, and what pixels a file has."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

# Still images that Pillow reads; it looks at a file's content, so that the suffix need not be the right one.
SUFFIXES = (
    *(".apng", ".avif", ".bmp", ".cur", ".dds", ".dib", ".gif", ".icns", ".ico", ".j2k", ".jfif", ".jp2", ".jpe"),
    *(".jpeg", ".jpf", ".jpg", ".jpx", ".pbm", ".pcx", ".pgm", ".png", ".pnm", ".ppm", ".psd", ".qoi", ".ras", ".sgi"),
    *(".tga", ".tif", ".tiff", ".webp", ".xbm", ".xpm"),
)
# What systems write beside images without being asked.
_LITTER = ("desktop.ini", "thumbs.db")


class UnreadableImage(ValueError):
    """A file has no pixels to give; the text is the reason, one line."""


def printable(name: str) -> str:
    """A file's name on one line of any terminal: control characters and bytes that are no text are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in name)


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is none of the user's: hidden, or written by the system."""
    return name.startswith(".") or name.lower() in _LITTER


def is_image(name: str) -> bool:
    """Whether a file of this name is taken for an image."""
    return not is_hidden(name) and name.lower().endswith(SUFFIXES)


def images_in(folder: Path) -> list[Path]:
    """The images that lie in a folder itself, sorted by name; raises a one-line ValueError if there are none."""
    found = sorted(path for path in folder.iterdir() if is_image(path.name))
    if not found:
        raise ValueError(f"no images there (looked for {' '.join(SUFFIXES)})")
    return found


def check_header(file: Path | BinaryIO) -> None:
    """Raises UnreadableImage if a file does not begin as an image does."""
    with _opened(file):
        pass


def read_image(file: Path | BinaryIO, channels: int, background: int | None = None) -> Image.Image:
    """A file's first frame, upright, with 8 bits a channel, in mode L for one channel and RGB for three.

    Args:
        file: its path, or what was opened.
        channels: 1 or 3.
        background: grey level put behind transparent parts; None refuses an image that has some.

    Raises:
        UnreadableImage: the file cannot be read, is too large, or has no such pixels.
    """
    with _opened(file) as opened:
        opened.load()
        image = ImageOps.exif_transpose(opened)
        if 0 in image.size:
            raise UnreadableImage("it has no pixels")
        if image.mode.startswith("F"):
            raise UnreadableImage("its pixels are fractions without a known range: save it with 8 or 16 bits a channel")
        if image.mode.startswith("I"):
            image = _eight_bits(image)
        if image.has_transparency_data:
            image = _opaque(image.convert("RGBA"), background)
        return image.convert("L" if channels == 1 else "RGB")


def fitted(image: Image.Image, height: int, width: int) -> Image.Image:
    """An image whose short side is resized, by Lanczos's kernel, and whose centre is cropped to height x width."""
    return ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)


def read_pixels(path: Path, channels: int, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """`read_image` as an array (H, W, C), `fitted` to a size (H, W) if one is given; refuses transparent parts."""
    image = read_image(path, channels)
    pixels = np.array(image if size is None else fitted(image, *size))
    return pixels.reshape(*pixels.shape[:2], channels)


@contextmanager
def _opened(file: Path | BinaryIO) -> Iterator[Image.Image]:
    """An image file; whatever goes wrong with it meanwhile becomes UnreadableImage."""
    try:
        if isinstance(file, Path) and file.exists() and not file.is_file():
            raise UnreadableImage("not a regular file")
        with Image.open(file) as image:
            yield image
    except UnreadableImage:
        raise
    except Image.UnidentifiedImageError as error:
        raise UnreadableImage("not an image") from error
    except OSError as error:
        raise UnreadableImage(error.strerror or _text(error)) from error
    except Exception as error:  # Pillow's decoders raise exceptions of every kind on damaged or odd files
        raise UnreadableImage(_text(error)) from error


def _text(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _eight_bits(image: Image.Image) -> Image.Image:
    """An image of 16 bits with 8; Pillow's own conversion clips at 255. 65535 = 255 * 257."""
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65535:
        raise UnreadableImage("it has more than 16 bits a channel: save it with 8")
    return Image.fromarray(np.rint(values / 257).astype(np.uint8))


def _opaque(image: Image.Image, background: int | None) -> Image.Image:
    """An image of mode RGBA over a grey level."""
    if background is None and image.getchannel("A").getextrema()[0] != 255:
        raise UnreadableImage("parts of it are transparent: save it on a background")
    return Image.alpha_composite(Image.new("RGBA", image.size, (background or 0,) * 3 + (255,)), image)
