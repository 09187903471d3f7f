"""The plain values of an export, with their types and ranges; nothing here imports torch, which takes seconds."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

# The settings that a kind of file alone has, by its suffix; none is a folder of diffusers.
SETTINGS: dict[str, tuple[str, ...]] = {
    ".html": ("half", "runtime"),
    ".onnx": (),
    ".safetensors": (),
    "": ("push", "dry_run"),
}


@dataclass
class Options:
    """The plain values of configs/export.yaml with their types."""

    ckpt: str | int | list[str | int] | None
    out: str | None
    weights: str | float
    half: bool | None
    runtime: str | None
    push: str | None
    dry_run: bool

    def __post_init__(self) -> None:
        if self.ckpt in (None, "", []):
            raise ValueError("ckpt= is missing: give last (the newest run), a version number, a run folder or a file")
        if isinstance(self.ckpt, list):
            raise ValueError(f"ckpt={self.ckpt} is a cascade, and an export holds one model: name one checkpoint")
        if not self.out:
            raise ValueError(f"out= is missing: give a file that ends in {_suffixes()}")
        suffix = Path(self.out).suffix.lower()
        if Path(self.out).name.lower() in SETTINGS:
            raise ValueError(f"out={self.out} is a suffix alone: give the file a name before it")
        if suffix not in SETTINGS:
            raise ValueError(f"out={self.out}: an export ends in {_suffixes()}, got {suffix}")

    def refuse_idle(self, typed: Iterable[str]) -> None:
        """Raises ValueError, one line, if something was typed that changes nothing of such a file."""
        typed = list(typed)
        for name in typed:
            owners = [suffix for suffix, names in SETTINGS.items() if name in names]
            if owners and Path(str(self.out)).suffix.lower() not in owners:
                raise ValueError(f"{name}= has no effect on out={self.out}: leave it out, or write {_suffixes(owners)}")
        if "dry_run" in typed and self.push is None:
            raise ValueError("dry_run= has no effect without push=user/name: leave it out, or say what to upload")


def _suffixes(suffixes: Iterable[str] | None = None) -> str:
    return " or ".join(suffix or "no suffix (a folder)" for suffix in (SETTINGS if suffixes is None else suffixes))
