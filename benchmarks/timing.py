"""What is made of times: medians, ratios taken side by side, laws, and what fell behind a stored run."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Law(NamedTuple):
    """`y = factor x^exponent`; `error` is the root mean square of the logarithms' residuals."""

    factor: float
    exponent: float
    error: float

    def __call__(self, x: float) -> float:
        return self.factor * x**self.exponent


def power_law(x: Sequence[float], y: Sequence[float]) -> Law:
    """Least squares in logarithms over the points (x, y), which have to be positive.

    Raises:
        ValueError: fewer than two different x.
    """
    if len(set(x)) < 2:
        raise ValueError("a law needs points at two different places")
    slope, start = statistics.linear_regression([math.log(a) for a in x], [math.log(b) for b in y])
    residuals = [math.log(b) - start - slope * math.log(a) for a, b in zip(x, y, strict=True)]
    return Law(math.exp(start), slope, math.sqrt(statistics.fmean(r * r for r in residuals)))


def ratios(seconds: Mapping[str, Sequence[float]], first: str) -> dict[str, float]:
    """How many times as fast as `first` each is: the median of the rounds' ratios, since a slow round is slow for all.

    Args:
        seconds: by name, one for each round.
        first: the name that the others are compared with.
    """
    return {
        name: statistics.median(a / b for a, b in zip(seconds[first], times, strict=True))
        for name, times in seconds.items()
    }


def fallen(stored: Mapping[str, float], found: Mapping[str, float], allowed: float) -> list[str]:
    """One line for each ratio of a stored run that fell by more than the share `allowed`, or was not measured now."""
    lines = []
    for name, before in stored.items():
        now = found.get(name)
        if now is None:
            lines.append(f"{name}: {before:.3g} in the stored run, not measured now")
        elif now < before * (1 - allowed):
            lines.append(f"{name}: {now:.3g}, {before:.3g} in the stored run, {100 * (1 - now / before):.0f} % less")
    return lines


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows in columns, as Markdown has them."""
    widths = [max(len(row[i]) for row in (heads, *rows)) for i in range(len(heads))]
    lines = [" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (heads, *rows)]
    return "\n".join(f"| {line} |" for line in (lines[0], " | ".join("-" * width for width in widths), *lines[1:]))
