"""Checks of numeric arguments; each message begins with the argument's name, and each refuses NaN."""

import math


def check_finite(**values: float) -> None:
    """Raises ValueError for a value that is infinite or NaN."""
    for name, value in values.items():
        if not math.isfinite(value):
            raise ValueError(f"{name} must be a finite number, got {value}")


def check_positive(**values: float) -> None:
    """Raises ValueError for a value that is not positive, infinite or NaN."""
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {value}")
