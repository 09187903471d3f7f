"""`python evaluate.py` works on a run of every experiment, or says in one line why it cannot."""

import csv
import json
from pathlib import Path

import imageio.v3 as iio
import pytest
import torch
import yaml
from support.processes import TINY, Run
from support.scripts import assert_refused, call

import evaluate
import train
from data.images import Digits
from diffusion.evaluation import metrics, table
from diffusion.evaluation.table import held

EXPERIMENTS = sorted(Path("configs/experiment").resolve().glob("*.yaml"))
FIXTURES = Path(__file__).parents[1] / "fixtures"
ON_POINTS = ("fast_swissroll", "swissroll")
TUNING = ("few_step", "few_step_matching")
WITH_CLASSES = ("demo", *TUNING)  # beside those whose names end in _cond


def tiny(path: Path) -> list[str]:
    """Two steps of an experiment with the smallest network of its kind, on digits unless it is one of points."""
    config = yaml.safe_load(path.read_text())
    found = [f"experiment={path.stem}", "trainer.max_steps=2", "val_every=2", "preview_every=0", "batch_size=16"]
    found += ["trainer.max_epochs=null", "trainer.precision=32-true", "budget_minutes=null", "accelerator=cpu"]
    if path.stem in ON_POINTS:
        return found
    if path.stem in TUNING:  # of which data and model are those of the run that it tunes
        return [*found, f"init_from={FIXTURES / 'residual.ckpt'}", "train_images=200"]
    parents = [name for name in config["defaults"] if isinstance(name, str) and name.startswith("fast_")]
    network = yaml.safe_load((path.parent / f"{parents[0]}.yaml").read_text())["network"] if parents else {}
    widths = (network | config.get("network", {})).get("widths")
    if widths:
        found.append(f"network.widths=[{','.join(['8'] * len(widths))}]")
    if path.stem.startswith("tutorial_"):  # they set what digits have no such setting for
        return [*found, "dataset=folder", "dataset.path=images", "dataset.image_size=8", "dataset.channels=1"]
    return [*found, "dataset=digits", "train_images=200"]


@pytest.mark.slow
@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_every_experiment_is_scored_or_refused_in_one_line(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "REPLICATES", 10)
    monkeypatch.setattr(table, "CLASSIFIER_STEPS", 5)
    (tmp_path / "images").mkdir()
    for number, pixels in enumerate(held(Digits().load().train, torch.arange(200))):
        iio.imwrite(tmp_path / "images" / f"{number:03d}.png", pixels[0].numpy())
    latents: list[str] = []
    if path.stem.startswith("latent_"):
        assert call(train, tmp_path, *tiny(path.with_stem(path.stem.replace("latent", "autoencoder")))).code == 0
        latents = ["autoencoder=last"]
    trained = call(train, tmp_path, *tiny(path), *latents)
    assert trained.code == 0, trained.err
    few = [] if path.stem == "swissroll" else ["steps=2"]  # that of 2015 goes along its own steps alone
    few += [] if path.stem in ON_POINTS else ["extractors=random"]
    outcome = call(evaluate, tmp_path, "ckpt=last", "n=95", "split=val", "accelerator=cpu", *few)
    if path.stem.startswith("classifier_"):
        assert_refused(outcome, "classifier")
        return
    assert outcome.code == 0, outcome.err
    (found,) = tmp_path.glob("lightning_logs/*/version_*/metrics_val.json")
    names = set(json.loads(found.read_text())["scores"])
    if path.stem in ON_POINTS:
        assert names == {"sliced_wasserstein_n95", "two_sample_accuracy_n95"}
    elif path.stem.startswith("tutorial_"):  # a folder without classes, all of it for training
        assert "frechet_random_n95" in names
        assert "copying_pixels_n95" not in names
    else:
        assert {"frechet_random_n95", "copying_pixels_n95", "class_histogram_distance_n95"} <= names
    assert ("class_accuracy_n95" in names) is (path.stem.endswith("_cond") or path.stem in WITH_CLASSES)


@pytest.mark.slow
def test_scores_are_the_same_of_two_processes_as_of_one(tmp_path: Path) -> None:
    found = {}
    for devices in (1, 2):
        folder = tmp_path / str(devices)
        run = Run(folder, *TINY, "trainer.max_steps=4", "score_every=2", "preview_every=0", f"devices={devices}")
        assert run.wait(600) == 0, run.text()
        with (folder / "lightning_logs/digits/version_0/metrics.csv").open(newline="") as file:
            rows = [
                {name: value for name, value in row.items() if name.startswith("val_score/")}
                for row in csv.DictReader(file)
            ]
        found[devices] = [row for row in rows if any(row.values())]
    assert len(found[1]) == 2
    assert [set(row) for row in found[2]] == [set(row) for row in found[1]]
    for one, two in zip(found[1], found[2], strict=True):
        for name, value in one.items():
            # The weights differ by the rounding of a sum over devices, which a sample's byte may show.
            assert float(two[name]) == pytest.approx(float(value), rel=0.01, abs=0.01), name

    records = {}
    for devices in (1, 2):
        outcome = call(
            evaluate,
            tmp_path / "1",
            *("ckpt=last", "n=100", "batch_size=50", "steps=4", "sampler=ddim", "extractors=random"),
            *("accelerator=cpu", f"devices={devices}", f"out=of_{devices}"),
        )
        assert outcome.code == 0, outcome.err
        records[devices] = json.loads((tmp_path / "1" / f"of_{devices}" / "metrics.json").read_text())["scores"]
    assert records[1].keys() == records[2].keys()
    for name, row in records[1].items():
        # Batches are cut elsewhere, so that convolutions round differently.
        assert records[2][name]["samples"]["value"] == pytest.approx(row["samples"]["value"], rel=0.01, abs=0.01), name
