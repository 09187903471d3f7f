"""What stands in the place of what takes long, where scripts are given odd values."""

from types import FrameType
from typing import Any

SECONDS = 60


class Reached(BaseException):
    """The script has checked everything and would begin."""


def begun(*_: Any, **__: Any) -> Any:
    raise Reached


def late(number: int, frame: FrameType | None) -> None:
    raise AssertionError(f"it did not end within {SECONDS} s")
