"""Trains a diffusion model.

Examples:
    python train.py                                      8x8 digits, in minutes on any machine
    python train.py dataset=cifar timesteps=500          another dataset, fewer noising steps
    python train.py experiment=fast_fashion              a recipe that suits a CPU
    python train.py resume=last trainer.max_steps=4000   go on with the newest run
    python train.py experiment=latent_fashion autoencoder=last   in the latents of experiment=autoencoder_fashion
    python train.py -m lr=1e-3,2e-3 network=unet,tutorial   try each, and compare
"""

import contextlib
import inspect
import math
import re
import shlex
import shutil
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cli
from diffusion.terminal.commands import pasted

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from torch import Tensor

    from data.module import DataModule
    from diffusion.models import Codec
    from diffusion.runs.resume import Resumed

# What each run was told, where it is, its final validation loss, and why it failed if it did.
Result = tuple[dict[str, Any], str, float | None, str]
RESULTS: list[Result] = []

# What a finished run is good for.
SAMPLE = "sample:               python sample.py ckpt={}"
USES = {
    "NoisyClassifier": "steer a model by it:  python sample.py ckpt=... classifier={} label=3 guidance=2",
    "Autoencoder": "train in its latents: python train.py experiment=latent_fashion autoencoder={}",
}


def main(config: "DictConfig") -> float | None:
    """One run, or one of a sweep, which goes on past those that fail; returns the final validation loss."""
    told = cli.typed()
    try:
        with contextlib.ExitStack() as held:
            folder, loss = train(config, held)
    except cli.USER_ERRORS as error:
        if not cli.sweeping():
            raise
        print(f"error: {cli.one_line(error)}", file=sys.stderr)
        RESULTS.append((told, "-", None, cli.one_line(error)))
        return None
    RESULTS.append((told, str(folder), loss, ""))
    return loss


def train(config: "DictConfig", held: contextlib.ExitStack) -> tuple[Path | None, float | None]:
    """Trains; returns the run's folder, None on all processes but the first, and the final validation loss.

    Args:
        config: the composed configuration.
        held: keeps the lock on the run's folder until the run has ended.
    """
    begun_at = time.monotonic()
    check_values(config)
    from pytorch_lightning.utilities import rank_zero_only

    from data import changes
    from diffusion.denoisers import Denoiser
    from diffusion.machine import memory
    from diffusion.runs import codecs
    from diffusion.runs.checkpoints import run_folder
    from diffusion.runs.lock import locked
    from diffusion.settings.training import settings as settings_of
    from diffusion.training import estimate
    from diffusion.training.run import Run, check_sampling, claim_folder
    from diffusion.training.saving import Interrupted
    from diffusion.training.trainer import check_trainer, quiet

    quiet()
    first = rank_zero_only.rank in (0, None)  # type: ignore[attr-defined]
    plain, begun = configuration(config)
    path, step = (None, 0) if begun is None else (begun.path, begun.step)
    if path is not None and first:
        held.enter_context(locked(run_folder(path)))
    settings = settings_of(plain)
    advice = less_memory(plain)
    held.enter_context(memory.shortage(advice))
    trainer = check_trainer(plain)
    if cli.sweeping() and trainer.world_size > 1:
        raise ValueError(f"a sweep trains on one device at a time, not on {trainer.world_size}: add devices=1")
    device, datamodule = trainer.strategy.root_device, data_module(plain, settings)
    codec = codecs.codec_of_run(plain, str(config.autoencoder), path)
    run = Run(plain, datamodule, codec)
    if isinstance(run.module.denoiser, Denoiser):
        check_sampling(plain, run.module.denoiser, "steps" in cli.typed())
    if plain.get("init_from") is not None and path is None:
        run.begin_from(str(plain.get("init_from")))
    datamodule.setup()
    if begun is not None and begun.data is not None:
        changes.check(begun.data, datamodule.described, f"step {step} of {begun.folder}")
    check_conditions(datamodule, run.module.denoiser)
    run.check_data(cli.typed())
    warn_of_likeness(datamodule)
    if codec is not None:
        into_latents(codec, datamodule, device, settings.cache_latents, begins=path is None)
    if path is None and plain.get("init_from") is None:  # else the checkpoint has them
        most = 50_000 if codec is None or settings.cache_latents else 10_000  # encoding is slow
        run.prepare(lambda: training_data(codec, datamodule, device, settings.seed, most))
    if settings.compile and first:
        print("compiling the network: the first step takes a minute or so")
    if settings.budget_minutes is not None and path is None:
        estimate.spend_budget(run, trainer, begun_at)
    run.limit_steps(datamodule.train_size)
    if begun is not None and not begun.goes_on(run.module.learning_rate, run.module.images_per_step, plain):
        return begun.folder, None

    folder = None
    if first:
        seconds = estimate.estimate(run, trainer)
        preset = f"fast_{plain['dataset']['name']}"
        known = preset in cli.choices_of("experiment")
        kind = trainer.strategy.root_device.type
        estimate.announce(run, seconds, trainer.world_size, kind, preset if known else None, step)
        folder = claim_folder(plain["dataset"]["name"]) if path is None else run_folder(path)
        if path is None:
            held.enter_context(locked(folder))
        print(f"run folder: {folder}" + (f", resuming {path} at step {step}" if path else ""))
    try:
        loss = run.fit(folder, path, step if path else None)
    except Interrupted as stop:
        if folder is not None:
            print(f"saved; go on with: python train.py resume={pasted(folder)}", file=sys.stderr)
        sys.exit(stop.code)
    except memory.SHORTAGES as error:
        if folder is None or not memory.ran_out(error):
            raise
        raise memory.OutOfMemory(error, f"{advice}; {what_remains(folder)}") from error
    if folder is not None:
        print(f"done: {folder}" + ("" if loss is None else f", validation loss {loss:.4f}"))
        print(f"  curves and pictures:  tensorboard --logdir {shlex.quote(str(folder.parent.parent))}")
        print(f"  {USES.get(type(run.module.denoiser).__name__, SAMPLE).format(pasted(folder))}")
    return folder, loss


def less_memory(plain: dict[str, Any]) -> str:
    """What to set so that a run takes less memory and its steps stay the same."""
    size, accumulated = plain["batch_size"], plain["trainer"].get("accumulate_grad_batches") or 1
    if size == 1:
        return "batch_size is 1 already, choose a smaller network"
    return (
        f"lower batch_size={size}; half of it with twice the batches a step, batch_size={size // 2} "
        f"trainer.accumulate_grad_batches={2 * accumulated}, trains in the same way"
    )


def what_remains(folder: Path) -> str:
    """What a run that has failed leaves in its folder; a folder without a checkpoint is removed."""
    if any((folder / "checkpoints").glob("*.ckpt")):
        return f"the last checkpoint is kept: python train.py resume={pasted(folder)}"
    shutil.rmtree(folder, ignore_errors=True)  # Windows keeps files that are still open
    return "no checkpoint was written yet"


def check_values(config: "DictConfig") -> None:
    """Raises ConfigError for a value at the configuration's top, or in `trainer`, that cannot be."""
    from omegaconf import OmegaConf

    from diffusion.settings.training import PARTS, check_options, settings

    values = {str(name): config[name] for name in config if name not in PARTS}
    settings({k: OmegaConf.to_container(v) if OmegaConf.is_config(v) else v for k, v in values.items()})
    options: Any = OmegaConf.to_container(config.trainer, resolve=True)
    check_options(options)


def configuration(config: "DictConfig") -> "tuple[dict[str, Any], Resumed | None]":
    """The configuration as a plain dict; the checkpoint to go on from, if any."""
    from diffusion.build import ConfigError
    from diffusion.runs import codecs, resume
    from diffusion.settings.idle import refuse_idle_source, refuse_idle_training

    typed, spec = cli.typed(), config.resume
    for name in ("dataset.shape", "network.shape"):
        if name in typed:
            raise ConfigError(f"{name} is not for setting: it follows from the data")
    if spec in (None, "auto"):
        plain = resume.limited(resolved(config), typed)
        refuse_idle_training(plain, typed)
    if spec is None:
        return plain, None
    if spec == "auto":
        found = resume.agreed(lambda: resume.find_begun(plain))
        if found is None:
            return plain, None
    else:
        found = resume.agreed(lambda: resume.find_named(str(spec), typed.get("dataset")))
        assert found is not None
    path, checkpoint = found
    if typed.pop("autoencoder", None) is not None and spec != "auto":
        codecs.check_same(str(config.autoencoder), checkpoint["config"])
    plain = resume.continued(checkpoint["config"], typed, path, auto=spec == "auto")
    refuse_idle_source(plain, typed)
    return plain, resume.resumed(path, checkpoint)


def resolved(config: "DictConfig") -> dict[str, Any]:
    """The composed configuration as a plain dict, with what the dataset and the shorthands say filled in."""
    from omegaconf import OmegaConf

    from diffusion.build import ConfigError, build, check_source, resolve
    from diffusion.runs import codecs

    if config.timesteps is not None:
        if "timesteps" not in config.schedule:
            raise ConfigError(
                f"timesteps={config.timesteps}: this schedule is continuous in time and has no number of steps; "
                f"steps=... sets how many a sampler takes, schedule=linear (or cosine, quadratic, sigmoid) is discrete"
            )
        config.schedule.timesteps = config.timesteps
    if not re.fullmatch(r"\w[\w.-]*", str(config.dataset.name)) or config.dataset.name is None:
        raise ConfigError(f"dataset.name={config.dataset.name} names the folder of its runs: give one plain name")
    check_source(config.dataset.source)
    source = build(OmegaConf.to_container(config.dataset.source, resolve=True), "dataset.source")
    config.dataset.shape = list(source.shape)
    codec = None
    if config.autoencoder is not None:  # the model's data are latents, which are no pixels and have unit variance
        codec = codecs.described(str(config.autoencoder), config.dataset.name, list(source.shape))
        config.dataset.shape, config.dataset.clip, config.dataset.recipe.sigma_data = codec["latent_shape"], False, 1.0
    plain: Any = OmegaConf.to_container(config, resolve=True)
    plain["dataset"]["shape"] = list(source.shape)
    plain["autoencoder"] = codec
    if plain["dataset"].get("condition") is not None:
        if codec is not None:
            raise ConfigError("dataset.condition= is made of pixels and autoencoder= has none: leave one out")
        condition = build(plain["dataset"]["condition"], "dataset.condition")
        told = {"condition_channels": condition.channels(source.shape), "condition_level": condition.leveled}
        if not told.keys() <= inspect.signature(resolve(plain["network"]["_target_"], "network")).parameters.keys():
            raise ConfigError(
                "this network cannot be conditioned on images: use network=unet or dit, or dataset.condition=null"
            )
        plain["network"] |= told
    return plain


def data_module(plain: dict[str, Any], settings: Any) -> "DataModule":
    """The data module that a configuration describes."""
    from data.module import DataModule
    from diffusion.build import ConfigError, build

    condition, flip = plain["dataset"].get("condition"), plain["dataset"]["flip"]
    if not isinstance(flip, bool):
        raise ConfigError(f"dataset.flip must be true or false, got {flip!r}")
    return DataModule(
        source=build(plain["dataset"]["source"], "dataset.source"),
        batch_size=settings.batch_size,
        seed=settings.seed,
        flip=flip,
        workers=settings.workers,
        limit=settings.train_images,
        condition=None if condition is None else build(condition, "dataset.condition"),
    )


def training_data(
    codec: "Codec | None", datamodule: "DataModule", device: Any, seed: int, most: int
) -> "tuple[Tensor, dict[str, Tensor]]":
    """What is to be diffused, data or their latents, (n, *S), and what conditions them: "label" and perhaps "image";
    n is `most` at most."""
    import torch

    from diffusion.runs.codecs import draws

    condition = datamodule.condition
    x, labels = datamodule.train_sample(most if condition is None else min(most, 20_000))  # images to be told are large
    told = {} if condition is None else condition.augmented(x, seed, torch.arange(len(x)))
    return draws(codec, x, device, seed), {"label": labels, **told}


def into_latents(codec: "Codec", datamodule: "DataModule", device: Any, cache: bool, begins: bool) -> None:
    """Measures the latents of a run that begins, and puts those of the training images in their place if they are to be
    kept."""
    import torch

    from data.stream import Points
    from diffusion.runs.codecs import BATCH, moments

    assert datamodule.splits is not None
    if cache:
        train, size = datamodule.splits.train, datamodule.train_size
        batches = (train.get(rows) for rows in torch.arange(size).split(BATCH))
        examples = Points(moments(codec, batches, device), train.labels[:size])
        examples.embeddings = None if train.embeddings is None else train.embeddings[:size]
        datamodule.splits = datamodule.splits._replace(train=examples)
    if begins:
        codec.measure(moments(codec, datamodule.train_sample()[0].split(BATCH), device))


def check_conditions(datamodule: "DataModule", model: Any) -> None:
    """Raises ValueError if the model has other classes, or vectors to be conditioned on, than the data."""
    assert datamodule.splits is not None
    num_classes, embeddings = model.num_classes, datamodule.splits.train.embeddings
    length = 0 if embeddings is None else embeddings.shape[1]
    if model.embedding not in (0, length):
        raise ValueError(f"network.embedding={model.embedding}, but the data's embeddings have the length {length}")
    found = 1 + max(int(split.labels.max()) for split in datamodule.splits)
    if num_classes and num_classes != found:
        are = f"{found} classes" if found > 1 else "no labels"
        raise ValueError(f"network.num_classes={num_classes}, but the data have {are}: use {found if found > 1 else 0}")


def warn_of_likeness(datamodule: "DataModule") -> None:
    """Warns of training data that hardly differ from each other."""
    x, _ = datamodule.train_sample(100)
    spread = (x.double() - x.double().mean(0)).square().mean().sqrt().item()
    if spread < 0.01:
        warnings.warn(
            f"the training data are nearly all alike (standard deviation {spread:.2g}, of data in [-1, 1]): a model of "
            f"them can draw nothing else",
            stacklevel=2,
        )


# Losses of runs that differ in one of these measure different things.
SETS_THE_LOSS = (
    *("dataset", "autoencoder", "objective", "denoiser", "schedule", "timesteps", "experiment", "debug"),
    "condition_dropout",
)


def table(results: list[Result]) -> str:
    """The runs of a sweep; those whose losses compare stand together, best first, failed ones last."""
    rows = [("val/loss", "run", "settings")]
    varied = [name for name in results[0][0] if any(row[0].get(name) != results[0][0][name] for row in results)]
    apart = [name for name in varied if re.split(r"[./]", name)[0] in SETS_THE_LOSS]
    groups: dict[tuple[str, ...], list[Result]] = {}
    for result in results:
        groups.setdefault(tuple(str(result[0][name]) for name in apart), []).append(result)
    for group in groups.values():
        for told, folder, loss, failure in sorted(group, key=lambda row: math.inf if row[2] is None else row[2]):
            settings = " ".join(f"{name}={told[name]}" for name in varied)
            rows.append(
                ("-" if loss is None else f"{loss:.5f}", folder, settings + (f"  failed: {failure}" if failure else ""))
            )
    widths = [max(len(row[i]) for row in rows) for i in range(2)]
    lines = [f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c}" for a, b, c in rows]
    if len(groups) > 1:
        lines.append(
            f"val/loss does not compare runs that differ in {', '.join(apart)}: compare the scores of their samples, "
            f"python evaluate.py ckpt=RUN"
        )
    return "\n".join(lines)


def entry() -> None:
    """The command line; a sweep ends in a table, and with exit status 1 if a run of it failed."""
    RESULTS.clear()
    cli.run(main, "train", __doc__ or "")
    failed = any(failure for *_, failure in RESULTS)
    if len(RESULTS) > 1 or failed:
        print(table(RESULTS))
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    entry()
