"""Where images are, checked before anything slow is imported."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_PACKED = (".7z", ".gz", ".rar", ".tar", ".tgz", ".xz")


def check_source(source: Any) -> None:
    """Raises what `expanded` and `check_path` raise for the path of a configuration's folder of images.

    Args:
        source: `dataset.source` of a configuration.
    """
    if isinstance(source, Mapping) and source.get("_target_") == "data.folder.Folder":
        path = source.get("path")
        if isinstance(path, str | None):  # other kinds are refused with all settings of a wrong kind
            check_path(expanded(path))


def expanded(path: Any) -> Path:
    """What `dataset.path` names, with `~` expanded; raises ValueError if it is empty or no text."""
    if not isinstance(path, (str, Path)) or not str(path):
        raise ValueError("dataset=folder needs dataset.path=<folder of images, or a .zip of one>")
    try:
        return Path(path).expanduser()
    except RuntimeError:  # there is no such user, and so no such folder
        return Path(path)


def check_path(path: Path) -> None:
    """Looks whether a folder, or zip, of images is there.

    Raises:
        FileNotFoundError: nothing is there.
        NotADirectoryError: it is another file.
    """
    if path.is_file() and path.suffix.lower() != ".zip":
        packed = path.name.lower().endswith(_PACKED)
        what = (
            "an archive: unpack it first, and give the folder, or pack it as .zip"
            if packed
            else "a file: give a folder of images, or a .zip of one,"
        )
        raise NotADirectoryError(f"{path} is {what} by dataset.path=")
    if path.is_symlink() and not path.exists():
        raise FileNotFoundError(f"{path} is a symbolic link that leads to nothing: mend it, or give its target")
    if not path.is_dir() and not path.is_file():
        near = _nearest(path)
        hint = f" (did you mean {near}?)" if near else ""
        raise FileNotFoundError(f"{path}: no such folder{hint}; give a folder of images by dataset.path=")


def _nearest(path: Path) -> Path | None:
    """The folder or zip beside a missing one whose name is nearest."""
    if not path.parent.is_dir():
        return None
    try:
        beside = [each for each in path.parent.iterdir() if each.is_dir() or each.suffix.lower() == ".zip"]
    except OSError:  # it cannot be listed
        return None
    names = {each.name.lower(): each for each in beside}
    found = difflib.get_close_matches(path.name.lower(), names, n=1)
    return names[found[0]] if found else None
