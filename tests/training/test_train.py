"""`python train.py` as a user sees it: what is refused, what a run writes, resuming, sweeping, debugging."""

import os
import re
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from support.scripts import PREVIEWS, TINY, Outcome, assert_refused, call, on_digits

import train
from diffusion.runs.checkpoints import Checkpoint, newest_good, read
from diffusion.runs.resume import continued

# Of a refusal that does not concern the network: others are planned where choices that would do are sought.
SMALL = "network.widths=[8,16] network.blocks=1"


def run(folder: Path, *arguments: str) -> Outcome:
    """A run that has to succeed."""
    outcome = call(train, folder, *arguments)
    assert outcome.code == 0, outcome.err
    return outcome


def config_of(folder: Path, version: int, dataset: str = "digits") -> Any:
    return yaml.safe_load((folder / f"lightning_logs/{dataset}/version_{version}/config.yaml").read_text())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """A folder with one tiny run, and what it printed."""
    folder = tmp_path_factory.mktemp("trained")
    return folder, run(folder, *TINY, PREVIEWS)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("lr=abc", ["lr must be a number, got 'abc'"]),
        ("lr=", ["lr must be a number, got ''"]),
        ("lr=-1", ["lr must be positive, got -1"]),
        ("lr=nan", ["lr must be positive"]),
        ("data_dir=elsewhere", ["data_dir= does nothing for dataset=digits: leave it out"]),
        ("download=false", ["download= does nothing for dataset=digits: leave it out"]),
        ("lr=1e-3 optimizer.lr=2e-3", ["lr=0.001 and optimizer.lr=0.002: give one of them"]),
        ("batch_size=1.5", ["batch_size must be a whole number, got 1.5"]),
        ("batch_size=-1", ["batch_size must be at least 1, got -1"]),
        ("seed=-1", ["seed must be at least 0, got -1"]),
        ("seed=100000000000000000000", ["seed must be below 2**63"]),
        ("budget_minutes=0", ["budget_minutes must be positive and finite, got 0"]),
        ("train_images=0", ["train_images must be at least 1"]),
        ("workers=-1", ["workers must be at least 0"]),
        ("workers=1000000000000", ["workers=1000000000000 would be as many processes", "choose a smaller number"]),
        ("compile=3", ["compile must be true or false, got 3"]),
        ("+foo=1", ["foo does not exist"]),
        ("+network.foo=1", ["network.foo does not exist", "widths"]),
        ("+trainer.max_step=1", ["trainer.max_step does not exist (did you mean max_steps?)"]),
        ("+trainer.devices=2", ["trainer.devices cannot be set: use devices="]),
        ("trainer.max_steps=x", ["trainer.max_steps must be a whole number of at least 1, got 'x'"]),
        ("trainer.max_steps=true", ["trainer.max_steps must be a whole number of at least 1, got True"]),
        ("trainer.max_steps=0", ["trainer.max_steps must be a whole number of at least 1, got 0"]),
        ("trainer.max_steps=null", ["nothing says when to stop"]),
        ("trainer.max_epochs=1.5", ["trainer.max_epochs must be a whole number of at least 1, got 1.5"]),
        ("trainer.accumulate_grad_batches=0", ["trainer.accumulate_grad_batches must be a whole number"]),
        ("trainer.precision=foo", ["trainer.precision must be", "got 'foo'", "bf16-mixed"]),
        ("trainer.precision=bf16-true", ["trainer.precision must be", "average of the weights"]),
        (
            "trainer.limit_val_batches=[[1]]",
            ["trainer.limit_val_batches must be a whole number, or a fraction", "[[1]]"],
        ),
        ("trainer.limit_val_batches=-0.5", ["trainer.limit_val_batches must be a whole number, or a fraction", "-0.5"]),
        ("trainer.limit_val_batches=nan", ["trainer.limit_val_batches must be", "got nan"]),
        ("trainer.strategy=[]", ["trainer.strategy must be text, got []"]),
        ("trainer.profiler={a:1}", ["trainer.profiler must be text"]),
        ("trainer.gradient_clip_val=-1", ["trainer.gradient_clip_val must be a positive number", "got -1"]),
        ("+trainer.overfit_batches=1", ["trainer.overfit_batches cannot be set: use train_images"]),
        ("+trainer.gradient_clip_algorithm=value", ["trainer.gradient_clip_algorithm cannot be set"]),
        ("timesteps=100000000000", ["timesteps must be from 1 to a million"]),
        ("budget_minutes=1 trainer.max_steps=3", ["budget_minutes and trainer.max_steps both say when to stop"]),
        ("trainer.max_time=abc", ["trainer.max_time must be DD:HH:MM:SS", "got 'abc'"]),
        ("trainer.max_time=10", ["trainer.max_time must be DD:HH:MM:SS", "got 10"]),
        ("trainer.max_time={}", ["trainer.max_time must be DD:HH:MM:SS"]),
        ("trainer.max_time={hours:nan}", ["trainer.max_time must be DD:HH:MM:SS"]),
        ("network.widths=3", ["network.widths must be a list", "got 3"]),
        ("ema.decay=2", ["ema.decay must lie in [0, 1), got 2"]),
        ("objective.distance=l3", ["objective.distance must be one of l2, l1, huber, got 'l3'"]),
        ("timesteps=0", ["timesteps must be at least 1, got 0"]),
        ("timesteps=x", ["timesteps must be a whole number or null, got 'x'"]),
        (
            f"steps=2000 {SMALL}",
            ["steps=2000 is more than the 1000 timesteps", "trainer.max_steps=... sets how long to train"],
        ),
        ("schedule=continuous_cosine timesteps=100", ["timesteps=100: this schedule is continuous", "schedule=linear"]),
        (f"schedule=continuous_cosine {SMALL}", ["no number of steps means every timestep", "set steps="]),
        ("devices=[0,1] accelerator=cpu", ["devices=[0, 1] names GPUs", "devices=2"]),
        ("devices=0", ["devices must be at least 1, got 0"]),
        ("devices=all", ["devices must be auto, a number, or a list of GPU indices", "'all'"]),
        ("accelerator=foo", ["accelerator must be auto, cpu, gpu, cuda or mps, got 'foo'"]),
        ("batch_size=3 devices=2 accelerator=cpu", ["batch_size=3 is shared by 2 devices", "multiple of 2"]),
        ("dataset=swissroll network=unet", ["unet needs images", "(2,)", "network=heads, mlp"]),
        ("network.widths=[8,16,32,64,128]", ["8x8", "multiples of 16"]),
        ("network.num_classes=3", ["network.num_classes=3, but the data have 10 classes: use 10"]),
        ("dataset=moons network.num_classes=3 trainer.max_steps=1", ["the data have 2 classes"]),
        ("dataset=folder", ["dataset=folder needs dataset.path="]),
        ("dataset=folder dataset.path=nowhere", ["nowhere: no such folder"]),
        ("dataset=cifar download=false data_dir=nowhere", ["cifar is not available", "nowhere", "dataset=digits"]),
        ("resume=nowhere", ["there is no checkpoint nowhere"]),
        ("resume=", ["no checkpoint is named"]),
        ("resume=last", ["there is no run with a checkpoint in lightning_logs"]),
        ("resume=7", ["there is no run version_7"]),
        ("resume=https://example.org/a.ckpt", ["is an address"]),
        ("init_from=nowhere", ["there is no checkpoint nowhere"]),
        (
            f"schedule.zero_terminal_snr=true denoiser=v grid=log_snr steps=9 {SMALL}",
            ["no first step", "grid=quadratic, trailing, uniform"],
        ),
        (
            f"schedule.zero_terminal_snr=true denoiser=v sampler=heun {SMALL}",
            ["HeunSampler can neither begin", "sampler=ddim, ddpm, dpmpp_2m"],
        ),
        (f"sampler=langevin steps=9 {SMALL}", ["stays at the lowest noise level", "on a uniform grid"]),
        (f"objective=likelihood {SMALL}", ["likelihood weighting is for continuous time", "objective=logit_normal"]),
        (
            f"objective=hybrid denoiser=learned schedule=continuous_cosine steps=9 {SMALL}",
            ["this schedule is continuous", "schedule=cosine, geometric, linear"],
        ),
        (
            "network=encoder",
            ["error: denoiser: this network tells classes apart, and does not denoise"],
        ),
        (
            "network=autoencoder",
            ["error: denoiser: this network encodes and decodes, and does not denoise"],
        ),
        ("dataset=swissroll network=heads schedule=vp steps=5", ["a head for each noising step", "network=mlp"]),
        ("dataset=swissroll network=heads denoiser=edm", ["the network has a head for each", "denoiser=eps"]),
        ("experiment=classifier_digits dataset.condition=lowres", ["Encoder cannot be conditioned on images"]),
        (
            f"objective=vlb schedule=variance_exploding steps=9 {SMALL}",
            ["this schedule is continuous", "schedule=cosine, geometric, linear"],
        ),
        ("dataset=mnist network=tutorial denoiser.variance=learned", ["needs a network with out_channels"]),
        ("+network.out_channels=2", ["network.out_channels cannot be set", "the denoiser"]),
        ("learning_rate=1e-3", ["learning_rate=1e-3: write lr=1e-3"]),
        ("network.shape=[3,8,8]", ["network.shape cannot be set: it follows from the data"]),
        ("dataset.shape=[3,3]", ["dataset.shape cannot be set"]),
        ("denoiser=residual denoiser.shape=[]", ["denoiser.shape cannot be set"]),
        ("objective=vlb objective.timesteps=1000000000000", ["objective.timesteps must be at most a million"]),
        ("dataset.name=null", ["dataset.name=None names the folder of its runs: give one plain name"]),
        ("dataset.name=a/b", ["dataset.name=a/b names the folder"]),
        ("dataset.source=foo", ["dataset.source=foo: choose data by dataset="]),
        ("dataset.flip=foo", ["dataset.flip must be true or false, got 'foo'"]),
        ("trainer.detect_anomaly=foo", ["trainer.detect_anomaly must be true or false, got 'foo'"]),
        ("ema=none ema_decay=0.5", ["ema_decay=0.5 does nothing here: only ema=exponential reads it; leave it out"]),
        ("ema=power ema_decay=0.5", ["ema_decay=0.5 does nothing here: only ema=exponential reads it; leave it out"]),
    ],
)
def test_bad_input_is_refused_in_one_line_before_anything_is_written(
    arguments: str, said: list[str], tmp_path: Path
) -> None:
    assert_refused(call(train, tmp_path, *on_digits(arguments)), *said)
    assert list(tmp_path.iterdir()) == []


def test_a_run_says_what_it_does_and_nothing_else(trained: tuple[Path, Outcome]) -> None:
    _, outcome = trained
    assert outcome.err == ""
    lines = outcome.out.splitlines()
    assert re.fullmatch(r"UNet with 0\.0\d M parameters on (cpu|cuda|mps); batches of 16 images", lines[0])
    assert lines[1] == "training step: eager, since CUDA graphs need a CUDA device, and this is cpu"
    assert lines[2].startswith("estimated time: ")
    assert lines[3] == f"run folder: {Path('lightning_logs/digits/version_0')}"
    assert lines[4].startswith("step 4/4: loss ")
    assert re.fullmatch(r"done: lightning_logs.digits.version_0, validation loss \d\.\d{4}", lines[5])
    assert [line.split()[0] for line in lines[6:]] == ["all", "curves", "sample:"]


def test_all_that_a_run_writes_is_in_its_folder(trained: tuple[Path, Outcome]) -> None:
    folder, _ = trained
    version = folder / "lightning_logs/digits/version_0"
    assert {path.name.split(".")[0] for path in version.iterdir()} == {
        *("", "checkpoints", "config", "events", "index", "metrics", "samples")
    }
    assert {path.name for path in (version / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert [path.name for path in folder.iterdir()] == ["lightning_logs"]


def test_the_short_words_reach_what_they_stand_for(trained: tuple[Path, Outcome]) -> None:
    folder, _ = trained
    config = config_of(folder, 0)
    assert config["schedule"]["timesteps"] == config["timesteps"] == 50
    assert config["optimizer"]["lr"] == config["lr"]
    assert config["network"]["shape"] == [1, 8, 8]
    assert read(folder / "lightning_logs/digits/version_0/checkpoints/last.ckpt").config == config


def copied(trained: tuple[Path, Outcome], tmp_path: Path) -> Path:
    """The tiny run, moved to a folder of this test's own."""
    shutil.copytree(trained[0] / "lightning_logs", tmp_path / "lightning_logs")
    return tmp_path


@pytest.mark.parametrize(
    "spec", ["last", "0", "lightning_logs/digits/version_0", "lightning_logs/digits/version_0/checkpoints/last.ckpt"]
)
def test_resume_goes_on_in_the_same_folder(trained: tuple[Path, Outcome], tmp_path: Path, spec: str) -> None:
    folder = copied(trained, tmp_path)
    outcome = run(folder, f"resume={spec}", "trainer.max_steps=5")
    assert "at step 4" in outcome.out
    assert [path.name for path in (folder / "lightning_logs/digits").iterdir()] == ["version_0"]
    assert newest_good(folder / "lightning_logs/digits/version_0").step == 5
    assert config_of(folder, 0)["trainer"]["max_steps"] == 5


def test_a_finished_run_says_so(trained: tuple[Path, Outcome]) -> None:
    out = run(trained[0], "resume=last").out
    assert "is finished at step 4; raise trainer.max_steps" in out
    assert f"python train.py resume={Path('lightning_logs/digits/version_0')} trainer.max_steps=8" in out


def test_a_resumed_run_takes_the_limit_that_was_typed(trained: tuple[Path, Outcome]) -> None:
    stored = config_of(trained[0], 0)
    for typed, other in (("max_steps", "max_epochs"), ("max_epochs", "max_steps")):
        limits = {"max_steps": 4, "max_epochs": 9}
        stored["trainer"] |= limits
        changed = continued(Checkpoint(Path("last.ckpt"), 4, stored, {}, None), {f"trainer.{typed}": 50})["trainer"]
        assert (changed[typed], changed[other]) == (50, None)
        assert {name: stored["trainer"][name] for name in limits} == limits


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("resume=last lr=1", ["lr cannot change", "init_from=", "lr=1"]),
        ("resume=last network=tutorial", ["network cannot change"]),
        ("resume=last trainer.precision=bf16-mixed", ["trainer.precision cannot change"]),
        ("resume=lightning_logs/digits/version_0 dataset=mnist", ["a run on digits, not on mnist"]),
        (
            "resume=last dataset=mnist",
            ["no run with a checkpoint in lightning_logs/mnist", "train.py dataset=mnist", "version_0"],
        ),
        ("network.blocks=1 init_from=0 denoiser=v", ["trained as EpsPreconditioner of", "as VPreconditioner of"]),
        ("network.blocks=1 init_from=0 network.widths=[8,24]", ["do not fit this network", "size mismatch"]),
    ],
)
def test_a_run_cannot_turn_into_another(trained: tuple[Path, Outcome], arguments: str, said: list[str]) -> None:
    assert_refused(call(train, trained[0], *on_digits(arguments)), *said)
    assert len(list((trained[0] / "lightning_logs/digits").iterdir())) == 1


def test_resume_auto_goes_on_with_this_very_run_or_begins_it(tmp_path: Path) -> None:
    arguments = (*TINY, "resume=auto")
    assert "version_0" in run(tmp_path, *arguments).out
    assert "is finished at step 4" in run(tmp_path, *arguments).out
    assert "resuming" in run(tmp_path, *arguments, "trainer.max_steps=5").out
    other = run(tmp_path, *arguments, "lr=0.01").out
    assert "resuming" not in other
    assert "version_1" in other


@pytest.mark.slow
def test_data_that_were_moved_are_found_by_a_resumed_run(tmp_path: Path) -> None:
    photos(tmp_path / "photos", {"": 6})
    settings = ("dataset=folder", "dataset.image_size=8", "network=unet", "network.attention=[]", *TINY[1:])
    run(tmp_path, *settings, "dataset.path=photos")
    (tmp_path / "photos").rename(tmp_path / "moved")
    assert_refused(call(train, tmp_path, "resume=last", "trainer.max_steps=5"), "photos: no such folder")
    run(tmp_path, "resume=last", "trainer.max_steps=5", "dataset=folder", "dataset.path=moved")


def test_init_from_begins_with_the_averaged_weights(trained: tuple[Path, Outcome], tmp_path: Path) -> None:
    folder = copied(trained, tmp_path)
    run(folder, *TINY, "init_from=0", "lr=1e-30", "trainer.max_steps=1")
    before = read(folder / "lightning_logs/digits/version_0/checkpoints/last.ckpt").state
    after = read(folder / "lightning_logs/digits/version_1/checkpoints/last.ckpt").state
    for name, value in after.items():
        if name.startswith("denoiser."):
            assert torch.equal(value, before["ema." + name.removeprefix("denoiser.")])


def test_a_sweep_ends_in_a_table_with_the_best_first_and_fails_if_a_run_failed(tmp_path: Path) -> None:
    outcome = call(train, tmp_path, *TINY, "-m", "lr=1e-9,1e-2,abc", "val_every=4")
    assert outcome.code == 1
    assert outcome.err == "error: lr must be a number, got 'abc'\n"
    head, *rows = outcome.out.splitlines()[-4:]
    assert head.split() == ["val/loss", "run", "settings"]
    assert [row.split()[2] for row in rows] == ["lr=0.01", "lr=1e-09", "lr=abc"]
    assert float(rows[0].split()[0]) < float(rows[1].split()[0])
    assert rows[2].endswith("failed: lr must be a number, got 'abc'")
    assert sorted(path.name for path in (tmp_path / "lightning_logs").rglob("*") if path.parent.name == "digits") == [
        "version_0",
        "version_1",
    ]
    assert [path.name for path in (tmp_path / "lightning_logs").iterdir()] == ["digits"]


def test_a_sweep_trains_on_one_device_at_a_time(tmp_path: Path) -> None:
    outcome = call(train, tmp_path, "-m", "lr=1e-3", "devices=2", "accelerator=cpu")
    assert outcome.code == 1
    assert "add devices=1" in outcome.err
    assert list(tmp_path.iterdir()) == []


def test_a_budget_becomes_a_number_of_steps_that_is_printed_and_kept(tmp_path: Path) -> None:
    outcome = run(
        *(tmp_path, *(word for word in TINY if not word.startswith("timesteps="))),
        *("budget_minutes=0.02", "trainer.max_steps=null", "val_every=1000"),
    )
    found = re.match(r"budget of 0\.02 minutes: (\d+) steps of 16 images", outcome.out)
    assert found
    config = config_of(tmp_path, 0)
    assert config["trainer"]["max_steps"] == int(found[1])
    assert config["budget_minutes"] == 0.02
    measured, announced = re.findall(r"([\d.]+) s each", outcome.out)
    assert float(announced) == pytest.approx(float(measured), abs=6e-4)
    assert f"is finished at step {found[1]}" in run(tmp_path, "resume=last").out


def test_epochs_are_turned_into_steps_and_images_can_be_fewer(tmp_path: Path) -> None:
    limits = ("trainer.max_steps=null", "trainer.max_epochs=2", "train_images=40")
    run(tmp_path, *TINY, *limits)
    assert config_of(tmp_path, 0)["trainer"]["max_steps"] == 6  # 40 images are 2.5 batches of 16


def test_time_can_be_the_limit(tmp_path: Path) -> None:
    begun = time.monotonic()
    outcome = run(tmp_path, *TINY, "trainer.max_steps=null", "trainer.max_time=00:00:00:01", "val_every=10000")
    assert "stops after trainer.max_time=00:00:00:01" in outcome.out
    assert time.monotonic() - begun < 60
    assert newest_good(tmp_path / "lightning_logs/digits/version_0").step > 0


def test_debug_one_batch_is_one_step(tmp_path: Path) -> None:
    arguments = [argument for argument in TINY if not argument.startswith(("trainer.", "val_", "log_"))]
    assert "step 1/1:" in run(tmp_path, *arguments, "debug=one_batch").out


def test_debug_overfit_trains_on_one_batch_of_images(tmp_path: Path) -> None:
    tiny = [setting for setting in TINY if not setting.startswith(("val_every=", "trainer.limit_val"))]
    outcome = run(tmp_path, *tiny, "debug=overfit", "trainer.max_steps=2", "batch_size=8")
    assert config_of(tmp_path, 0)["train_images"] == 8
    assert "validation" not in outcome.out


def test_debug_profiler_prints_where_the_time_went(tmp_path: Path) -> None:
    outcome = run(tmp_path, *TINY, "debug=profiler", "trainer.max_steps=2")
    assert "run_training_batch" in outcome.out
    assert outcome.err == ""


def photos(folder: Path, counts: dict[str, int]) -> None:
    """So many small pictures in each subfolder."""
    for name, count in counts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            Image.new("RGB", (8, 8), (20 * i, 0, 0)).save(folder / name / f"{i}.png")


@pytest.mark.parametrize(
    ("counts", "said"),
    [({"": 6}, "the data have no labels: use 0"), ({"a": 4, "b": 4}, "the data have 2 classes: use 2")],
)
def test_classes_must_be_those_of_the_folder(counts: dict[str, int], said: str, tmp_path: Path) -> None:
    photos(tmp_path / "photos", counts)
    arguments = ("dataset=folder", "dataset.path=photos", "dataset.image_size=8", "network=unet", *TINY[1:])
    outcome = call(train, tmp_path, *arguments, "network.attention=[]", "network.num_classes=3")
    assert outcome.out.startswith("photos: ")  # what the folder holds
    assert_refused(outcome._replace(out=""), "network.num_classes=3", said)
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root writes everywhere")
def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    outcome = call(train, tmp_path, *TINY)
    tmp_path.chmod(0o700)
    assert outcome.code == 1
    assert "cannot make the run's folder" in outcome.err


def test_an_existing_file_in_the_place_of_the_runs_is_named(tmp_path: Path) -> None:
    (tmp_path / "lightning_logs").write_text("")
    outcome = call(train, tmp_path, *TINY)
    assert outcome.code == 1
    assert outcome.err.startswith("error: cannot make the run's folder lightning_logs/digits/version_0")
