"""The forms of `devices=`, before anybody looks which devices there are."""


def check_form(devices: int | str | list[int]) -> None:
    """Raises ValueError, one line, unless `devices` is auto, a number of at least 1, or a list."""
    if isinstance(devices, str) and devices != "auto":
        raise ValueError(f"devices must be auto, a number, or a list of GPU indices like [0,1], got {devices!r}")
    if isinstance(devices, int) and devices < 1:
        raise ValueError(f"devices must be at least 1, got {devices}")
