"""Checkpoints of an earlier version draw the same images and resume to the same weights (`fixtures/make.py`)."""

import json
import shutil
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from support.scripts import assert_refused, call

import sample
import train
from diffusion.runs.checkpoints import read
from diffusion.runs.resume import essence

FIXTURES = Path(__file__).parents[1] / "fixtures"
sys.path.insert(0, str(FIXTURES))

import make  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where each checkpoint lies in a run folder of its own."""
    folder = tmp_path_factory.mktemp("old")
    for name in make.RUNS:
        checkpoints = folder / run(name) / "checkpoints"
        checkpoints.mkdir(parents=True)
        shutil.copy(FIXTURES / f"{name}.ckpt", checkpoints / "last.ckpt")
    shutil.copytree(FIXTURES / "averages", folder / run("power") / "averages")
    return folder


def run(name: str) -> str:
    """The folder of a run."""
    dataset = "swissroll" if name == "swissroll" else "digits"
    return f"lightning_logs/{dataset}/version_{list(make.RUNS).index(name)}"


@pytest.mark.parametrize("name", make.DRAWN)
def test_an_old_checkpoint_draws_the_images_that_it_drew(name: str, folder: Path) -> None:
    arguments = [argument.format(**{run_: run(run_) for run_ in make.RUNS}) for argument in make.DRAWN[name]]
    outcome = call(sample, folder, *arguments, "n=4", "accelerator=cpu", f"out={name}.npz")
    assert outcome.code == 0, outcome.err
    # Another processor rounds otherwise; on one machine they are equal to the bit.
    found, expected = np.load(folder / f"{name}.npz")["arr_0"], np.load(FIXTURES / "drawn.npz")[name]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in ("power", "latent") else pytest.mark.slow) for name in make.RUNS]
)
def test_an_old_run_goes_on_to_the_weights_that_it_went_on_to(name: str, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / run(name), tmp_path / run(name))
    outcome = call(train, tmp_path, f"resume={run(name)}", "trainer.max_steps=8", "accelerator=cpu")
    assert outcome.code == 0, outcome.err
    found = make.norms(tmp_path / run(name) / "checkpoints" / "last.ckpt")
    expected = json.loads((FIXTURES / "resumed.json").read_text(encoding="ascii"))[name]
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_a_setting_that_an_old_run_has_not_counts_as_its_default() -> None:
    config = read(FIXTURES / "residual.ckpt").config
    assert essence(config) == essence(config | {"start_level": None})
    assert essence(config) != essence(config | {"start_level": 2.5})


@pytest.mark.parametrize(
    ("script", "name", "use"),
    [(sample, "classifier", "sample.py ckpt=... classifier="), (train, "digits", "sample.py ckpt=")],
)
def test_a_lone_file_of_another_kind_of_model_is_named_in_the_command_for_it(
    script: ModuleType, name: str, use: str, tmp_path: Path
) -> None:
    path = FIXTURES / f"{name}.ckpt"
    typed = f"ckpt={path}" if script is sample else f"autoencoder={path}"
    dataset = () if script is sample else ("experiment=latent_fashion", "dataset=digits")
    assert_refused(call(script, tmp_path, *dataset, typed), f"what this is for: python {use}{path}")
