"""A reader of any section, after a first run, types its commands in their order: each does its work.

Networks, data and numbers of samples are made small; nothing else of a command changes.
"""

import importlib
import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.scripts import Outcome, call
from test_docs_commands import PAGES, ROOT, SCRIPTS, demo

from data.images import DEBIAN_FASHION

BRIEF = (
    *("train_images=200", "batch_size=8", "trainer.limit_val_batches=1", "accelerator=cpu", "trainer.max_steps=2"),
    *("val_every=2", "preview_every=0"),
)
# What a section says that its reader has done before.
GROUPS = "python train.py dataset=digits network.groups=8"
BEFORE = {
    "conditions.md Sampling": ["python train.py dataset=digits dataset.condition=lowres"],
    "exchange.md To diffusers": [GROUPS],
    "few_steps.md What was measured": [
        "python train.py experiment=fast_digits",
        "python train.py experiment=few_step init_from=0",
    ],
    "guidance.md A worse version of the model": ["python train.py dataset=digits ema=power trainer.max_steps=6"],
    "guidance.md Clipping, or dividing by the range": ["python train.py experiment=fast_digits_cond"],
    "exchange.md From diffusers": [GROUPS, "python export.py ckpt=last out=ddpm-digits"],
}
# Where these are the reader's first runs.
FIRST = {"few_steps.md One call, two calls", "few_steps.md What was measured"}
# What else a reader has: folders, and the pictures in each.
FOLDERS = {"photos": 300, "pictures": 3, "sorted/cats": 30, "sorted/dogs": 30, "shoes": 500, "others": 100}
LEAST = {"guide_weights": 2, "n": 100, "trainer.max_steps": 6, "frames": 6, "score_every": 2, "resample": 2}


def sections() -> list[tuple[str, list[str]]]:
    """(page and heading, the commands of its console blocks) of every section that has some of the three scripts."""
    found = []
    for page in PAGES:
        for part in re.split(r"^(?=##+ )", page.read_text(encoding="utf-8"), flags=re.MULTILINE):
            blocks = re.findall(r"^```console\n(.*?)^```$", part, re.MULTILINE | re.DOTALL)
            lines = [line for block in blocks for line in block.splitlines() if line.startswith("python ")]
            commands = [line for line in lines if line.split()[1].removesuffix(".py") in SCRIPTS and "..." not in line]
            if commands:
                found.append((f"{page.name} {part.splitlines()[0].lstrip('# ')}", commands))
    return found


def small(words: list[str]) -> list[str]:
    """The same settings with small numbers."""
    return [
        f"{name}={min(int(value), LEAST[name])}" if name in LEAST and value.isdecimal() else word
        for word in words
        for name, _, value in [word.partition("=")]
    ]


def brief(script: str, words: list[str]) -> list[str]:
    """A command's settings, and what makes it short."""
    names, words = {word.partition("=")[0] for word in words}, small(words)
    if script == "train":
        words = [word for word in words if not word.startswith(("budget_minutes=", "trainer.max_steps=null"))]
        resumed = "resume" in names and "resume=auto" not in words
        more = ["trainer.max_steps=6"] if resumed else list(BRIEF)
        if "dataset.path" in names:  # which has few images as it is
            more = [word for word in more if not word.startswith("train_images=")]
        if "experiment=swissroll" in words:
            more += ["timesteps=8"]
    elif script == "sample":
        more = ["accelerator=cpu"]
    elif script == "export":
        more = []
    elif script == "compare":
        more = ["accelerator=cpu", "n=100", "extractors=random", "cache=null"] if "samplers" in names else []
    else:
        more = ["accelerator=cpu", "n=4"] if any(word.startswith("likelihood=") for word in words) else []
        more += [] if more else ["accelerator=cpu", "n=100", "extractors=random", "cache=null"]
        more += ["steps=3"] if not {"steps", "samples", "likelihood"} & names else []
    return [*words, *(word for word in more if word.partition("=")[0] not in names)]


def lacks_package(words: list[str]) -> bool:
    """Of a logger, of one of Hydra's plugins, or of data."""
    named = " ".join(words)
    plugins = [f"hydra_plugins.hydra_{kind}_{part}" for part, kind in re.findall(r"hydra/(\w+)=([a-z]+)", named)]
    loggers = [name for name in ("wandb", "mlflow", "trackio") if re.search(rf"logger=\S*{name}", named)]
    if plugins and importlib.util.find_spec("hydra_plugins") is None:  # whose parts cannot be looked for then
        return True
    data = ["datasets"] if "dataset=huggingface" in words else []
    return any(importlib.util.find_spec(package) is None for package in (*plugins, *loggers, *data))


def needs_colours(words: list[str]) -> bool:
    return "measure=grey" in words


def needs_download(words: list[str]) -> bool:
    named = " ".join(words)
    return bool(re.search(r"cifar|mnist\b", named)) or ("fashion" in named and not DEBIAN_FASHION.exists())


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the standard model of digits was trained, with files of the reader's own."""
    folder = tmp_path_factory.mktemp("used")
    tiny = ("dataset=digits", "network.widths=[8,8]", "network.blocks=1", "trainer.max_steps=4", *BRIEF[:4], *BRIEF[5:])
    assert call(SCRIPTS["train"], folder, *tiny).code == 0
    run = folder / "lightning_logs" / "digits" / "version_0"
    for name in ("best.ckpt", "cifar.ckpt"):
        shutil.copy(run / "checkpoints" / "last.ckpt", folder / name)
    for number in (1, 2, 3):  # a reader who trains it again
        shutil.copytree(run, run.with_name(f"version_{number}"))
    chance = np.random.default_rng(0)
    for place, count in FOLDERS.items():
        (folder / place).mkdir(parents=True)
        for k in range(count):
            Image.fromarray(chance.integers(0, 256, (8, 8, 3), np.uint8)).save(folder / place / f"{k}.png")
    if importlib.util.find_spec("datasets") is not None:
        pictures = [Image.open(file).copy() for file in (folder / "photos").glob("*.png")]
        kind = importlib.import_module("datasets")
        kind.Dataset.from_dict({"image": pictures}).cast_column("image", kind.Image()).to_parquet(
            folder / "cats" / "train.parquet"
        )
    for name in ("photo.png", "other.png", "a.png", "small.png", "blurred.png"):
        Image.fromarray(chance.integers(0, 256, (8, 8), np.uint8)).save(folder / name)
    Image.fromarray(chance.integers(0, 256, (4, 4), np.uint8)).save(folder / "thumbnail.png")
    for name in ("mask.png", "m.png"):
        Image.fromarray(np.tile(np.uint8([0, 255]), (8, 4))).save(folder / name)
    for name in ("x.npz", "reconstructions.npz"):  # the second by docs/reconstructions.py
        np.savez(folder / name, chance.integers(0, 256, (100, 32, 32, 1), np.uint8))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("section", "commands"), sections(), ids=[name for name, _ in sections()])
def test_the_commands_of_a_section_work_in_order_after_a_run(
    section: str, commands: list[str], used: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "reader"
    shutil.copytree(used, folder, ignore=shutil.ignore_patterns("lightning_logs") if section in FIRST else None)
    for line in [*BEFORE.get(section, []), *commands]:
        _, script, *words = shlex.split(line, comments=True)
        if needs_download(words) or lacks_package(words) or needs_colours(words) or "--help" in words:
            continue
        arguments = brief(script.removesuffix(".py"), words)
        outcome = done(script.removesuffix(".py"), folder, arguments)
        assert outcome.code == 0, f"{line}\n{' '.join(arguments)}\n{outcome.err}"


def done(script: str, folder: Path, arguments: list[str]) -> Outcome:
    """What a command did; one of several processes starts the others by its own command line, and ends with them."""
    if not any(argument.startswith("devices=") for argument in arguments):
        return call(SCRIPTS[script], folder, *arguments)
    command = [sys.executable, str(ROOT / f"{script}.py"), *arguments]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    return Outcome(ended.returncode, ended.stdout, ended.stderr)


@pytest.mark.slow
def test_make_demo_leaves_the_files_that_it_names_in_an_empty_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs" / "pictures")
    for line in demo():
        _, script, *words = line.split()
        if script == "docs/pictures/model.py":
            monkeypatch.chdir(tmp_path)
            vars(importlib.import_module("model"))[words[0]](*words[1:])
            continue
        name = script.removesuffix(".py")
        more = {"train": ["train_images=400", "trainer.max_steps=4", "val_every=4"], "sample": ["n=20"]}.get(name, [])
        outcome = call(SCRIPTS[name], tmp_path, *words, *more, "accelerator=cpu")
        assert outcome.code == 0, f"{line}\n{outcome.err}"
    said = re.findall(r'^\t@echo ".*(lightning_logs/demo/[^"\s]+)', (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert len(said) == 2
    files = [*(tmp_path / name for name in said), *tmp_path.glob("lightning_logs/mnist5k/version_0/neighbours.png")]
    assert len(files) == 3 and all(file.stat().st_size > 1000 for file in files)
