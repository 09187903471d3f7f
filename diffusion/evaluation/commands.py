"""What `evaluate.py` does: a table of scores, a likelihood, or a classifier to ship."""

import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from diffusion.build import ConfigError, check_source
from diffusion.denoisers import TrainableDenoiser
from diffusion.evaluation.cache import Cache, fingerprint
from diffusion.evaluation.classifiers import class_count, train_shipped
from diffusion.evaluation.extractors import names
from diffusion.evaluation.files import check_samples, read_samples
from diffusion.evaluation.judge import Findings, Judge
from diffusion.evaluation.likelihoods import Likelihood
from diffusion.evaluation.loading import check_classes, draw_samples, loaded
from diffusion.evaluation.record import record_path, write_likelihood
from diffusion.evaluation.table import everything
from diffusion.machine.devices import device_names, devices
from diffusion.media import check_writable
from diffusion.runs.checkpoints import Checkpoint, find, newest_good
from diffusion.runs.parts import Parts
from diffusion.runs.places import CheckpointError
from diffusion.runs.report import write_report
from diffusion.runs.trained import load_model
from diffusion.sampling import Pipeline
from diffusion.sampling.cascade import cascade_of
from diffusion.sampling.conditions import Rows
from diffusion.sampling.drawing import with_sampler
from diffusion.settings.evaluation import Options
from diffusion.settings.idle import refuse
from diffusion.terminal.streams import result


def data_of(dataset: dict[str, Any] | None, model: Checkpoint | None, typed: Collection[str]) -> dict[str, Any]:
    """The data that were asked for, or those that the model was trained on.

    Raises:
        ConfigError: `download` was typed for data that are never fetched.
    """
    if dataset is None:
        assert model is not None
        dataset = model.config["dataset"]
    check_source(dataset["source"])
    refuse(typed, () if "download" in dataset["source"] else ("download",), f"dataset={dataset['name']}")
    return dataset


def train_classifier(options: Options, dataset: dict[str, Any] | None, typed: Collection[str]) -> None:
    """Trains the classifier whose features score images of a data set, and writes it to a folder."""
    dataset, splits = loaded(data_of(dataset, None, typed), options.data_dir, options.download)
    if len(dataset["shape"]) != 3:
        raise ConfigError(f"train_classifier=true needs images, and {dataset['name']} has none")
    train_shipped(dataset, *everything(splits.train), Path(str(options.out)))


def score(
    options: Options,
    dataset: dict[str, Any] | None,
    method: dict[str, Any],
    typed: Collection[str],
    say: Callable[[str], object] = print,
) -> None:
    """The table of scores of samples, drawn from checkpoints by this sampler and grid, or given; `say` prints it."""
    extractors = names(options.extractors)
    if options.samples is not None:
        check_samples(Path(options.samples))
    stages = [find(spec) for spec in options.checkpoints()]
    model = stages[-1] if stages else None
    dataset = data_of(dataset, model, typed)
    folder = Path(options.out) if options.out is not None else None if model is None else model.folder
    if folder is not None:
        check_writable(folder)
    places, wanted = devices(options.devices, options.accelerator), options.n or 2000
    settings: dict[str, Any] = {"dataset": dataset["name"], "split": options.split}
    pipeline = given = None
    if options.samples is None:
        noise = options.conditioning_noise
        asked: dict[str, Any] = {"steps": options.steps, "start_level": options.start_level, **method}
        if len(stages) == 1:
            pipeline = Pipeline.from_checkpoint(stages[0], options.weights, **asked)
        else:
            pipeline = cascade_of(stages, options.weights, None, noise, **asked)
        settings |= {
            "checkpoint": ", ".join(str(stage.path) for stage in stages), "weights": options.weights,
            "seed": options.seed,
            **({"conditioning_noise": noise} if noise else {}),
            **({"start_level": pipeline.first_level} if pipeline.times[0] < 1 else {}),
            "times": pipeline.times.tolist(),
            **({"grid": method.get("grid") or stages[0].config["grid"]} if len(stages) == 1 else {}),
        }  # fmt: skip
    shape = None if pipeline is None else pipeline.shape
    dataset, splits = loaded(dataset, options.data_dir, options.download, shape)
    if len(dataset["shape"]) != 3:
        refuse(typed, ("extractors", "cache", "dataset.flip"), "points, which are scored as they are")
    if options.samples is not None:
        given = read_samples(Path(options.samples), dataset["shape"], wanted, class_count(splits.train.labels))
        wanted = len(given[0])
        settings |= {"samples": options.samples}
    if pipeline is not None:
        check_classes(pipeline.num_classes, splits, dataset["name"])
    cache = Cache(None if options.cache is None else Path(options.cache))
    trained_on = None if model is None else model.config.get("train_images")
    judge = Judge(splits, options.split, wanted, dataset, extractors, cache, places[0], trained_on)
    n = len(judge)
    if pipeline is not None:
        data, conditioning = getattr(splits, options.split), judge.reference.conditioning
        began = time.monotonic()
        given = draw_samples(pipeline, data, conditioning, options.seed, places, options.batch(pipeline.shape))
        settings |= {"seconds": time.monotonic() - began, "device": device_names(places)}
        settings |= {"calls_per_sample": pipeline.calls} if len(stages) == 1 else {}
    assert given is not None
    fake, labels = given
    found = judge(fake[:n], None if labels is None else labels[:n])
    again = 2 * n - len(getattr(splits, options.split))
    if pipeline is not None and pipeline.condition is not None and isinstance(pipeline.given, Rows) and again > 0:
        found.notes.append(
            f"{again} of the {n} images that the model was conditioned on are those that it is judged by: split "
            f"{options.split} holds too few others"
        )
    origin = f"in {options.samples}" if model is None else f"of {model.path}"
    say(f"{n} samples {origin} against as many of")
    say(f"{dataset['name']}, split {options.split}; [intervals]; docs/evaluation.md says what each score sees")
    (result if say is print else say)(found.text())  # quiet=true prints the table too
    if folder is not None:
        step = 0 if model is None else model.step
        settings |= {"n": n, "real": fingerprint(judge.reference.real), "step": step}
        if pipeline is not None:
            settings = with_sampler(settings, pipeline.sampler)
        found.write(folder, options.split, settings, step)
        write_report(folder, _furthest(folder, step))
        say(f"written: {record_path(folder, options.split)}")


def likelihood(options: Options, dataset: dict[str, Any] | None, typed: Collection[str]) -> None:
    """The likelihood of data, with its terms."""
    (spec,) = options.checkpoints()
    checkpoint = find(spec)
    dataset = data_of(dataset, checkpoint, typed)
    if checkpoint.config.get("autoencoder"):
        raise ConfigError(
            f"likelihood={options.likelihood} is that of data, and this model's is of latents: leave it out"
        )
    folder = checkpoint.folder if options.out is None else Path(options.out)
    check_writable(folder)
    parts, kind, step = Parts(checkpoint.config), str(options.likelihood), checkpoint.step
    if parts.tunes:
        raise ConfigError(
            f"likelihood={kind}: {checkpoint.path} is tuned for few calls and has no likelihood, since its outputs "
            f"are no posterior means: measure the model that it was tuned from"
        )
    # Densities need float64, which Apple's GPUs do not have.
    place = devices("auto", options.accelerator)[0].replace("mps", "cpu")
    denoiser: TrainableDenoiser = load_model(checkpoint, weights=options.weights).to(place)
    settings = {name: vars(options)[name] for name in ("seed", "steps", "tolerance", "probes")}
    measure = _measure(kind, denoiser, parts, dataset["clip"], settings)
    splits = loaded(dataset, options.data_dir, options.download, parts.shape)[1]
    check_classes(denoiser.num_classes, splits, dataset["name"])
    data = getattr(splits, options.split)
    if len(data) < 2:
        raise ValueError(f"split {options.split} of {dataset['name']} holds one example: a standard error needs two")
    count = min(options.n or 256, len(data))
    found = measure(data, count, options.batch(parts.shape), place)
    print(f"{checkpoint.path} at step {step}, {options.weights} weights")
    print(f"{count} data of {dataset['name']}, split {options.split}, chosen at random")
    result(found.text)
    settings |= {
        "weights": options.weights,
        "dataset": dataset["name"],
        "checkpoint": str(checkpoint.path),
        "step": step,
    }
    figures = {"n": count, "unit": found.unit, "value": found.value, "standard_error": found.standard_error}
    write_likelihood(folder, options.split, kind, settings | figures)
    Findings(pictures=found.pictures).draw(folder, options.split, step)
    write_report(folder, _furthest(folder, step))
    print(f"written: {record_path(folder, options.split)}")


def _furthest(folder: Path, step: int) -> int:
    """The step that the run in a folder has come to, which an older checkpoint of it is not at."""
    try:
        return max(step, newest_good(folder).step)
    except CheckpointError:  # a folder of results alone
        return step


def _measure(
    kind: str, denoiser: TrainableDenoiser, parts: Parts, eight_bit: bool, settings: Mapping[str, Any]
) -> Likelihood:
    """The likelihood that is asked for; where the model has none of this kind, the error names the other if it has."""
    try:
        return Likelihood(kind, denoiser, parts.shape, eight_bit, condition=parts.condition, **settings)
    except ValueError as error:
        other = "vlb" if kind == "ode" else "ode"
        try:
            Likelihood(other, denoiser, parts.shape, eight_bit, **{**settings, "tolerance": None})
        except ValueError:
            raise error from None
        raise ConfigError(f"{error}; with all else as it is, this would do: likelihood={other}") from error
