"""How good a model's samples are, or how likely data are under it.

Examples:
    python evaluate.py ckpt=last                         2,000 samples against test data: a table of scores
    python evaluate.py ckpt=last sampler=dpmpp_2m steps=10 devices=2
    python evaluate.py ckpt=[base,sr]                    the stages of a cascade
    python evaluate.py samples=x.npz dataset=fashion     samples of any program; or a folder of images
    python evaluate.py ckpt=last likelihood=vlb          the variational bound on test data, and where it comes from
    python evaluate.py ckpt=last likelihood=ode          the density of the probability-flow ODE
    python evaluate.py ckpt=3 split=val n=1000           run version_3, judged by validation data
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cli
from diffusion.build import check_source
from diffusion.settings.idle import refuse

if TYPE_CHECKING:
    from omegaconf import DictConfig


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
            raise ValueError(f"likelihood={self.likelihood} is that of data under a model: leave samples= out")
        if self.likelihood and isinstance(self.ckpt, list):
            raise ValueError(f"likelihood={self.likelihood} is that of data under one model: name one checkpoint")
        if self.samples and self.ckpt not in (None, ""):
            raise ValueError("ckpt= draws samples and samples= brings them: leave one out (samples= needs dataset=)")
        for name in ("out", "cache"):
            path = Path(vars(self)[name] or ".")
            blocking = next((place for place in (path, *path.parents) if place.is_file()), None)
            if blocking is not None:
                raise ValueError(f"{name}={path}: {blocking} is a file, and {name}= is a folder")
        if self.train_classifier and self.out is None:
            raise ValueError("train_classifier=true needs out=, the folder to write it to")

    def batch(self, shape: Sequence[int]) -> int:
        """Samples at a time: points are small."""
        return self.batch_size or (64 if len(shape) == 3 else 2000)

    def refuse_idle(self, typed: Iterable[str]) -> None:
        """Raises ConfigError, one line, if something was typed that would change nothing."""
        drawing, scoring = ("sampler", "grid", "conditioning_noise"), ("devices", "extractors", "cache")
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
        """Raises ValueError, one line, if nothing names what to evaluate, or the data that it needs."""
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


def main(config: "DictConfig") -> None:
    """Does what was asked for, prints it and writes it down."""
    from omegaconf import OmegaConf

    from diffusion.build import construct

    plain: Any = OmegaConf.to_container(config, resolve=True)
    dataset, sampler, grid = (plain.pop(group, None) for group in ("dataset", "sampler", "grid"))
    options: Options = construct(Options, plain)
    options.refuse_idle(cli.typed())
    options.refuse_unnamed(dataset is not None)

    # Only now what imports torch, which takes seconds.
    from diffusion.evaluation.classifiers import train_shipped
    from diffusion.evaluation.extractors import names
    from diffusion.evaluation.loading import loaded
    from diffusion.evaluation.table import everything
    from diffusion.runs import checkpoints

    options.extractors = names(options.extractors)
    if options.train_classifier:
        refuse_idle_data(dataset)
        dataset, splits = loaded(dataset, options.data_dir, options.download)
        if len(dataset["shape"]) != 3:
            raise ValueError(f"train_classifier=true needs images, and {dataset['name']} has none")
        train_shipped(dataset, *everything(splits.train), Path(str(options.out)))
        return
    if options.ckpt in (None, "", []):
        refuse_idle_data(dataset)
        score(dataset, options, [], {})
        return
    stages = options.ckpt if isinstance(options.ckpt, list) else [options.ckpt]
    found = [checkpoints.find(str(spec)) for spec in stages]
    path, contents = found[-1]
    dataset = contents["config"]["dataset"] if dataset is None else dataset
    refuse_idle_data(dataset)
    if options.likelihood and contents["config"].get("autoencoder"):
        raise ValueError(
            f"likelihood={options.likelihood} is that of data, and this model's is of latents: leave it out"
        )
    if options.likelihood is None:
        score(dataset, options, found, {"sampler": sampler, "grid": grid})
    else:
        likelihood(dataset, options, path, contents)


def refuse_idle_data(dataset: dict[str, Any]) -> None:
    """Raises ConfigError if `download` was typed for data that are never fetched."""
    check_source(dataset["source"])
    refuse(cli.typed(), () if "download" in dataset["source"] else ("download",), f"dataset={dataset['name']}")


def score(dataset: dict[str, Any], options: Options, stages: list[Any], method: dict[str, Any]) -> None:
    """The table of scores of samples: drawn from these checkpoints (path, contents), or given if there are none."""
    from diffusion.evaluation.cache import Cache
    from diffusion.evaluation.classifiers import class_count
    from diffusion.evaluation.files import check_samples, read_samples
    from diffusion.evaluation.judge import Judge
    from diffusion.evaluation.loading import check_classes, drawn, loaded
    from diffusion.evaluation.record import record_path
    from diffusion.machine.devices import devices
    from diffusion.media import check_writable
    from diffusion.runs.checkpoints import run_folder
    from diffusion.sampling.cascade import from_checkpoints
    from diffusion.sampling.conditions import Rows

    if options.samples is not None:
        check_samples(Path(options.samples))
    path, contents = stages[-1] if stages else (None, None)
    folder = Path(options.out) if options.out is not None else None if path is None else run_folder(path)
    if folder is not None:
        check_writable(folder)
    places, wanted = devices(options.devices, options.accelerator), options.n or 2000
    settings: dict[str, Any] = {"dataset": dataset["name"], "split": options.split}
    pipeline = given = None
    if options.samples is None:
        noise = options.conditioning_noise
        pipeline = from_checkpoints(stages, options.weights, None, noise, steps=options.steps, **method)
        settings |= {
            "checkpoint": ", ".join(str(stage) for stage, _ in stages), "weights": options.weights,
            "seed": options.seed,
            **({"conditioning_noise": noise} if noise else {}),
            "sampler": type(pipeline.sampler).__name__, **vars(pipeline.sampler), "times": pipeline.times.tolist(),
        }  # fmt: skip
    shape = None if pipeline is None else pipeline.shape
    dataset, splits = loaded(dataset, options.data_dir, options.download, shape)
    if len(dataset["shape"]) != 3:
        refuse(cli.typed(), ("extractors", "cache", "dataset.flip"), "points, which are scored as they are")
    if options.samples is not None:
        given = read_samples(Path(options.samples), dataset["shape"], wanted, class_count(splits.train.labels))
        wanted = len(given[0])
        settings |= {"samples": options.samples}
    if pipeline is not None:
        check_classes(pipeline.num_classes, splits, dataset["name"])
    cache = Cache(None if options.cache is None else Path(options.cache))
    judge = Judge(splits, options.split, wanted, dataset, options.extractors, cache, places[0])
    n = len(judge)
    if pipeline is not None:
        data, told = getattr(splits, options.split), judge.reference.told
        given = drawn(pipeline, data, told, options.seed, places, options.batch(pipeline.shape))
    assert given is not None
    fake, labels = given
    found = judge(fake[:n], None if labels is None else labels[:n])
    again = 2 * n - len(getattr(splits, options.split))
    if pipeline is not None and pipeline.condition is not None and isinstance(pipeline.given, Rows) and again > 0:
        found.notes.append(
            f"{again} of the {n} images that the model was told are those that it is judged by: split {options.split} "
            f"holds too few others"
        )
    print(f"{n} samples {'in ' + str(options.samples) if options.samples else 'of ' + str(path)} against as many of")
    print(f"{dataset['name']}, split {options.split}; [intervals]; docs/evaluation.md says what each score sees")
    print(found.text())
    if folder is not None:
        step = 0 if contents is None else contents["global_step"]
        found.write(folder, options.split, settings | {"n": n, "step": step}, step)
        print(f"written: {record_path(folder, options.split)}")


def likelihood(dataset: dict[str, Any], options: Options, path: Path, contents: dict[str, Any]) -> None:
    """The likelihood of data, with its terms."""
    from diffusion.evaluation.judge import Findings
    from diffusion.evaluation.likelihoods import Likelihood
    from diffusion.evaluation.loading import check_classes, loaded
    from diffusion.evaluation.record import record_path, write_likelihood
    from diffusion.machine.devices import devices
    from diffusion.media import check_writable
    from diffusion.runs import checkpoints
    from diffusion.sampling.conditions import condition_of

    folder = checkpoints.run_folder(path) if options.out is None else Path(options.out)
    check_writable(folder)
    kind, shape, step = str(options.likelihood), contents["config"]["dataset"]["shape"], contents["global_step"]
    # Densities need float64, which Apple's GPUs do not have.
    place = devices("auto", options.accelerator)[0].replace("mps", "cpu")
    denoiser = checkpoints.trained_denoiser(contents, path, options.weights).to(place)
    settings = {name: vars(options)[name] for name in ("seed", "steps", "tolerance", "probes")}
    condition = condition_of(contents["config"])
    measure = Likelihood(kind, denoiser, shape, dataset["clip"], condition=condition, **settings)
    splits = loaded(dataset, options.data_dir, options.download, shape)[1]
    check_classes(denoiser.num_classes, splits, dataset["name"])
    data = getattr(splits, options.split)
    if len(data) < 2:
        raise ValueError(f"split {options.split} of {dataset['name']} holds one example: a standard error needs two")
    count = min(options.n or 256, len(data))
    found = measure(data, count, options.batch(shape), place)
    print(f"{path} at step {step}, {options.weights} weights")
    print(f"{count} data of {dataset['name']}, split {options.split}, chosen at random")
    print(found.text)
    settings |= {"weights": options.weights, "dataset": dataset["name"], "checkpoint": str(path), "step": step}
    figures = {"n": count, "unit": found.unit, "value": found.value, "standard_error": found.standard_error}
    write_likelihood(folder, options.split, kind, settings | figures)
    Findings(pictures=found.pictures).draw(folder, options.split, step)
    print(f"written: {record_path(folder, options.split)}")


def entry() -> None:
    """The command line."""
    cli.run(main, "evaluate", __doc__ or "", "lower batch_size= (samples at a time) or n=")


if __name__ == "__main__":
    entry()
