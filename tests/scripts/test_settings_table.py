"""Each setting that --help lists has an effect, or is refused where it is typed: `settings.yaml` says which.

A command's effect is all that it writes and that it hands to what draws, loads or trains.
"""

import functools
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import yaml
from PIL import Image
from support.scripts import Outcome, assert_refused, call

import cli
import compare
import data.module
import evaluate
import export
import sample
import train
from diffusion.evaluation import classifiers, likelihoods, loading
from diffusion.exchange import diffusers, runtime
from diffusion.networks.diffusers import DiffusersUNet
from diffusion.runs import hub
from diffusion.sampling import drawing, parallel
from diffusion.sampling.pipeline import Pipeline
from diffusion.training import estimate, events, run, saving

FIXTURES = Path(__file__).parents[1] / "fixtures"
TABLE: dict[str, Any] = yaml.safe_load((Path(__file__).parent / "settings.yaml").read_text(encoding="utf-8"))
SCRIPTS: dict[str, ModuleType] = {script.__name__: script for script in (train, sample, evaluate, export, compare)}
CELLS = [
    (script, name, situation)
    for script, part in TABLE.items()
    for name, situation in product(part["settings"], part["situations"])
    if part["settings"][name].get("where", {}).get(situation, "") is not None
]
REFUSED = [cell for cell in CELLS if cell[2] in TABLE[cell[0]]["settings"][cell[1]].get("refused", ())]
EFFECTS = [cell for cell in CELLS if cell not in REFUSED]
# A few of each by default, none that traces a graph, and what once was a traceback.
TRACING = [cell for cell in EFFECTS if cell[0] == "export" and cell[2] in ("page", "onnx")]
QUICK = [cell for cell in EFFECTS if cell not in TRACING]
BY_DEFAULT = [*REFUSED[::36], *QUICK[::200], *(("train", "init_from", kind) for kind in ("classifier", "autoencoder"))]


def listed(script: str) -> set[str]:
    """The groups with a choice, and the settings that stand outside of groups, by their full names."""
    groups, keys = cli.groups_of(script), cli.keys_of(script)
    plain = [key for key in keys if not any(key.startswith(f"{group}.") for group in groups)]
    holders = {key.rpartition(".")[0] for key in plain}
    return {group for group in groups if len(cli.choices_of(group)) > 1} | set(plain) - holders


@pytest.mark.parametrize("script", TABLE)
def test_the_table_has_every_setting_that_help_lists(script: str) -> None:
    assert TABLE[script]["settings"].keys() == listed(script)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Files by name; the raw and averaged weights of checkpoints differ from each other as after a long training."""
    folder = tmp_path_factory.mktemp("places")
    (folder / "photos").mkdir()
    for k in range(60):
        picture = np.random.default_rng(k).integers(0, 255, (8, 8, 3), np.uint8)
        Image.fromarray(picture).save(folder / "photos" / f"{k}.png")
    found = {"photos": str(folder / "photos"), "fixtures": str(FIXTURES), "unet": UNET}
    for path in FIXTURES.glob("*.ckpt"):
        checkpoint, generator = torch.load(path, weights_only=True), torch.Generator().manual_seed(0)
        for key, value in checkpoint["state_dict"].items():
            if key.startswith(("denoiser.network.", "ema.network.")):
                value += 0.1 * torch.randn(value.shape, generator=generator)
        found[path.stem] = str(folder / path.name)
        torch.save(checkpoint, found[path.stem])
    for number in range(2):
        run = folder / "runs" / f"version_{number}"
        (run / "checkpoints").mkdir(parents=True)
        shutil.copy(found["digits"], run / "checkpoints" / "best.ckpt")
        config = torch.load(found["digits"], weights_only=True)["config"]
        (run / "config.yaml").write_text(yaml.safe_dump(config | {"seed": number}))
        scores = {f"{name}_random_n100": {"samples": {"value": number}} for name in ("frechet", "coverage")}
        record = {
            "checkpoint": str(run / "checkpoints" / "best.ckpt"),
            "dataset": "digits",
            "step": 4,
            "scores": scores,
        }
        (run / "metrics.json").write_text(json.dumps(record))
    small = {"block_out_channels": [4], "down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"]}
    small |= {"norm_num_groups": 2, "layers_per_block": 1, "attention_head_dim": 2}
    unet = {"_class_name": "UNet2DModel", "sample_size": 8, "in_channels": 1, "out_channels": 1, **small}
    noising = {"_class_name": "DDPMScheduler", "num_train_timesteps": 10, "beta_end": 0.5}
    for name in ("theirs", "others"):
        network = DiffusersUNet((1, 8, 8), **small)
        diffusers.save(folder / name, unet, noising, network.state_dict(), {})
    for file in runtime.FILES.values():
        (folder / "runtime" / "dist").mkdir(parents=True, exist_ok=True)
        (folder / "runtime" / "dist" / file).write_text(file)
    (folder / "runtime" / "package.json").write_text('{"version": "1.0"}')
    return found | {name: str(folder / name) for name in ("runs", "theirs", "others", "runtime")}


# Files whose contents do not depend on the clock, as a run's index.html does.
WRITTEN = (".png", ".gif", ".webp", ".json", ".npz", ".html", ".onnx", ".safetensors", ".md", ".tex")
UNET = "network.widths=[4] network.blocks=1 network.attention=[]"


def command(script: str, name: str, situation: str, places: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """The arguments without the setting, and with it."""
    part = TABLE[script]
    entry = part["settings"][name]
    texts = [part["base"], part["situations"][situation], entry.get("beside", "")]
    without = entry.get("without", "").split()
    plain = {text.partition("=")[0]: text for text in " ".join(texts).format(**places).split()}
    plain = {key: text for key, text in plain.items() if key not in without}
    typed = entry.get("where", {}).get(situation, entry["typed"]).format(**places).split()
    return list(plain.values()), list((plain | {text.partition("=")[0]: text for text in typed}).values())


def digest(value: Any) -> str:
    """Of tensors, arrays, files and what can be printed."""
    if isinstance(value, torch.Tensor):
        value = value.detach().contiguous().numpy()
    content = value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode()
    return hashlib.sha256(content).hexdigest()


class Watch:
    """Records what a command does where that takes long or leaves no trace, and shortens it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[Any] = []
        draw, loader, trainer = parallel.frames_on, data.module.DataLoader, pl.Trainer
        saved, measured = saving.AtomicCheckpointIO.save_checkpoint, likelihoods.evaluated
        trained, fit = classifiers.train_classifier, run.Run.fit

        def frames_on(devices: Any, pipeline: Pipeline, *args: Any, **kwargs: Any) -> torch.Tensor:
            frames = draw(devices[:1], pipeline, *args, **kwargs)
            self.seen.append((devices, args, digest(frames)))
            return frames

        def evaluated(compute: Any, examples: Any, count: int, batch_size: int, *args: Any) -> Any:
            self.seen.append(batch_size)
            return measured(compute, examples, count, batch_size, *args)

        def train_classifier(pixels: Any, labels: Any, classes: int, steps: int) -> Any:
            return trained(pixels[:64], labels[:64], classes, 2)

        def data_loader(*args: Any, num_workers: int, persistent_workers: bool, **kwargs: Any) -> Any:
            self.seen.append(num_workers)
            return loader(*args, **kwargs)

        @functools.wraps(trainer)
        def make_trainer(devices: Any, logger: Any, plugins: Any, **options: Any) -> pl.Trainer:
            self.seen.append((devices, sorted((name, str(value)) for name, value in options.items())))
            return trainer(devices=1, logger=logger, plugins=plugins, **options)

        def save_checkpoint(io: Any, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
            self.seen.append((Path(path).name, checkpoint["global_step"]))
            saved(io, checkpoint, path, storage_options)

        def fitted(self_: Any, *args: Any) -> Any:
            self.seen.append(type(self_.data.splits.train).__name__)
            return fit(self_, *args)

        for owner, name, replaced in (
            *((module, "frames_on", frames_on) for module in (drawing, loading)),
            *((likelihoods, "evaluated", evaluated), (classifiers, "train_classifier", train_classifier)),
            *((data.module, "DataLoader", data_loader), (pl, "Trainer", make_trainer)),
            *((saving.AtomicCheckpointIO, "save_checkpoint", save_checkpoint), (run.Run, "fit", fitted)),
            (hub, "push", lambda folder, name: self.seen.append("uploaded") or name),
            (run, "compile_network", lambda model: self.seen.append("compiled")),
            (estimate, "step_seconds", lambda *args, **kwargs: 0.01),
            (events.EventFile, "add_image", lambda writer, *image: self.seen.append((*image[::2], digest(image[1])))),
        ):
            monkeypatch.setattr(owner, name, replaced)


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    """What the commands of a test do."""
    return Watch(monkeypatch)


def written(folder: Path) -> Iterator[Any]:
    """What a command has left in a folder: names, and contents that do not depend on the clock."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and path.name.startswith("events."):
            continue
        yield name
        if path.name == "metrics.csv":
            rows = path.read_text().splitlines()
            clock = rows[0].split(",").index("watch/images_per_s")
            yield [row.split(",")[:clock] + row.split(",")[clock + 1 :] for row in rows]
        elif path.name == "last.ckpt":
            state = torch.load(path, weights_only=True)["state_dict"]
            yield sorted((key, digest(value)) for key, value in state.items())
            yield from drawn(path)
        elif path.name.startswith("metrics"):
            yield {key: value for key, value in json.loads(path.read_text()).items() if key != "seconds"}
        elif path.suffix in WRITTEN and path.parent.name != ".cache" and path.name != "index.html":
            yield digest(path.read_bytes())


def drawn(checkpoint: Path) -> Iterator[Any]:
    """What a trained model draws by the sampler that its run has chosen; nothing for a model that draws nothing."""
    try:
        pipeline = Pipeline.load(str(checkpoint))
    except ValueError:
        return
    yield (
        pipeline.times,
        type(pipeline.sampler),
        vars(pipeline.sampler),
        type(pipeline.denoiser),
        pipeline.codec and pipeline.codec.clip,
    )


def prepared(folder: Path, runs: str) -> Path:
    """A folder with the images, samples and runs that commands name."""
    folder.mkdir()
    shutil.copytree(runs, folder / "runs")
    random = np.random.default_rng(0)
    for name, size in {"photo": 8, "small": 4, "large": 16}.items():
        Image.fromarray(random.integers(0, 255, (size, size), np.uint8)).save(folder / f"{name}.png")
    Image.fromarray(np.repeat(np.uint8([[255], [0]]), 4, axis=0).repeat(8, axis=1)).save(folder / "mask.png")
    np.save(folder / "vectors.npy", np.ones((2, 3), np.float32))
    for name in ("digits", "others"):
        np.savez(folder / f"{name}.npz", random.integers(0, 255, (100, 8, 8, 1), np.uint8))
    for name in ("points", "other_points"):
        np.savez(folder / f"{name}.npz", random.standard_normal((100, 2), np.float32))
    return folder


def effect_of(script: str, arguments: list[str], folder: Path, watch: Watch) -> list[Any]:
    """All that such a command does in a folder."""
    watch.seen.clear()
    outcome = call(SCRIPTS[script], folder, *arguments)
    assert outcome.code == 0, f"{' '.join(arguments)}: {outcome.err}"
    lines = [] if script == "train" else outcome.out.splitlines()
    talks = outcome.out.count("\n") > 1, bool(outcome.err)
    return [*watch.seen, *written(folder), *lines, talks]


def marked(cells: list[tuple[str, str, str]]) -> list[Any]:
    return [pytest.param(*cell, marks=[] if cell in BY_DEFAULT else pytest.mark.slow) for cell in cells]


@pytest.mark.parametrize(("script", "name", "situation"), marked(REFUSED))
def test_a_setting_without_an_effect_is_refused(
    script: str, name: str, situation: str, places: dict[str, str], watch: Watch, tmp_path: Path
) -> None:
    _, typed = command(script, name, situation, places)
    outcome = call(SCRIPTS[script], prepared(tmp_path / "there", places["runs"]), *typed)
    lines = [line for line in outcome.err.splitlines(keepends=True) if not line.startswith("warning: ")]
    assert_refused(Outcome(outcome.code, "", "".join(lines)))  # a folder says on stdout what it holds
    assert not (tmp_path / "there" / "lightning_logs").exists()


@pytest.mark.parametrize(("script", "name", "situation"), marked(EFFECTS))
def test_a_setting_that_is_accepted_has_an_effect(
    script: str, name: str, situation: str, places: dict[str, str], watch: Watch, tmp_path: Path
) -> None:
    without, typed = command(script, name, situation, places)
    effects = [
        repr(effect_of(script, arguments, prepared(tmp_path / str(k), places["runs"]), watch)).replace(
            str(tmp_path / str(k)), ""
        )
        for k, arguments in enumerate((without, typed))
    ]
    assert effects[0] != effects[1], f"{name}= changes nothing: {' '.join(typed)}"
