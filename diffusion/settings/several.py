"""Settings that take one value or several."""

from typing import Any


def listed(value: Any) -> list[Any]:
    """The values of a setting: none of null, those of a list, else the one."""
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]
