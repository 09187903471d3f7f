"""What samples look like.

Samples are images (n, C, H, W) in [-1, 1] with C = 1 or 3, or 2-D points (n, 2). Pictures are uint8 arrays (H, W, C)
and an animation is a list of them.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Pixels = NDArray[np.uint8]

_CELL = 96  # pixels: what a person can see without zooming
_GAP = 112  # grey between cells: strokes that touch a cell's edge would run into black or white


_LARGEST_GRID = 1536  # pixels: cells shrink towards their own size so that many images still fit a screen


# Ink on paper: white, pale blue, blue, deep violet. Few enough colours that a GIF of clouds is exact and small.
_INK_STOPS = np.array([[255, 255, 255], [150, 190, 245], [62, 96, 214], [46, 22, 96]], dtype=np.float64)


_INK: Pixels = np.stack(
    [np.interp(np.linspace(0, 3, 48), np.arange(4), _INK_STOPS[:, channel]).round() for channel in range(3)], axis=1
).astype(np.uint8)


def quantised(x: Tensor) -> Tensor:
    """Images in [-1, 1] as uint8, `round((x + 1) * 127.5)` clamped, of the same shape; NaN becomes 0."""
    return x.nan_to_num(nan=-1.0).add(1).mul(127.5).round().clamp(0, 255).byte()


def to_uint8(x: Tensor) -> Pixels:
    """Images (n, C, H, W) in [-1, 1] as bytes (n, H, W, C), see `quantised`.

    The inverse of `pixel / 127.5 - 1` for all 256 values.
    """
    if x.ndim != 4:
        raise ValueError(f"images have the shape (n, C, H, W), not {tuple(x.shape)}")
    return quantised(x.detach().float()).permute(0, 2, 3, 1).contiguous().cpu().numpy()


def layout(n: int, rows: int | None = None) -> tuple[int, int]:
    """(rows, columns) of a grid of n cells: near-square, and never higher than wide, unless `rows` is given.

    Raises ValueError if n < 1 or `rows` is not in 1..n.
    """
    if n < 1:
        raise ValueError("there is nothing to draw: 0 samples")
    if rows is None:
        columns = math.ceil(math.sqrt(n))
        return math.ceil(n / columns), columns
    if not 1 <= rows <= n:
        raise ValueError(f"rows={rows} is not possible for {n} samples: choose 1 to {n}")
    return rows, math.ceil(n / rows)


def grid(images: Pixels, rows: int | None = None, gap: int = 2, background: int = 255) -> Pixels:
    """Images (n, H, W, C) side by side, row by row, `gap` pixels apart; missing cells show the background.

    Returns (rows * (H + gap) - gap, columns * (W + gap) - gap, C).
    """
    n, height, width, channels = images.shape
    rows, columns = layout(n, rows)
    cells = np.full((rows * columns, height + gap, width + gap, channels), background, np.uint8)
    cells[:n, :height, :width] = images
    table = cells.reshape(rows, columns, height + gap, width + gap, channels).swapaxes(1, 2)
    table = table.reshape(rows * (height + gap), columns * (width + gap), channels)
    return table[: rows * (height + gap) - gap, : columns * (width + gap) - gap]


def upscale(images: Pixels, min_cell: int = _CELL) -> Pixels:
    """Repeats the pixels of (..., H, W, C) by the smallest whole factor that makes the longer side >= `min_cell`."""
    factor = max(1, math.ceil(min_cell / max(images.shape[-3:-1])))
    return images.repeat(factor, axis=-3).repeat(factor, axis=-2)


def axis_limit(points: Tensor) -> float:
    """Half the side of the square around 0 that shows a cloud (n, 2): its 99.5 % quantile of |x| and a margin.

    Points that are not finite do not count; 1 where nothing is left.
    """
    values = points.detach().double().abs().cpu().numpy()
    values = values[np.isfinite(values)]
    limit = 1.15 * float(np.quantile(values, 0.995)) if values.size else 0.0
    return limit if limit > 0 else 1.0


def cloud(points: Tensor, limit: float | None = None, size: int = 320) -> Pixels:
    """The points (n, 2) as soft dots of ink on white, x to the right and y up, axes from -limit to limit.

    Returns (size, size, 3). Dots shrink and fade with n, not with where the points are, so frames of one animation
    compare. Points outside the limits or not finite are not drawn.
    """
    if points.ndim != 2 or points.shape[1] != 2:
        raise ValueError(f"2-D points have the shape (n, 2), not {tuple(points.shape)}")
    limit = axis_limit(points) if limit is None else limit
    xy = points.detach().double().cpu().numpy()
    xy = xy[np.isfinite(xy).all(axis=1)]
    n = max(1, len(points))
    radius = size / 320 * float(np.clip(1.7 * (1000 / n) ** 0.25, 1.0, 3.0))

    # Counting on a finer grid keeps slow dots from jumping by whole pixels, at a cost that does not grow with n.
    fine = 4 * size
    counts, _, _ = np.histogram2d(-xy[:, 1], xy[:, 0], bins=fine, range=[[-limit, limit]] * 2)
    distance = np.arange(size)[:, None] - ((np.arange(fine) + 0.5) / 4 - 0.5)[None, :]
    blur = np.exp(-0.5 * (distance / radius) ** 2)  # (size, fine); a lone point has the height 1
    density = blur @ counts @ blur.T
    gain = 2 / (1 + n / 2000)
    shades: Pixels = _INK[((len(_INK) - 1) * (1 - np.exp(-gain * density))).round().astype(np.uint8)]
    return shades


def picture(samples: Tensor, rows: int | None = None, limit: float | None = None) -> Pixels:
    """One picture of all samples: images (n, C, H, W) as an upscaled grid, points (n, 2) as a cloud.

    `rows` concerns images, `limit` points. Raises ValueError for any other shape.
    """
    if samples.ndim == 2:
        return cloud(samples, limit)
    images = to_uint8(samples)
    if images.shape[-1] not in (1, 3):
        raise ValueError(f"only images of 1 or 3 channels can be drawn, not {images.shape[-1]}: write .npz")
    room = _LARGEST_GRID // max(layout(len(images), rows)) - max(images.shape[1:3])
    cells = upscale(images, min(_CELL, room + 1))
    return grid(cells, rows, gap=max(2, cells.shape[1] // 12), background=_GAP)


def animation(states: Sequence[Tensor], rows: int | None = None) -> list[Pixels]:
    """A frame of equal size for each state, each (n, C, H, W) or (n, 2). All clouds have the axes of the last one."""
    if not states:
        raise ValueError("there is nothing to animate: 0 states")
    limit = axis_limit(states[-1]) if states[-1].ndim == 2 else None
    return [picture(state, rows, limit) for state in states]


def evenly(positions: Sequence[float], frames: int) -> list[int]:
    """At most `frames` distinct, rising indices of states, the first and the last among them, that are evenly spaced.

    Args:
        positions: of the states, (N,), on the scale on which they are to be even; `range(N)` for even in number.
        frames: how many; 1 is the last state alone.

    Raises:
        ValueError: `frames` is below 1, or there is no state.
    """
    n_states = len(positions)
    if n_states < 1 or frames < 1:
        raise ValueError(f"cannot choose {frames} frames of {n_states} states: both must be at least 1")
    frames = min(frames, n_states)
    places, chosen = np.asarray(positions, np.float64), [-1]
    for k, target in enumerate(np.linspace(places[0], places[-1], frames)[:-1]):
        free = slice(chosen[-1] + 1, n_states - frames + k + 1)  # leaves a state to each of the later frames
        chosen.append(free.start + int(np.abs(places[free] - target).argmin()))
    return [*chosen[1:], n_states - 1]
