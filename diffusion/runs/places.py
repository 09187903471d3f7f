"""Where checkpoints are, by what people type. Nothing here imports torch: what is not there is refused at once."""

import re
from collections.abc import Sequence
from pathlib import Path

from diffusion.build import ConfigError
from diffusion.exchange.folders import is_folder

ROOT = Path("lightning_logs")


class CheckpointError(ConfigError):
    """A checkpoint that is missing, torn, or not ours; its text is one line."""


def is_exchanged(path: Path) -> bool:
    """Whether this is a `.safetensors` file or a model folder of diffusers."""
    return path.suffix.lower() == ".safetensors" or is_folder(path)


def runs(root: Path = ROOT) -> list[Path]:
    """Run folders that hold a checkpoint, newest checkpoint first."""
    newest = {
        folder: max((file.stat().st_mtime_ns for file in (folder / "checkpoints").glob("*.ckpt")), default=None)
        for folder in root.glob("*/version_*")
    }
    dated = [(time, folder) for folder, time in newest.items() if time is not None]
    return [folder for _, folder in sorted(dated, reverse=True)]


def numbered(spec: str, dataset: str | None = None, root: Path = ROOT) -> list[Path]:
    """The run folders with this number, newest checkpoint first; see `place`."""
    return [run for run in runs(root) if run.name == f"version_{spec}" and dataset in (None, run.parent.name)]


def place(spec: str, dataset: str | None = None, root: Path = ROOT) -> Path:
    """A run folder, a checkpoint or a model folder by what people type: `last`, a version number, or a path.

    Args:
        spec: what was typed.
        dataset: looks for `last` and numbers among the runs of this dataset only.
        root: where the runs are.

    Raises:
        CheckpointError: nothing is there.
    """
    if not spec:
        raise CheckpointError(
            "no checkpoint is named: give last (the newest run), a version number, a folder or a file"
        )
    if re.match(r"[a-z][a-z0-9+.-]*://", spec):
        raise CheckpointError(f"{spec} is an address: download the checkpoint first, then give its path")
    found = runs(root)
    candidates = [run for run in found if dataset in (None, run.parent.name)]
    among = f"in {root / (dataset or '')}"
    if spec == "last":
        if not candidates:
            command = "python train.py" + (f" dataset={dataset}" if dataset else "")
            raise CheckpointError(
                f"there is no run with a checkpoint {among} yet: train one with {command}{_others(found)}"
            )
        return candidates[0]
    if spec.isdecimal():
        if not (same := numbered(spec, dataset, root)):
            raise CheckpointError(f"there is no run version_{spec} {among}{_others(candidates or found)}")
        return same[0]
    path = Path(spec)
    try:
        path.exists()
    except OSError as error:  # a name that is too long for a file's, say
        raise CheckpointError(f"there is no checkpoint {spec[:60]}...: {error.strerror}") from error
    if path.name == "checkpoints" and path.is_dir():
        path = path.parent
    if not path.exists() and (meant := _meant(spec, found)):
        raise CheckpointError(f"there is no checkpoint {spec}: did you mean {' or '.join(meant)}?")
    if path.is_dir() and not is_exchanged(path):
        inside = [run for run in runs(path.parent) + runs(path) if run.is_relative_to(path)]
        if inside and not (path / "checkpoints").is_dir():
            raise CheckpointError(f"{path} is a folder of runs, name one{_others(inside)}")
        if not any((path / "checkpoints").glob("*.ckpt")):
            raise CheckpointError(f"{path} holds no checkpoint in checkpoints/")
    elif path.is_file() and (path.suffix in (".yaml", ".csv") or (path.parent / "checkpoints").is_dir()):
        raise CheckpointError(f"{path} is a file of a run and no checkpoint: give the run folder, {path.parent}")
    elif not path.is_file() and not path.is_dir():
        raise CheckpointError(
            f"there is no checkpoint {path}: give last (the newest run), a version number, a run folder or a file"
        )
    return path


def _meant(spec: str, found: Sequence[Path]) -> list[str]:
    """What stands under a name that is not quite a checkpoint's: `digits`, `version_0`, `best`, `newest`, `a\\b`."""
    path = Path(spec.replace("\\", "/").strip())
    if spec.lower() in ("latest", "newest", "true", "yes", "latest.ckpt", "last.ckpt", "-1"):
        return ["last"]
    if path.stem == "best" and found:
        return [str(found[0] / "checkpoints" / "best.ckpt")]
    files = [path, path.with_name(f"{path.name}.ckpt"), path.with_suffix(".ckpt")] if path.name else []
    if existing := [str(file) for file in files if file.exists()]:
        return existing[:1]
    numbered = path.with_name(f"version_{path.name}") if path.name else path
    runs_there = [run for run in found if run.parts[-len(path.parts) :] in (path.parts, numbered.parts)]
    of_folder = [run for run in found if path.parts in (run.parent.parts, run.parent.parts[-1:], run.parts[:-1])]
    siblings = [run for run in found if run.parent == path.parent]
    return [str(run) for run in sorted(runs_there or of_folder or siblings, key=by_number)]


def by_number(run: Path) -> tuple[str, int]:
    """The order of run folders in a list: version_2 before version_10."""
    return str(run.parent), int(run.name.removeprefix("version_")) if run.name[8:].isdecimal() else -1


def _others(found: Sequence[Path]) -> str:
    return "; runs with a checkpoint: " + (", ".join(map(str, sorted(found, key=by_number))) or "none")
