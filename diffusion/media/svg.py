"""Curves as SVG, to stand inside a web page, whose style sheet colours them."""

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

WIDTH, HEIGHT = 640, 270
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 10, 40  # margins
MOST_POINTS = 400  # of one curve


class Scale(NamedTuple):
    """Values on an axis from `low` to `high`, placed from `first` to `last`."""

    low: float
    high: float
    first: float
    last: float
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        """Where a value is."""
        low, high, value = (math.log(v) if self.logarithmic else v for v in (self.low, self.high, value))
        return self.first + (self.last - self.first) * (value - low) / (high - low)


def curves(named: Mapping[str, Sequence[tuple[float, float]]], x_label: str, logarithmic: bool = False) -> str:
    """Curves through points (x, y) in one chart.

    The curve at place k has the class `curve-k`, and so has its name in the legend. Points that are not finite are
    left out; of more than `MOST_POINTS`, evenly spaced ones are drawn.

    Args:
        named: name -> points.
        x_label: of the axis.
        logarithmic: whether y may be, which it is where its values span more than a factor of ten.

    Returns:
        An `svg` element; nothing if there is no point to draw.
    """
    drawn = {name: thinned(filter(_finite, points)) for name, points in named.items()}
    points = [point for curve in drawn.values() for point in curve]
    if not points:
        return ""
    (x_low, y_low), (x_high, y_high) = (tuple(map(end, zip(*points, strict=True))) for end in (min, max))
    if x_low == x_high:
        x_high = x_low + 1
    if y_low == y_high:
        y_low, y_high = y_low - 0.5, y_high + 0.5
    x = Scale(x_low, x_high, LEFT, WIDTH - RIGHT)
    y = Scale(y_low, y_high, HEIGHT - BOTTOM, TOP, logarithmic and 0 < 10 * y_low < y_high)
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(", ".join(named))}">']
    for value in ticks(y):
        at = f"{y(value):.1f}"
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at}" y2="{at}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{at}" dy="0.35em" text-anchor="end">{value:.3g}</text>')
    for value in ticks(x):
        parts.append(f'<text x="{x(value):.1f}" y="{HEIGHT - 22}" text-anchor="middle">{value:g}</text>')
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 5}" text-anchor="end">{html.escape(x_label)}</text>')
    for k, (name, curve) in enumerate(drawn.items()):
        path = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in curve)
        if len(curve) == 1:
            across, down = path.split(",")
            parts.append(f'<circle class="curve-{k}" cx="{across}" cy="{down}" r="3"/>')
        elif curve:
            parts.append(f'<polyline class="curve-{k}" points="{path}"/>')
        parts.append(
            f'<text class="curve-{k}" x="{WIDTH - RIGHT}" y="{TOP + 12 + 16 * k}" text-anchor="end">'
            f"{html.escape(name)}</text>"
        )
    return "\n".join([*parts, "</svg>"])


def thinned(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most `MOST_POINTS` of them, evenly spaced, the first and the last among them."""
    every = list(points)
    if len(every) <= MOST_POINTS:
        return every
    return [every[round(k * (len(every) - 1) / (MOST_POINTS - 1))] for k in range(MOST_POINTS)]


def ticks(scale: Scale) -> list[float]:
    """Round numbers on an axis, from two to about seven."""
    if scale.logarithmic:
        lowest, highest = math.ceil(math.log10(scale.low)), math.floor(math.log10(scale.high))
        powers = range(lowest, highest + 1, max(1, (highest - lowest) // 6))
        if len(powers) > 2:
            return [10.0**power for power in powers]
        found = [m * 10.0**power for power in range(lowest - 1, highest + 1) for m in (1, 2, 5)]
        return [value for value in found if scale.low <= value <= scale.high]
    rough = (scale.high - scale.low) / 5
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(m * unit for m in (1, 2, 5, 10) if m * unit >= rough)
    return [k * step for k in range(math.ceil(scale.low / step), math.floor(scale.high / step) + 1)]


def _finite(point: tuple[float, float]) -> bool:
    return all(map(math.isfinite, point))
