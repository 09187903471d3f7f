"""What an evaluation takes: of what, on which data, in which way."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from diffusion.build import construct
from diffusion.settings.devices import check_form
from diffusion.settings.idle import refuse
from diffusion.settings.kinds import check_kinds
from diffusion.settings.sampling import check_level


@dataclass
class Options:
    """The plain values of configs/evaluate.yaml with their types and ranges."""

    ckpt: str | int | list[str | int] | None
    conditioning_noise: float | None
    samples: str | None
    likelihood: str | None
    split: str
    n: int | None
    extractors: str | list[str] | None
    steps: int | None
    start_level: float | None
    tolerance: float | None
    probes: int | None
    seed: int
    weights: str | float
    batch_size: int | None
    devices: int | str | list[int]
    accelerator: str
    out: str | None
    cache: str | None
    data_dir: str | None
    download: bool
    train_classifier: bool

    def __post_init__(self) -> None:
        for name, lowest in {"n": 2, "steps": 1, "probes": 1, "batch_size": 1}.items():
            value = vars(self)[name]
            if value is not None and value < lowest:
                raise ValueError(f"{name} must be at least {lowest}, got {value}")
        for name in ("steps", "probes"):
            if (vars(self)[name] or 0) > 1_000_000:
                raise ValueError(f"{name} must be at most 1000000, got {vars(self)[name]}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be from 0 to 2**63 - 1, got {self.seed}")
        if self.tolerance is not None:
            if self.likelihood != "ode" or self.steps is not None:
                raise ValueError(
                    "tolerance= is of likelihood=ode, where it takes the place of steps=; leave out the other"
                )
            if not 1e-12 <= self.tolerance <= 0.1:
                raise ValueError(f"tolerance must be from 1e-12 to 0.1, got {self.tolerance}")
        allowed = {"likelihood": (None, "vlb", "ode"), "split": ("train", "val", "test")}
        for name, choices in allowed.items():
            if vars(self)[name] not in choices:
                said = " or ".join("null" if choice is None else choice for choice in choices)
                raise ValueError(f"{name} must be {said}, got {vars(self)[name]!r}")
        if self.likelihood and self.samples:
            raise ValueError(f"likelihood={self.likelihood} needs a model and data: leave samples= out")
        if self.likelihood and isinstance(self.ckpt, list):
            raise ValueError(f"likelihood={self.likelihood} needs one model: name one checkpoint")
        if self.samples and self.ckpt not in (None, ""):
            raise ValueError("ckpt= draws samples and samples= reads them: leave one out (samples= needs dataset=)")
        check_form(self.devices)
        check_level(self.start_level)
        for name in ("out", "cache"):
            path = Path(vars(self)[name] or ".")
            blocking = next((place for place in (path, *path.parents) if place.is_file()), None)
            if blocking is not None:
                raise ValueError(f"{name}={path}: {blocking} is a file, and {name}= is a folder")
        if self.train_classifier and self.out is None:
            raise ValueError("train_classifier=true needs out=, the folder to write it to")

    def checkpoints(self) -> list[str]:
        """What was named: none, one or the stages of a cascade."""
        if self.ckpt in (None, "", []):
            return []
        return [str(spec) for spec in (self.ckpt if isinstance(self.ckpt, list) else [self.ckpt])]

    def batch(self, shape: Sequence[int]) -> int:
        """Samples at a time: points are small."""
        return self.batch_size or (64 if len(shape) == 3 else 2000)

    def refuse_idle(self, typed: Iterable[str]) -> None:
        """Raises ConfigError, one line, if something was typed that would change nothing."""
        drawing, scoring = ("sampler", "grid", "start_level", "conditioning_noise"), ("devices", "extractors", "cache")
        what = "a table of scores"
        if self.train_classifier:
            read = ("train_classifier", "out", "data_dir", "download")
            what, idle = "train_classifier=true", (*drawing, *(f.name for f in fields(self) if f.name not in read))
        elif self.likelihood:
            what, idle = f"likelihood={self.likelihood}", (*drawing, *scoring, "dataset.flip")
        elif self.samples:
            what, idle = "samples=", (*drawing, "steps", "seed", "weights", "batch_size", "devices")
        else:
            idle = ()
        refuse(typed, idle, what)
        refuse(typed, () if self.likelihood == "ode" else ("probes",), what)
        refuse(typed, () if self.likelihood else ("dataset.clip",), what)
        refuse(typed, ("dataset.shape", "dataset.num_classes", "dataset.recipe"), "an evaluation")

    def refuse_unnamed(self, has_dataset: bool) -> None:
        """Raises ValueError, one line, if nothing names what to evaluate, or the data or stages that it needs."""
        if self.train_classifier:
            if not has_dataset:
                raise ValueError("train_classifier=true needs dataset=..., the data to train it on")
            return
        if self.samples is not None and not has_dataset:
            raise ValueError(
                f"dataset= is missing: samples={self.samples} are scored against data, add dataset=fashion, say"
            )
        if self.samples is None and self.ckpt in (None, "", []):
            raise ValueError(
                "ckpt= is missing: give last (the newest run), a version number, a run folder or a file; "
                "or samples=... with dataset=..."
            )
        if self.conditioning_noise is not None and len(self.checkpoints()) == 1:
            raise ValueError("conditioning_noise belongs to a cascade: give its stages, ckpt=[base,sr]")


def read(config: Mapping[str, Any], typed: Iterable[str]) -> tuple[Options, dict[str, Any] | None, dict[str, Any]]:
    """The checked values of a composed configuration; the data that were asked for; and the sampler and the grid, by
    these names, each None where the model's own is to be used.

    Raises:
        ConfigError: a value that cannot be, or changes nothing, or a missing one.
    """
    plain = dict(config)
    check_kinds(plain, typed)
    dataset = plain.pop("dataset", None)
    method = {name: plain.pop(name, None) for name in ("sampler", "grid")}
    options: Options = construct(Options, plain)
    options.refuse_idle(typed)
    options.refuse_unnamed(dataset is not None)
    return options, dataset, method
