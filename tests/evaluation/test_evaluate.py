"""`python evaluate.py` as a user sees it: the figures of known models, what is refused."""

import json
import os
import re
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from PIL import Image
from support.scripts import TINY, Outcome, assert_refused, call
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import evaluate
import sample
import train
from diffusion.evaluation import loading, metrics, table
from diffusion.runs.checkpoints import contents, read
from diffusion.samplers import DDIMSampler

RUN, LEARNED, CLOUD = (f"lightning_logs/{name}" for name in ("digits/version_0", "digits/version_1", "moons/version_0"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three tiny runs: of digits, of digits with labels and a learned variance trained by the bound, and of points."""
    folder = tmp_path_factory.mktemp("runs")
    for arguments in (
        (*TINY, "lr=0.03", "learning_rate.warmup_images=0"),
        (*TINY, "denoiser=learned", "objective=vlb", "network.num_classes=10"),
        ("dataset=moons", *TINY[3:], "schedule=continuous_cosine", "timesteps=null", "steps=5"),
    ):
        outcome = call(train, folder, *arguments)
        assert outcome.code == 0, outcome.err
    return folder


def figures(folder: Path, *arguments: str) -> Outcome:
    """A command that has to succeed."""
    outcome = call(evaluate, folder, *arguments)
    assert outcome.code == 0, outcome.err
    return outcome


def result(outcome: Outcome) -> tuple[float, float, str]:
    """Value, standard error and unit."""
    found = re.search(r": (-?[\d.]+) \+- ([\d.]+) (\w+/dim)", outcome.out)
    assert found, outcome.out
    return float(found[1]), float(found[2]), found[3]


@pytest.mark.parametrize("run", [RUN, LEARNED])
def test_the_bound_is_the_sum_of_the_table(folder: Path, run: str) -> None:
    outcome = figures(folder, f"ckpt={run}", "likelihood=vlb", "n=8")
    assert ("(variance=beta decodes with beta_1, Ho et al. 2020 with beta-tilde of step 2" in outcome.out) == (
        run == RUN
    )
    rows = re.findall(r"^  (prior|steps? .*?)  +(-?[\d.]+)$", outcome.out, re.MULTILINE)
    names = [name for name, _ in rows]
    assert names == [
        *("prior", "steps 50 to 21", "steps 20 to 11", "steps 10 to 6", "steps 5 to 3", "step 2"),
        "step 1, the decoder",
    ]
    bound, error, unit = result(outcome)
    assert unit == "bits/dim"
    assert sum(float(value) for _, value in rows) == pytest.approx(bound, abs=0.001)
    assert 0 < error < bound
    assert "17 different values" in outcome.out
    written = json.loads((folder / run / "metrics.json").read_text())["likelihood"]["vlb"]
    assert (written["value"], written["unit"]) == (pytest.approx(bound, abs=1e-4), unit)
    assert (written["standard_error"], written["n"]) == (pytest.approx(error, abs=1e-4), 8)
    picture = iio.imread(folder / run / "vlb_terms.png")
    assert picture.shape[2] == 3
    assert picture.std() > 5


def test_a_smaller_grid_has_a_looser_bound_of_its_own(folder: Path) -> None:
    fine, coarse = (
        result(figures(folder, f"ckpt={RUN}", "likelihood=vlb", "n=8", f"steps={steps}"))[0] for steps in (50, 5)
    )
    assert coarse > fine


@pytest.mark.slow
def test_the_figure_does_not_depend_on_the_batch_but_on_seed_and_samples(folder: Path) -> None:
    for likelihood in ("vlb", "ode"):
        base = (f"ckpt={RUN}", f"likelihood={likelihood}", "n=6", "steps=4")
        reference = result(figures(folder, *base))
        assert result(figures(folder, *base, "batch_size=2"))[0] == pytest.approx(reference[0], abs=2e-3)
        for change in ("seed=1", "split=val", "weights=raw"):
            assert result(figures(folder, *base, change))[0] != reference[0], (likelihood, change)


def test_the_odes_density_is_in_bits_for_pixels_and_in_nats_for_points(folder: Path) -> None:
    bits, error, unit = result(figures(folder, f"ckpt={LEARNED}", "likelihood=ode", "n=8", "steps=5"))
    assert (unit, error > 0) == ("bits/dim", True)
    assert 0 < bits < 20
    cloud = (f"ckpt={CLOUD}", "likelihood=ode", "n=32")
    exact = result(figures(folder, *cloud, "probes=null"))
    assert exact[2] == "nats/dim"
    adaptive = result(figures(folder, *cloud, "probes=null", "tolerance=1e-5"))
    assert adaptive[0] == pytest.approx(exact[0], abs=2e-4)
    estimated = result(figures(folder, *cloud))
    assert estimated[0] == pytest.approx(exact[0], abs=4 * (estimated[1] + exact[1]))


def test_the_history_of_the_bounds_terms_is_in_the_checkpoint(folder: Path) -> None:
    state = read(folder / LEARNED / "checkpoints/last.ckpt").state
    assert state["objective.counts"].sum().item() == 4 * 16
    assert (state["objective.losses"] != 0).sum().item() == 4 * 16 - (state["objective.counts"] - 10).clamp(min=0).sum()


@pytest.mark.slow
def test_a_resumed_run_draws_its_steps_as_an_uninterrupted_one(tmp_path: Path) -> None:
    tiny = (*TINY, "denoiser=learned", "objective=vlb", "objective.history=1", "schedule=cosine", "timesteps=4")
    for name, runs in (("whole", [8]), ("parts", [5, 8])):
        (tmp_path / name).mkdir()
        for i, steps in enumerate(runs):
            resume = ["resume=last", f"trainer.max_steps={steps}"] if i else [*tiny, f"trainer.max_steps={steps}"]
            outcome = call(train, tmp_path / name, *resume)
            assert outcome.code == 0, outcome.err
    whole, parts = (
        read(tmp_path / name / "lightning_logs/digits/version_0/checkpoints/last.ckpt").state
        for name in ("whole", "parts")
    )
    assert whole["objective.counts"].sum() == 8 * 16
    assert (whole["objective.counts"] >= 1).all()  # so that the history decided
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


@pytest.mark.slow
def test_samples_are_scored_whoever_drew_them_on_however_many_devices(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "REPLICATES", 10)
    monkeypatch.setattr(table, "CLASSIFIER_STEPS", 20)
    base = ("sampler=ddim", "steps=4")
    outcome = figures(folder, f"ckpt={LEARNED}", *base, "n=100", "batch_size=50", "devices=2", "accelerator=cpu")
    lines = {line.split()[0]: line for line in outcome.out.splitlines() if "_n100" in line}
    assert len(lines) == 16
    assert "classes of samples" in outcome.out
    written = json.loads((folder / LEARNED / "metrics.json").read_text())
    assert set(lines) == set(written["scores"])
    assert (written["n"], written["step"], written["sampler"], written["split"]) == (100, 4, "DDIMSampler", "test")
    assert len(written["times"]) == 5
    assert (folder / LEARNED / "neighbours.png").exists()
    assert any((folder / LEARNED).glob("events*"))

    drawn = call(sample, folder, f"ckpt={LEARNED}", *base, "n=120", "out=drawn.npz", "accelerator=cpu")
    assert drawn.code == 0, drawn.err
    given = figures(folder, "dataset=digits", "samples=drawn.npz", "n=100", "out=elsewhere")
    assert "in drawn.npz" in given.out
    again = json.loads((folder / "elsewhere" / "metrics.json").read_text())
    assert again["scores"].keys() == written["scores"].keys()
    for name, row in written["scores"].items():
        # Convolutions of another batch round differently, which a sample's byte may show.
        assert again["scores"][name]["samples"]["value"] == pytest.approx(row["samples"]["value"], rel=0.05, abs=0.05)
        assert again["scores"][name].get("real") == row.get("real")


def test_samples_are_those_of_the_seed_and_weights_that_were_asked_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "REPLICATES", 10)

    def distance(*arguments: str) -> float:
        figures(folder, f"ckpt={CLOUD}", "n=50", *arguments)
        rows = json.loads((folder / CLOUD / "metrics.json").read_text())["scores"]
        return rows["sliced_wasserstein_n50"]["samples"]["value"]

    assert distance("seed=1") != distance() != distance("weights=raw")
    drawn = call(sample, folder, f"ckpt={CLOUD}", "n=50", "seed=1", "weights=raw", "out=cloud.npz")
    assert drawn.code == 0, drawn.err
    own = distance("seed=1", "weights=raw")
    figures(folder, "dataset=moons", "samples=cloud.npz", "n=50", "out=cloud")
    given = json.loads((folder / "cloud" / "metrics.json").read_text())["scores"]
    assert given["sliced_wasserstein_n50"]["samples"]["value"] == pytest.approx(own)


def test_a_model_that_diverged_is_no_black_image(folder: Path, tmp_path: Path) -> None:
    checkpoint = contents(folder / RUN / "checkpoints/last.ckpt")
    for value in checkpoint["state_dict"].values():
        if value.is_floating_point():
            value.fill_(torch.nan)
    torch.save(checkpoint, tmp_path / "diverged.ckpt")
    outcome = call(evaluate, tmp_path, "ckpt=diverged.ckpt", "n=95", "steps=1", "extractors=random", "cache=null")
    assert_refused(outcome, "diverged.ckpt is refused: ", "has numbers that are not finite")
    assert not (tmp_path / "metrics.json").exists()


def test_what_is_found_on_one_split_or_of_one_kind_leaves_the_rest(folder: Path) -> None:
    steps: list[tuple[str, ...]] = [
        ("likelihood=ode", "steps=3"),
        ("split=val",),
        (),
        ("likelihood=vlb", "steps=5"),
        ("likelihood=ode", "split=val"),
    ]
    for arguments in steps:
        figures(folder, f"ckpt={CLOUD}", "n=100", "out=kept", *arguments)
    test, val = (json.loads((folder / "kept" / name).read_text()) for name in ("metrics.json", "metrics_val.json"))
    assert set(test["likelihood"]) == {"ode", "vlb"}
    assert set(val["likelihood"]) == {"ode"}
    assert (test["split"], val["split"]) == ("test", "val")
    assert test["scores"] != val["scores"]
    assert (folder / "kept" / "vlb_terms.png").exists()
    events = EventAccumulator(str(folder / "kept")).Reload().Tags()["scalars"]
    assert {tag.split("/")[0] for tag in events} == {"versus_test", "versus_val"}


def test_points_are_scored_by_their_own_two(folder: Path) -> None:
    outcome = figures(folder, f"ckpt={CLOUD}", "n=300")
    assert re.findall(r"^(\w+)_n300 ", outcome.out, re.MULTILINE) == ["sliced_wasserstein", "two_sample_accuracy"]
    assert set(json.loads((folder / CLOUD / "metrics.json").read_text())["scores"]) == {
        "sliced_wasserstein_n300",
        "two_sample_accuracy_n300",
    }


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("", ["ckpt= is missing", "last"]),
        ("ckpt=nowhere", ["there is no checkpoint nowhere"]),
        (f"ckpt={RUN} likelihood=fid", ["likelihood must be null or vlb or ode, got 'fid'"]),
        (f"ckpt={RUN} split=all", ["split must be train or val or test, got 'all'"]),
        (f"ckpt={RUN} n=1", ["n must be at least 2, got 1"]),
        (f"ckpt={RUN} n=x", ["n must be a whole number or null, got 'x'"]),
        (f"ckpt={RUN} steps=51 likelihood=vlb", ["steps=51 is more than the 50 timesteps"]),
        (f"ckpt={RUN} steps=51", ["steps=51 is more than the 50 timesteps"]),
        (f"ckpt={RUN} extractors=[fid]", ["extractor 'fid' does not exist: choose classifier, random, inception"]),
        (f"ckpt={RUN} n=64", ["n=64 is too small for the 64 features of extractor classifier"]),
        ("dataset=digits samples=x.npz", ["samples=x.npz: there is no such file or folder"]),
        (
            "dataset=cifar download=false data_dir=nowhere samples=x.npz",
            ["samples=x.npz: there is no such file or folder"],
        ),
        (f"ckpt={RUN} samples=x.npz likelihood=ode", ["leave samples= out"]),
        (f"ckpt={RUN} samples=x.npz", ["ckpt= draws samples and samples= reads them"]),
        (f"ckpt={RUN} out={RUN}/config.yaml", ["config.yaml is a file, and out= is a folder"]),
        (f"ckpt={RUN} cache={RUN}/config.yaml/x", ["config.yaml is a file, and cache= is a folder"]),
        (f"ckpt={RUN} dataset=moons", ["dataset=moons has data of shape (2,), and the model's are (1, 8, 8)"]),
        (f"ckpt={RUN} dataset=moons likelihood=vlb", ["dataset=moons has data of shape (2,)"]),
        (f"ckpt={RUN} likelihood=vlb sampler=ddim", ["sampler= does nothing for likelihood=vlb"]),
        (f"ckpt={RUN} likelihood=vlb conditioning_noise=0.1", ["conditioning_noise= does nothing for likelihood=vlb"]),
        (f"ckpt={RUN} likelihood=ode devices=2", ["devices= does nothing for likelihood=ode"]),
        (f"ckpt={RUN} likelihood=ode extractors=random", ["extractors= does nothing for likelihood=ode"]),
        (f"ckpt={RUN} likelihood=vlb probes=2", ["probes= does nothing for likelihood=vlb"]),
        (f"ckpt={RUN} likelihood=ode accelerator=tpu", ["accelerator=tpu: PyTorch finds no such device here"]),
        ("dataset=digits samples=x.npz steps=5", ["steps= does nothing for samples="]),
        ("dataset=moons train_classifier=true out=x", ["needs images, and moons has none"]),
        (f"ckpt={RUN} conditioning_noise=0.1", ["conditioning_noise belongs to a cascade"]),
        (f"ckpt={RUN} devices=0", ["devices must be at least 1"]),
        ("samples=x.npz", ["dataset= is missing", "add dataset=fashion"]),
        ("dataset=digits", ["ckpt= is missing"]),
        ("dataset=digits train_classifier=true", ["needs out="]),
        (f"ckpt={RUN} steps=0 likelihood=ode", ["steps must be at least 1"]),
        (f"ckpt={RUN} probes=0 likelihood=ode", ["probes must be at least 1"]),
        (f"ckpt={RUN} tolerance=1e-5", ["tolerance= is of likelihood=ode"]),
        (f"ckpt={RUN} tolerance=1e-5 likelihood=ode steps=9", ["takes the place of steps="]),
        (f"ckpt={RUN} tolerance=1 likelihood=ode", ["tolerance must be from 1e-12 to 0.1, got 1"]),
        (f"ckpt={RUN} seed=-1", ["seed must be from 0"]),
        (f"ckpt={RUN} weights=avg", ["weights must be ema or raw"]),
        (f"ckpt={RUN} batch_size=0", ["batch_size must be at least 1"]),
        (f"ckpt={RUN} data_dir=elsewhere", ["digits does not come from files"]),
        (f"ckpt={RUN} likelyhood=ode", ["no setting likelyhood (did you mean likelihood?)"]),
        (f"ckpt={CLOUD} likelihood=vlb", ["likelihood=vlb needs noising steps", "set steps="]),
    ],
)
def test_bad_input_is_refused_in_one_line(folder: Path, arguments: str, said: list[str]) -> None:
    assert_refused(call(evaluate, folder, *arguments.split()), *said)


def test_data_of_other_classes_or_too_few_are_refused_before_anything_is_drawn(folder: Path) -> None:
    for k in range(10):
        place = folder / "few" / "ab"[k % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 20 * k).save(place / f"{k}.png")
    few = ("dataset=folder", "dataset.path=few", "dataset.image_size=8", "dataset.channels=1")
    for run, likelihood, said in (
        (LEARNED, "null", "dataset=folder has 2 classes, and the model knows 10 classes"),
        (LEARNED, "ode", "dataset=folder has 2 classes, and the model knows 10 classes"),
        (RUN, "ode", "split test of folder holds one example"),
    ):
        outcome = call(evaluate, folder, f"ckpt={run}", *few, f"likelihood={likelihood}")
        assert outcome.out.startswith("few: 10 images")  # what the folder holds
        assert_refused(outcome._replace(out=""), said)
    points = ("dataset=moons", "dataset.source.n=30")
    assert_refused(call(evaluate, folder, f"ckpt={CLOUD}", *points), "n=3 points are too few", "at least 8")


def test_a_place_that_cannot_be_written_is_named_before_data_are_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK | os.X_OK and access(path, mode))
    monkeypatch.setattr(loading, "loaded", lambda *arguments: pytest.fail("data were read"))
    np.savez(folder / "some.npz", np.zeros((2, 8, 8, 1), dtype=np.uint8))
    for arguments in (f"ckpt={RUN}", f"ckpt={RUN} likelihood=vlb", "samples=some.npz dataset=digits out=x"):
        assert_refused(call(evaluate, folder, *arguments.split()), "cannot be written: no permission to write in")


def test_what_a_sampler_calls_its_own_settings_replaces_nothing_that_is_known_of_the_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sampler of one's own may have an attribute `seed`."""
    begin = DDIMSampler.__init__

    def with_seed(sampler: DDIMSampler, eta: float = 0.0) -> None:
        begin(sampler, eta)
        sampler.seed = sampler.n = 99  # type: ignore[attr-defined]

    monkeypatch.setattr(DDIMSampler, "__init__", with_seed)
    figures(folder, f"ckpt={CLOUD}", "n=50", "seed=3", "sampler=ddim", "out=own")
    (file,) = (folder / "own").glob("metrics*.json")
    assert [json.loads(file.read_text())[name] for name in ("seed", "n")] == [3, 50]
    drawn = call(sample, folder, f"ckpt={RUN}", "n=2", "seed=3", "sampler=ddim", "steps=2", "out=drawn")
    assert drawn.code == 0, drawn.err
    record = json.loads((folder / "drawn" / "settings.json").read_text())
    assert (record["seed"], record["sampler.seed"], record["n"]) == (3, 99, 99)
