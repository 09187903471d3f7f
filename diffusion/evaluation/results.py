"""Scores that were saved: where they are, what they are of, and what decided them."""

import json
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from diffusion.build import ConfigError, canonical
from diffusion.media.atomic import check_regular
from diffusion.runs.checkpoints import find, read
from diffusion.runs.resume import CHANGEABLE
from diffusion.settings.idle import GO_TO
from diffusion.settings.training import Settings

SCORES = "scores"  # a run's folder of results, each in a folder of its own, beside the one that evaluate.py writes
_MOST_BYTES = 2**24  # of a file of figures
# What a run reports, where its data lie and how it is drawn from when nobody says more: no score depends on these.
_REPORTING = ("log_every", "val_every", "preview_every", "score_every", "resume")
_OWN_METHOD = ("sampler", "grid", "steps", "start_level")
_PLACES = ("dataset.source.data_dir", "dataset.source.download")
_NameOf = Callable[[str, Mapping[str, Any]], str | None]


@dataclass(frozen=True)
class Result:
    """The scores of one set of samples, or one likelihood.

    Args:
        file: that they were read from.
        run: what they are of: a run's folder, or samples.
        seed: of the run's training; None where it is no run's.
        noise_seed: of the samples.
        settings: everything else that decided them, by full name, of a part its choice.
        judged_by: what must be equal for scores to compare: the data, how many, the extractors.
        scores: by name.
        calls: of the network, a sample; None where nobody knows.
        seconds: that the samples took; likewise.
        device: that they took so long on.
        images: that the run had seen.
    """

    file: Path
    run: str
    seed: int | None
    noise_seed: int | None
    settings: Mapping[str, Any]
    judged_by: tuple[tuple[str, Any], ...]
    scores: Mapping[str, float]
    calls: int | None
    seconds: float | None
    device: str | None
    images: int | None


def folders(specs: Sequence[str]) -> list[Path]:
    """The folders of runs, and of other results, that were named.

    Args:
        specs: `last`, version numbers, run folders, or folders that hold some, or results.

    Raises:
        ValueError: there is none in one of these.
    """
    found: dict[Path, Path] = {}  # by what it is, however it is named
    for spec in specs:
        folder = Path(spec)
        if spec == "last" or spec.isdecimal():
            inside = [find(spec).folder]
        elif not folder.is_dir():
            raise ValueError(
                f"runs={spec}: there is no such folder; give version numbers, run folders or a folder of runs"
            )
        elif is_run(folder) or any(folder.glob("metrics*.json")):
            inside = [folder]
        else:
            runs = {path.parent for path in folder.rglob("config.yaml") if is_run(path.parent)}
            results = {path.parent for path in folder.rglob("metrics*.json")}
            others = {path for path in results if not runs & {path, *path.parents}}
            inside = sorted(runs | others, key=lambda path: (path.parent, len(path.name), path.name))
        if not inside:
            raise ValueError(f"runs={spec}: there are no runs and no scores in this folder")
        for each in inside:
            found.setdefault(each.resolve(), each)
    return list(found.values())


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run, which may have no checkpoint yet."""
    return (folder / "config.yaml").is_file()


def saved(folder: Path, name_of: _NameOf) -> list[Result]:
    """All results in a folder of a run, or in another folder.

    Args:
        folder: to read from.
        name_of: a part's choice, by its group and its description; None where it has none.
    """
    files = [*sorted(folder.glob("metrics*.json")), *sorted(folder.glob(f"{SCORES}/*/metrics*.json"))]
    return [result for file in files for result in results_of(file, name_of)]


def results_of(file: Path, name_of: _NameOf) -> Iterator[Result]:
    """The table of scores in a file that evaluate.py wrote, and each likelihood; ValueError if it is damaged."""
    record = record_of(file)
    try:
        if record.get("scores"):
            method = {name: value for name, value in record.items() if name not in (*_FACTS, *_JUDGED, "scores")}
            judged = {name: _hashable(record.get(name)) for name in _JUDGED}
            values = {name: _number(row["samples"]["value"]) for name, row in record["scores"].items()}
            yield _result(file, record, _method(method), judged, values, name_of)
        for kind, found in record.get("likelihood", {}).items():
            how = ("dataset", "split", "n", "steps", "tolerance", "probes", "unit")
            judged = {"likelihood": kind} | {name: _hashable(found.get(name)) for name in how}
            method = {"weights": found.get("weights")}
            values = {f"{kind} in {found['unit']}": _number(found["value"])}
            yield _result(file, found, method, judged, values, name_of)
    except (KeyError, TypeError, AttributeError, ArithmeticError) as error:
        raise ValueError(f"{file} is damaged ({type(error).__name__}: {error}): score its run again") from error


# In a record of scores: what they are judged by, and what decides none of them.
_JUDGED = ("dataset", "split", "n", "real", "extractors")
_FACTS = (
    *("checkpoint", "step", "seed", "classes", "notes", "likelihood", "samples"),
    *("calls", "calls_per_sample", "seconds", "device"),
)


def _method(record: Mapping[str, Any]) -> dict[str, Any]:
    """How samples were drawn: the sampler and its settings, the grid or else the times, the weights."""
    plain = ("weights", "conditioning_noise", "start_level")
    method = {name: record[name] for name in plain if name in record}
    if "sampler" in record:
        own = {name: value for name, value in record.items() if name not in (*plain, "sampler", "grid", "times")}
        method["sampler"] = {"_target_": f".{record['sampler']}"} | own
    if "times" in record:
        method["steps"] = len(record["times"]) - 1
        method |= {name: record[name] for name in ("grid" if "grid" in record else "times",)}
    return method


def _result(
    file: Path,
    record: Mapping[str, Any],
    method: Mapping[str, Any],
    judged: Mapping[str, Any],
    scores: Mapping[str, float],
    name_of: _NameOf,
) -> Result:
    checkpoint, step = record.get("checkpoint"), record["step"]
    common: dict[str, Any] = {
        "file": file, "judged_by": tuple(judged.items()), "scores": scores,
        "noise_seed": _known(record, "seed", int), "calls": _known(record, "calls_per_sample", int),
        "seconds": _known(record, "seconds", int | float), "device": _known(record, "device", str),
    }  # fmt: skip
    how = flat(method, name_of)
    cascade = "sampler" in record and "calls_per_sample" not in record and ", " in str(checkpoint)
    if checkpoint is None or cascade:
        what = str(record.get("samples") if checkpoint is None else checkpoint)
        return Result(run=what, seed=None, settings={"samples": what, **how}, images=None, **common)
    folder, config = _origin(file, Path(checkpoint))
    if not config.keys() >= {"seed", "trainer", "batch_size"}:  # a model that another program wrote
        return Result(run=str(folder), seed=None, settings={"model": str(folder), **how}, images=None, **common)
    trainer = config["trainer"]
    batches = _known(trainer, "accumulate_grad_batches", int) or 1
    images = _known(record, "step", int) * _known(config, "batch_size", int) * batches
    settings = _of_training(config, name_of) | _length(config, step) | how
    return Result(run=str(folder), seed=config["seed"], settings=settings, images=images, **common)


def _length(config: Mapping[str, Any], step: int) -> dict[str, Any]:
    """How far a run had come, and of how many steps, which a decaying learning rate knows. That of a whole run with a
    budget follows from the speed of its machine."""
    last = config["trainer"].get("max_steps")
    if last in (None, step):
        return {} if config.get("budget_minutes") is not None else {"trained steps": step}
    return {"trained steps": f"{step} of {last}"}


def record_of(file: Path) -> dict[str, Any]:
    """What a file of figures holds; ValueError if it is too large or no such file."""
    check_regular(file)
    if file.stat().st_size > _MOST_BYTES:
        raise ValueError(f"{file} is larger than any file of scores: move it away")
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is damaged ({error}): score its run again") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file} is damaged: score its run again")
    return found


def _origin(file: Path, checkpoint: Path) -> tuple[Path, dict[str, Any]]:
    """Folder and configuration of the run that scores in a file are of: the run whose folder holds the file, wherever
    it was moved, or that of the checkpoint.

    Raises:
        ValueError: neither is there.
    """
    named = checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint.parent
    holder = next((folder for folder in file.parents[:3] if is_run(folder)), None)
    moved = holder is not None and (holder.name, holder.parent.name) == (named.name, named.parent.name)
    for folder in [holder, named] if moved else [named]:
        if folder is not None and is_run(folder):
            return folder, config_of(folder)
    try:
        return checkpoint, read(checkpoint).config
    except ConfigError as error:
        raise ValueError(f"{file} has scores of {checkpoint}, which is not there any more: name its run") from error


def config_of(folder: Path) -> dict[str, Any]:
    """The configuration of a run; ValueError if it is damaged."""
    path = folder / "config.yaml"
    check_regular(path)
    try:
        with path.open(encoding="utf-8") as file:
            config = yaml.safe_load(file.read(_MOST_BYTES))
        json.dumps(config)  # an anchor inside itself has no end
        if all(isinstance(config[name], kind) for name, kind in (("trainer", dict), ("dataset", dict), ("seed", int))):
            return dict(config)
    except (ValueError, TypeError, LookupError, RecursionError, yaml.YAMLError):
        pass
    raise ValueError(f"{path} is damaged: it holds no configuration of a run")


def _of_training(config: Mapping[str, Any], name_of: _NameOf) -> dict[str, Any]:
    """What decides a run's weights, but for the seed. A shorthand is left out: its value stands where it goes to."""
    defaults = {field.name: field.default for field in fields(Settings) if field.default is not MISSING}
    skipped = {"seed", *_REPORTING, *_OWN_METHOD, *_PLACES, *CHANGEABLE, *GO_TO}
    return flat(canonical(defaults | dict(config)), name_of, skipped)


def flat(config: Mapping[str, Any], name_of: _NameOf, skipped: Container[str] = ()) -> dict[str, Any]:
    """Settings by their full names; of a part the choice of its group, or its class.

    Args:
        config: nested, with `_target_` in parts.
        name_of: as for `saved`.
        skipped: names to leave out.
    """
    found: dict[str, Any] = {}

    def walk(node: Mapping[str, Any], prefix: str) -> None:
        for key, value in node.items():
            name = prefix + key
            if name in skipped or key == "_target_":
                continue
            if isinstance(value, Mapping):
                target = value.get("_target_")
                if isinstance(target, str):
                    found[name] = name_of(name, value) or target.rpartition(".")[2]
                walk(value, f"{name}.")
            else:
                found[name] = _hashable(value)

    walk(config, "")
    return found


def _known(values: Mapping[str, Any], name: str, kind: Any) -> Any:
    """A value of this kind, or None where nobody knows it."""
    value = values.get(name)
    if value is not None and (isinstance(value, bool) or not isinstance(value, kind)):
        raise TypeError(f"{name} is {value!r:.40}")
    if isinstance(value, int) and abs(value) >= 2**63:
        raise TypeError(f"{name} is larger than any number that was written there")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is no number")
    return float(value)


def _hashable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return tuple((key, _hashable(value[key])) for key in sorted(value))
    return tuple(map(_hashable, value)) if isinstance(value, list | tuple) else value
