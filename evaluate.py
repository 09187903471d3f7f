"""How good a model's samples are, or how likely data are under it.

Examples:
    python evaluate.py ckpt=last                         2,000 samples against test data: a table of scores
    python evaluate.py ckpt=last sampler=dpmpp_2m steps=10 devices=2
    python evaluate.py samples=x.npz dataset=fashion     samples of any program; or a folder of images
    python evaluate.py ckpt=last likelihood=vlb          the variational bound on test data, and where it comes from
    python evaluate.py ckpt=last likelihood=ode          the density of the probability-flow ODE
    python evaluate.py ckpt=3 split=val n=1000           run version_3, judged by validation data
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cli

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from data.stream import Splits


@dataclass
class Options:
    """The plain values of configs/evaluate.yaml with their types and ranges."""

    ckpt: str | int | None
    samples: str | None
    likelihood: str | None
    split: str
    n: int | None
    extractors: str | list[str]
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
        """Raises ValueError, one line, if something was typed that would change nothing."""
        drawing, scoring = ["sampler", "grid"], ["devices", "extractors", "cache"]
        if self.likelihood:
            idle, what = [*drawing, *scoring], f"likelihood={self.likelihood}"
        elif self.samples:
            idle, what = [*drawing, "steps", "seed", "weights", "batch_size"], "samples="
        else:
            idle, what = [], "a table of scores"
        idle += [] if self.likelihood == "ode" else ["probes"]
        for name in typed:
            if name.partition(".")[0] in idle:
                raise ValueError(f"{name}= does nothing for {what}: leave it out")


def main(config: "DictConfig") -> None:
    """Does what was asked for, prints it and writes it down."""
    from omegaconf import OmegaConf

    from diffusion import checkpoint
    from diffusion.build import construct
    from diffusion.evaluation.extractors import names
    from diffusion.evaluation.scores import everything
    from diffusion.evaluation.weights import train_shipped

    plain: Any = OmegaConf.to_container(config, resolve=True)
    dataset, sampler, grid = (plain.pop(group, None) for group in ("dataset", "sampler", "grid"))
    options: Options = construct(Options, plain)
    options.refuse_idle(cli.typed())
    options.extractors = names(options.extractors)
    if options.train_classifier:
        if dataset is None:
            raise ValueError("train_classifier=true needs dataset=..., the data to train it on")
        splits = load(dataset, options)
        if len(dataset["shape"]) != 3:
            raise ValueError(f"train_classifier=true needs images, and {dataset['name']} has none")
        train_shipped(dataset, *everything(splits.train), Path(str(options.out)))
        return
    if options.ckpt in (None, ""):
        if dataset is None or options.samples is None:
            raise ValueError(
                "ckpt= is missing: give last (the newest run), a version number, a run folder or a file; "
                "or samples=... with dataset=..."
            )
        score(dataset, options, None, None, {})
        return
    path, contents = checkpoint.find(str(options.ckpt))
    dataset = contents["config"]["dataset"] if dataset is None else dataset
    if options.likelihood and contents["config"].get("autoencoder"):
        raise ValueError(
            f"likelihood={options.likelihood} is that of data, and this model's is of latents: leave it out"
        )
    if options.likelihood is None:
        score(dataset, options, path, contents, {"sampler": sampler, "grid": grid})
    else:
        likelihood(dataset, options, path, contents)


def load(dataset: dict[str, Any], options: Options, shape: Sequence[int] | None = None) -> "Splits":
    """The data of a dataset's configuration, from where the options say.

    Args:
        dataset: gets the data's shape.
        options: what was typed.
        shape: of the model's samples, if there is one.

    Raises:
        ValueError: the data have another shape; before they are read.
    """
    from diffusion.build import build

    source = dict(dataset["source"])
    name = next((name for name in ("data_dir", "path") if name in source), None)
    if options.data_dir is not None:
        if name is None:
            raise ValueError(f"data_dir={options.data_dir}: {dataset['name']} does not come from files")
        source[name] = options.data_dir
    elif name == "data_dir" and source[name] is None:
        source[name] = "data/raw"
    if "download" in source:
        source["download"] = options.download
    built = build(source, "dataset.source")
    if shape is not None and list(built.shape) != list(shape):
        raise ValueError(
            f"dataset={dataset['name']} has data of shape {tuple(built.shape)}, and the model's are {tuple(shape)}: "
            f"leave dataset= out, or name the one that it was trained on"
        )
    dataset["shape"] = list(built.shape)  # of a folder, known only now
    splits: Splits = built.load()
    return splits


def score(dataset: dict[str, Any], options: Options, path: Path | None, contents: Any, method: dict[str, Any]) -> None:
    """The table of scores of samples, drawn or given."""
    import torch
    from tqdm import tqdm

    from diffusion.checkpoint import run_folder
    from diffusion.devices import devices
    from diffusion.evaluation.cache import Cache
    from diffusion.evaluation.files import read_samples
    from diffusion.evaluation.judge import Judge
    from diffusion.evaluation.record import record_path
    from diffusion.evaluation.weights import class_count
    from diffusion.media import quantised
    from diffusion.sampling import Pipeline, frames_on

    places, wanted = devices(options.devices, options.accelerator), options.n or 2000
    settings: dict[str, Any] = {"dataset": dataset["name"], "split": options.split}
    if options.samples is None:
        pipeline = Pipeline.from_checkpoint(contents, str(path), options.weights, steps=options.steps, **method)
        settings |= {
            "checkpoint": str(path), "weights": options.weights, "seed": options.seed,
            "sampler": type(pipeline.sampler).__name__, **vars(pipeline.sampler), "times": pipeline.times.tolist(),
        }  # fmt: skip
    splits = load(dataset, options, None if contents is None else pipeline.shape)
    if options.samples is not None:
        fake, labels = read_samples(Path(options.samples), dataset["shape"], wanted, class_count(splits.train.labels))
        wanted = len(fake)
        settings |= {"samples": options.samples}
    cache = Cache(None if options.cache is None else Path(options.cache))
    judge = Judge(splits, options.split, wanted, dataset, options.extractors, cache, places[0])
    n = len(judge)
    if options.samples is not None:
        fake, labels = fake[:n], None if labels is None else labels[:n]
    else:
        batch = options.batch(pipeline.shape)
        steps = math.ceil(math.ceil(n / len(places)) / batch) * len(pipeline.times)
        with tqdm(total=steps, unit="step", desc="sampling", leave=False, disable=None) as bar:
            drawn = frames_on(places, pipeline, range(n), options.seed, None, batch, after_step=bar.update)[-1]
        bad = (~drawn.isfinite()).flatten(1).any(1).sum()  # asked before they are bytes, which are always finite
        if bad:
            raise ValueError(
                f"{bad} of {n} samples are not finite: the model or its sampler diverged; nothing was scored"
            )
        fake = quantised(drawn) if drawn.ndim == 4 else drawn
        labels = pipeline.labels(torch.arange(n), None)
    found = judge(fake, labels)
    print(f"{n} samples {'in ' + str(options.samples) if options.samples else 'of ' + str(path)} against as many of")
    print(f"{dataset['name']}, split {options.split}; [intervals]; docs/evaluation.md says what each score sees")
    print(found.text())
    folder = Path(options.out) if options.out is not None else None if path is None else run_folder(path)
    if folder is not None:
        step = 0 if contents is None else contents["global_step"]
        found.write(folder, options.split, settings | {"n": n, "step": step}, step)
        print(f"written: {record_path(folder, options.split)}")


def likelihood(dataset: dict[str, Any], options: Options, path: Path, contents: dict[str, Any]) -> None:
    """The likelihood of data, with its terms."""
    from diffusion import checkpoint
    from diffusion.devices import devices
    from diffusion.evaluation import likelihoods
    from diffusion.evaluation.judge import Findings
    from diffusion.evaluation.pictures import bound_picture
    from diffusion.evaluation.record import record_path, write_likelihood

    place = devices("auto", options.accelerator)[0].replace(
        "mps", "cpu"
    )  # densities need float64, which Apple's GPUs do not have
    denoiser = checkpoint.trained_denoiser(contents, path, options.weights).to(place)
    size, eight_bit = math.prod(dataset["shape"]), dataset["clip"]
    if options.likelihood == "vlb":
        times = likelihoods.bound_times(denoiser, options.steps)
        compute = likelihoods.bound(denoiser, times, options.seed, eight_bit)
    else:
        compute = likelihoods.density(
            denoiser, options.seed, size, eight_bit, options.steps, options.tolerance, options.probes
        )
    data = getattr(load(dataset, options, contents["config"]["dataset"]["shape"]), options.split)
    count = min(options.n or 256, len(data))
    nats, values = likelihoods.evaluated(
        compute, data, count, options.batch(dataset["shape"]), place, labelled=denoiser.num_classes > 0
    )
    terms = nats / math.log(2) if eight_bit else nats
    unit = "bits/dim" if eight_bit else "nats/dim"
    print(f"{path} at step {contents['global_step']}, {options.weights} weights")
    print(f"{count} data of {dataset['name']}, split {options.split}, chosen at random")
    if eight_bit and values < 256:
        print(f"these pixels have {values} different values, not 256: compare with other models of this set alone")
    folder = checkpoint.run_folder(path) if options.out is None else Path(options.out)
    step = contents["global_step"]
    if options.likelihood == "ode":
        print(likelihoods.density_report(terms, unit))
        values_of, picture = terms[:, 0], {}
    else:
        print(likelihoods.bound_report(terms, unit))
        values_of, picture = terms.sum(1), {"vlb_terms": bound_picture(times, terms, unit)}
    mean, error = likelihoods.mean_and_error(values_of)
    settings = {name: vars(options)[name] for name in ("weights", "seed", "steps", "tolerance", "probes")}
    settings |= {"dataset": dataset["name"], "checkpoint": str(path), "step": step, "n": count}
    write_likelihood(
        folder,
        options.split,
        str(options.likelihood),
        settings | {"unit": unit, "value": mean, "standard_error": error},
    )
    Findings(pictures=picture).draw(folder, options.split, step)
    print(f"written: {record_path(folder, options.split)}")


def entry() -> None:
    """The command line."""
    cli.run(main, "evaluate", __doc__ or "")


if __name__ == "__main__":
    entry()
