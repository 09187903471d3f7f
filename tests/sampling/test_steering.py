"""`sample.py` with labels, guidance, classifiers, masks and starts, as a user sees it."""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.scripts import PREVIEWS, TINY, assert_refused, call

import sample
import train
from diffusion.runs.checkpoints import contents
from diffusion.samplers import KarrasGrid, LogSNRGrid, QuadraticGrid, TrailingGrid, UniformGrid, between
from diffusion.sampling import Pipeline
from diffusion.schedules import LinearSchedule, VarianceExplodingSchedule
from diffusion.settings.sampling import Steering

PLAIN, GUIDABLE, CLASSIFIER = (f"lightning_logs/digits/version_{k}" for k in range(3))
ALWAYS = "always.ckpt"
CLASSES = ("network.num_classes=10", "lr=0.03", "learning_rate.warmup_images=0")
ENCODER = ("network=encoder", "network.widths=[8,16]", "network.blocks=1", "denoiser=classifier")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny runs: a model without classes, one with that can do without, and a classifier; images; vectors."""
    folder = tmp_path_factory.mktemp("runs")
    small, quick = [option for option in TINY if not option.startswith("network.")], "preview_every=0"
    for arguments in (
        (*TINY, quick),
        (*TINY, *CLASSES, "condition_dropout=0.3", quick),
        (
            *small,
            *ENCODER,
            "objective=classifier",
            "schedule=variance_exploding",
            "timesteps=null",
            "lr=0.01",
            PREVIEWS,
        ),
    ):
        outcome = call(train, folder, *arguments)
        assert outcome.code == 0, outcome.err
    # The one that knows its classes, and says that it always had them.
    checkpoint = contents(folder / GUIDABLE / "checkpoints" / "last.ckpt")
    checkpoint["config"]["condition_dropout"] = 0.0
    torch.save(checkpoint, folder / ALWAYS)
    generator = np.random.default_rng(0)
    Image.fromarray(generator.integers(0, 256, (8, 8), dtype=np.uint8)).save(folder / "photo.png")
    mask = np.zeros((8, 8), np.uint8)
    mask[:, 4:] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    Image.fromarray(mask).resize((16, 8)).save(folder / "wide.png")
    Image.fromarray(0 * mask).save(folder / "black.png")
    np.save(folder / "vectors.npy", np.ones((2, 3)))
    return folder


def draw(folder: Path, *arguments: str) -> np.ndarray:
    outcome = call(sample, folder, *arguments, "steps=5", "out=arrays.npz")
    assert outcome.code == 0, outcome.err
    with np.load(folder / "arrays.npz") as file:
        return np.array(file["arr_0"])


def test_guidance_one_is_off_to_the_bit_and_two_is_not(folder: Path) -> None:
    base = (f"ckpt={GUIDABLE}", "n=3", "label=4")
    plain = draw(folder, *base)
    assert (draw(folder, *base, "guidance=1") == plain).all()
    guided = draw(folder, *base, "guidance=6")
    assert (guided != plain).any()
    for change in ("label=5", "guidance_interval=[0.01,20]", "guidance_rescale=1"):
        assert (draw(folder, *base, "guidance=6", change) != guided).any(), change


def test_label_all_draws_one_row_a_class(folder: Path) -> None:
    outcome = call(sample, folder, f"ckpt={GUIDABLE}", "label=all", "steps=2", "out=all.npz", "n=20")
    assert outcome.code == 0, outcome.err
    with np.load(folder / "all.npz") as file:
        assert file["arr_1"].tolist() == [k // 2 for k in range(20)]
    assert call(sample, folder, f"ckpt={GUIDABLE}", "label=all", "steps=2", "out=all.png").code == 0
    with Image.open(folder / "all.png") as picture:  # 10 rows of 8
        assert picture.height > picture.width
    listed = draw(folder, f"ckpt={GUIDABLE}", "label=[3,7]", "n=4")
    assert (listed[[0, 2]] == draw(folder, f"ckpt={GUIDABLE}", "label=3", "n=4")[[0, 2]]).all()


def test_a_classifier_steers_a_model_without_classes(folder: Path) -> None:
    base = (f"ckpt={PLAIN}", "n=3")
    plain = draw(folder, *base)
    steered = draw(folder, *base, f"classifier={CLASSIFIER}", "label=3", "guidance=40")
    assert (steered != plain).any()
    other = draw(folder, *base, f"classifier={CLASSIFIER}", "label=8", "guidance=40")
    assert (other != steered).any()
    assert (draw(folder, *base, f"classifier={CLASSIFIER}", "label=3", "guidance=0") == plain).all()


def test_a_classifiers_run_logs_and_draws_its_accuracy(folder: Path) -> None:
    run = folder / CLASSIFIER
    header = (run / "metrics.csv").read_text().splitlines()[0].split(",")
    assert "val/accuracy" in header
    assert any(name.startswith("val_accuracy_by_level/") for name in header)
    with Image.open(run / "accuracy.png") as picture:
        assert picture.width > 300


def test_the_known_pixels_come_back_exactly(folder: Path) -> None:
    with Image.open(folder / "photo.png") as image:
        photo = np.asarray(image)
    for more in ((), ("resample=3",), ("sampler=ddim",), ("t_start=0.5",)):
        images = draw(folder, f"ckpt={PLAIN}", "init=photo.png", "mask=mask.png", "n=2", *more)[..., 0]
        assert (images[:, :, :4] == photo[:, :4]).all(), more
        assert (images[:, :, 4:] != photo[:, 4:]).mean() > 0.5
    guided = (f"ckpt={GUIDABLE}", "guidance=3", "label=2", "init=photo.png", "mask=mask.png", "n=2")
    assert (draw(folder, *guided)[..., 0][:, :, :4] == photo[:, :4]).all()


def test_a_late_start_stays_near_its_image(folder: Path) -> None:
    with Image.open(folder / "photo.png") as image:
        photo = np.asarray(image).astype(float)
    base = (f"ckpt={PLAIN}", "init=photo.png", "sampler=ddim", "n=4")
    far = [np.abs(draw(folder, *base, f"t_start={t}")[..., 0] - photo).mean() for t in (0.1, 0.4, 0.9)]
    assert far[0] < far[1] < far[2]


def test_a_partial_run_ends_where_it_is_asked_to(folder: Path) -> None:
    pipeline = Pipeline.load(str(folder / PLAIN), steering=Steering(t_end=0.5), steps=5)
    assert pipeline.times[[0, -1]].tolist() == [1, 0.5]
    ddim = {"_target_": "diffusion.samplers.DDIMSampler"}
    whole = Pipeline.load(str(folder / PLAIN), steps=10, sampler=ddim)
    part = Pipeline.load(str(folder / PLAIN), steering=Steering(t_end=0.5), steps=5, sampler=ddim)
    half = whole.frames(2, keep=[5])[0]
    torch.testing.assert_close(part.sample(2), half)


def test_times_from_noise_to_data_are_the_grids_own_to_the_last_bit() -> None:
    schedule = LinearSchedule()
    assert torch.equal(between(QuadraticGrid(), schedule, 2, 1.0, 0.0), QuadraticGrid()(schedule, 2))


@pytest.mark.parametrize("grid", [TrailingGrid(), UniformGrid(), LogSNRGrid(), KarrasGrid()])
@pytest.mark.parametrize("schedule", [LinearSchedule(100), VarianceExplodingSchedule()], ids=["discrete", "continuous"])
def test_times_between_two_are_so_many_and_begin_and_end_there(grid: TrailingGrid, schedule: LinearSchedule) -> None:
    for t_start, t_end in ((1.0, 0.0), (0.6, 0.0), (0.8, 0.3)):
        times = between(grid, schedule, 7, t_start, t_end)
        assert len(times) == 8
        assert (times.diff() < 0).all()
        torch.testing.assert_close(times[[0, -1]], torch.tensor([t_start, t_end]).double(), rtol=0, atol=1e-6)
    if schedule.timesteps is not None:
        assert len(between(TrailingGrid(), schedule, None, 0.6, 0.1)) == 51
        with pytest.raises(ValueError, match="steps=60 is more than"):
            between(TrailingGrid(), schedule, 60, 0.6, 0.1)


def test_a_folder_remembers_how_it_was_steered(folder: Path) -> None:
    command = (f"ckpt={GUIDABLE}", "label=2", "guidance=2", "n=2", "steps=3", "out=images")
    assert call(sample, folder, *command).code == 0
    assert "2 of 2 samples were there already" in call(sample, folder, *command).err
    assert_refused(call(sample, folder, *command, "guidance=3"), "images holds samples of other settings")
    masked = (f"ckpt={PLAIN}", "init=photo.png", "mask=mask.png", "resample=2", "n=2", "steps=3", "out=masked")
    assert call(sample, folder, *masked).code == 0


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ({"guidance_interval": [1.0, 3.0]}, "guidance_interval belongs to guidance"),
        ({"guidance": 2.0, "guidance_interval": [3.0]}, "guidance_interval must be two rising levels"),
        ({"guidance_rescale": 1.0, "guidance": 2.0, "classifier": "last"}, "guidance_rescale belongs to guidance"),
        ({"guidance": math.nan}, "guidance must be a finite number"),
        ({"mask": "mask.png"}, "mask=mask.png needs the image that it belongs to"),
        ({"init": "photo.png"}, "init= has no effect at t_start=1 (pure noise)"),
        ({"t_start": 0.5}, "t_start=0.5 needs an image to begin from"),
        ({"t_end": 1.0}, "0 <= t_end < t_start <= 1"),
        ({"t_start": 1.5, "init": "photo.png"}, "0 <= t_end < t_start <= 1"),
        ({"resample": 4}, "resample=4 belongs to inpainting"),
        ({"resample": 0}, "resample must be at least 1"),
    ],
)
def test_options_that_do_not_go_together_are_refused_at_once(typed: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        Steering(**typed)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            f"ckpt={PLAIN} guidance=2",
            "guidance=2: this model is unconditional; train one with experiment=fast_digits_cond",
        ),
        (f"ckpt={PLAIN} label=2", "label=2: this model is unconditional"),
        (f"ckpt={PLAIN} label=all", "label=all: this model has no classes"),
        (f"ckpt={ALWAYS} guidance=2", "this model never trained without its label or image"),
        (f"ckpt={GUIDABLE} label=10", "label must be a whole number from 0 to 9, got 10"),
        (f"ckpt={GUIDABLE} label=cat", "label must be a whole number, a list of them, or all, got 'cat'"),
        (f"ckpt={GUIDABLE} label=all n=9", "label=all draws one row for each of 10 classes"),
        (f"ckpt={GUIDABLE} guidance=2 guidance_interval=[3,1]", "guidance_interval must be two rising levels"),
        (f"ckpt={GUIDABLE} guidance_rescale=2 guidance=2", "guidance_rescale must lie in [0, 1]"),
        (f"ckpt={GUIDABLE} classifier={CLASSIFIER}", "this model knows its classes"),
        (f"ckpt={PLAIN} classifier={ALWAYS}", "is a denoiser, not a classifier: train one with"),
        (f"ckpt={CLASSIFIER}", "is a classifier, not a denoiser: train one with"),
        (
            f"ckpt={PLAIN} init=photo.png mask=wide.png",
            "mask=wide.png is 16x8 pixels (width x height), the model draws 8x8",
        ),
        (f"ckpt={PLAIN} init=photo.png mask=black.png", "mask=black.png is all black"),
        (f"ckpt={PLAIN} init=none.png t_start=0.5", "init=none.png cannot be read as an image"),
        (f"ckpt={PLAIN} resample=4", "resample=4 belongs to inpainting"),
        (
            f"ckpt={PLAIN} init=photo.png mask=mask.png resample=4 steps=1",
            "resample=4 repeats each step but the last, and there is no other",
        ),
        (f"ckpt={GUIDABLE} label=[1,2,3] n=2", "label=[1, 2, 3] is more labels than n=2 has samples"),
        (f"ckpt={GUIDABLE} guidance=2 steps=1 guidance_interval=[1,2]", "has no noise level of the sampler"),
        (f"ckpt={PLAIN} embedding=vectors.npy", "this model takes no vectors"),
    ],
)
def test_what_cannot_be_gets_one_line_and_leaves_nothing(folder: Path, arguments: str, said: str) -> None:
    before = sorted(folder.rglob("*"))
    assert_refused(call(sample, folder, *arguments.split(), "out=never.png"), said)
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("condition_dropout=0.1", "condition dropout of 0.1: this network has no condition that could be withheld"),
        ("condition_dropout=1", "condition_dropout must be at least 0 and below 1, got 1"),
        ("denoiser=classifier", "denoiser: a classifier needs a network that tells classes apart"),
        (
            "objective=classifier",
            "ClassifierObjective is a loss of a NoisyClassifier, and this model is a NetworkDenoiser",
        ),
        (
            "denoiser=classifier network=encoder",
            "DenoisingObjective is a loss of a RegressionDenoiser, and this model is a NoisyClassifier",
        ),
        (
            "dataset.num_classes=3",
            "dataset.num_classes=3 alone trains an unconditional model: add network.num_classes=3",
        ),
        ("network.embedding=3", "network.embedding=3, but the data's embeddings have the length 0"),
    ],
)
def test_training_that_cannot_be_gets_one_line(tmp_path: Path, arguments: str, said: str) -> None:
    outcome = call(train, tmp_path, *TINY, *arguments.split())
    assert outcome.code == 1
    assert outcome.err.strip().splitlines()[-1].startswith(f"error: {said}")
    assert not (tmp_path / "lightning_logs").exists()
