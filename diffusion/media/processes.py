"""The forward process above the reverse one, at the same times: pictures of what a model undoes."""

from pathlib import Path

import numpy as np
from torch import Tensor

from diffusion import media

_GAP = 24  # pixels of white between the two processes
_WIDEST = 2048  # pixels of a strip, if its cells can be as small as _SMALLEST
_SMALLEST, _LARGEST = 96, 320


def animation(above: Tensor, below: Tensor, rows: int | None = None) -> list[media.Pixels]:
    """A frame for each of the states (T, n, *S) of two processes, one above the other, on the axes of above's last.

    `rows` is that of `media.picture`, of either process.
    """
    limit = _limit(above[-1])
    return [
        _stacked(*(media.picture(state, rows, limit) for state in states)) for states in zip(above, below, strict=True)
    ]


def strip(above: Tensor, below: Tensor) -> media.Pixels:
    """One picture: a column for each of the states (T, n, *S), the last first, one process above the other.

    Points are clouds on the axes of above's last state, each image is a row.
    """
    size = min(max(_WIDEST // len(above), _SMALLEST), _LARGEST)
    limit = _limit(above[-1])

    def table(states: Tensor) -> media.Pixels:
        if limit is not None:
            return media.grid(np.stack([media.cloud(state, limit, size) for state in states.flip(0)]), rows=1, gap=8)
        images = media.to_uint8(states.flip(0).transpose(0, 1).flatten(0, 1))
        return media.grid(media.upscale(images, size // 2), rows=states.shape[1], gap=4)

    return _stacked(table(above), table(below))


def save(
    path: str | Path, above: Tensor, below: Tensor, rows: int | None = None, fps: float = 5, hold: int = 10
) -> None:
    """Writes the two processes (T, n, *S) as an animation, or to a `.png` as a strip whose first column is the last
    state, the data; see `media.save_gif` for `fps` and `hold`."""
    if Path(path).suffix.lower() == ".png":
        media.save_picture(path, strip(above, below))
    else:
        media.save_gif(path, animation(above, below, rows), fps, hold)


def check_out(path: str | Path, show: str = "both") -> None:
    """Raises ValueError for a kind of file that is no picture, which `show` has to be."""
    if Path(path).suffix.lower() not in (".gif", ".webp", ".png"):
        raise ValueError(f"out={path}: show={show} is a picture: choose a name that ends in .gif, .webp or .png")


def _limit(state: Tensor) -> float | None:
    return media.axis_limit(state) if state.ndim == 2 else None


def _stacked(above: media.Pixels, below: media.Pixels) -> media.Pixels:
    gap = np.full((_GAP, *above.shape[1:]), 255, np.uint8)
    return np.concatenate((above, gap, below))
