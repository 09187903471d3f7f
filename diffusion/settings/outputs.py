"""The names of files that samples are written to: the suffix decides what is written."""

from pathlib import Path

SUFFIXES = {
    ".gif": "animation",
    ".webp": "lossless animation",
    ".png": "one grid",
    ".npz": "arrays",
    "": "a folder of one PNG an image",
}
ANIMATIONS = (".gif", ".webp")


def suffix_of(out: str | Path) -> str:
    """The suffix, in small letters, of a name that samples can be written to.

    Raises:
        ValueError: the name is empty, means the standard output, or has another suffix than those of `SUFFIXES`.
    """
    if not str(out):
        raise ValueError("out= is empty: name a file or a folder")
    if str(out) == "-":
        raise ValueError("out=- would be the standard output, and samples are written to files: name one")
    suffix = Path(out).suffix
    if suffix.lower() not in SUFFIXES:
        choices = ", ".join(f"{name or 'no suffix'} ({what})" for name, what in SUFFIXES.items())
        raise ValueError(f"out={out} ends in {suffix}, which is not known: choose {choices}")
    return suffix.lower()
