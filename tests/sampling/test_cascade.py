"""Image conditions and cascades as a user sees them: `train.py`, `sample.py` and `evaluate.py`, what they refuse."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.scripts import TINY, assert_refused, call, on_digits
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

import evaluate
import sample
import train
from data.conditions import LowRes
from data.images import Digits
from data.module import DataModule
from diffusion.denoisers import Condition, Conditioned, Denoiser
from diffusion.evaluation.loading import draw_samples
from diffusion.evaluation.table import judging_and_conditioning
from diffusion.noise import Noise
from diffusion.runs.checkpoints import read
from diffusion.samplers import Evaluation
from diffusion.sampling import Pipeline
from diffusion.sampling.conditions import of_images
from diffusion.training import previews as previews_module
from diffusion.training.data import training_data
from diffusion.training.previews import quick_method

BASE, SR, MASKED, PLAIN, GUIDED, CLASSES = (f"lightning_logs/digits/version_{k}" for k in range(6))
SMALL = [option for option in TINY if option != "timesteps=50"]
CASCADE = (*SMALL, "network.attention=[1]", "lr=0.01", "learning_rate.warmup_images=0", "learning_rate.decay=none")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny runs: a cascade's stages, a model of masked images, one that is unconditional; pictures to give them."""
    folder = tmp_path_factory.mktemp("runs")
    for arguments in (
        ("experiment=cascade_base", *CASCADE, "preview_every=0"),
        ("experiment=cascade_sr", *CASCADE, "preview_every=4"),
        (*TINY, "dataset.condition=masked", "denoiser=residual", "preview_every=0"),
        (*TINY, "preview_every=0"),
        (*TINY, "dataset.condition=lowres", "condition_dropout=0.3", "preview_every=0"),
        (*TINY, "dataset.condition=lowres", "network.num_classes=10", "preview_every=0"),
    ):
        outcome = call(train, folder, *arguments)
        assert outcome.code == 0, outcome.err
    pixels = (Digits().load().test.get(torch.arange(2))[:, 0] * 127.5 + 127.5).round().byte().numpy()
    small = pixels.reshape(2, 4, 2, 4, 2).mean((2, 4)).round().astype(np.uint8)
    (folder / "small").mkdir()
    for k in range(2):
        Image.fromarray(small[k]).save(folder / "small" / f"{k}.png")
        Image.fromarray(pixels[k]).save(folder / f"photo{k}.png")
    Image.fromarray(pixels[0]).resize((9, 8)).save(folder / "wide.png")
    (folder / "empty").mkdir()
    mask = np.zeros((8, 8), np.uint8)
    mask[2:6, 3:] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    return folder


def draw(folder: Path, *arguments: str) -> np.ndarray:
    outcome = call(sample, folder, *arguments, "steps=4", "out=arrays.npz")
    assert outcome.code == 0, outcome.err
    with np.load(folder / "arrays.npz") as file:
        return np.array(file["arr_0"])


def test_the_condition_sizes_the_network_and_previews_show_what_the_model_was_given(folder: Path) -> None:
    config = read(folder / SR / "checkpoints/last.ckpt").config
    assert (config["network"]["condition_channels"], config["network"]["condition_level"]) == (2, True)
    events = EventAccumulator(str(folder / SR)).Reload()
    assert set(events.Tags()["images"]) == {
        f"val/{name}" for name in ("samples", "samples_given", "samples_truth", "denoising")
    }
    assert read(folder / BASE / "checkpoints/last.ckpt").config["dataset"]["shape"] == [1, 4, 4]


def test_what_is_given_decides_and_twice_the_same_is_the_same(folder: Path) -> None:
    base = (f"ckpt={SR}", "n=2")
    first = draw(folder, *base, "condition=small/0.png")
    assert (draw(folder, *base, "condition=small/0.png") == first).all()
    other = draw(folder, *base, "condition=small/1.png")
    assert (other != first).any()
    # A folder's images in turn, one sample for each where no number is named.
    both = draw(folder, f"ckpt={SR}", "condition=small")
    assert len(both) == 2
    assert np.abs(both[0].astype(int) - first[0]).max() <= 1
    assert np.abs(both[1].astype(int) - other[1]).max() <= 1
    # The picture that the small one was made from is reduced to it.
    assert np.abs(draw(folder, *base, "condition=photo0.png").astype(int) - first).max() <= 3
    plain, guided = (draw(folder, f"ckpt={GUIDED}", "n=2", "condition=small/0.png", f"guidance={w}") for w in (1, 4))
    assert (guided != plain).any()


def test_a_model_without_images_is_given_test_images_and_shows_them(folder: Path) -> None:
    outcome = call(sample, folder, f"ckpt={SR}", "steps=4", "n=3", "show=condition", "out=rows.png")
    assert outcome.code == 0
    assert "conditioned on images made from test data" in outcome.err
    with Image.open(folder / "rows.png") as picture:
        assert abs(picture.width - picture.height) < 3  # three rows of three
        table = np.asarray(picture)
    truth = Digits().load().test.get(torch.arange(3))
    conditioned = LowRes(2)(truth, 0, torch.arange(3))["image"][:, :1]
    cell = 96  # pixels
    step = (table.shape[0] - cell) // 2
    for row, images in ((0, conditioned), (2, truth)):
        for k in range(3):
            shown = table[row * step : row * step + cell : 12, k * step : k * step + cell : 12]
            expected = (images[k, 0] * 127.5 + 127.5).round().numpy()
            assert np.abs(shown.astype(float) - expected).max() <= 1, (row, k)
    assert call(sample, folder, f"ckpt={MASKED}", "steps=3", "n=2", "show=condition", "out=moving.gif").code == 0


def test_a_masked_model_completes_and_with_init_keeps_what_is_known(folder: Path) -> None:
    given = (f"ckpt={MASKED}", "condition=photo0.png", "mask=mask.png", "n=2")
    free = draw(folder, *given)[..., 0]
    with Image.open(folder / "photo0.png") as image:
        photo = np.asarray(image)
    kept = draw(folder, *given, "init=photo0.png")[..., 0]
    known = np.ones((8, 8), bool)
    known[2:6, 3:] = False
    assert (kept[:, known] == photo[known]).all()
    assert (free[:, known] != photo[known]).any()


def test_a_cascade_draws_one_image_whatever_the_batch_and_its_noise_matters(folder: Path) -> None:
    cascade = f"ckpt=[{BASE},{SR}]"
    images = draw(folder, cascade, "n=4")
    assert images.shape == (4, 8, 8, 1)
    parts = draw(folder, cascade, "n=4", "batch_size=3")
    assert np.abs(parts.astype(int) - images).max() <= 1
    assert (draw(folder, cascade, "n=4", "conditioning_noise=0") == images).all()
    assert (draw(folder, cascade, "n=4", "conditioning_noise=0.3") != images).any()
    outcome = call(sample, folder, cascade, "steps=4", "n=4", "show=condition", "out=cascade.gif", "frames=3")
    assert outcome.code == 0, outcome.err
    assert "conditioned on images" not in outcome.err
    assert call(sample, folder, cascade, "steps=2", "n=2", "out=many", "conditioning_noise=0.1").code == 0
    record = json.loads((folder / "many/settings.json").read_text())
    assert len(record["checkpoint"]) == 2
    assert record["conditioning_noise"] == 0.1


def test_a_likelihood_is_that_given_the_condition(folder: Path) -> None:
    outcome = call(evaluate, folder, f"ckpt={MASKED}", "likelihood=vlb", "n=3", "steps=3")
    assert outcome.code == 0, outcome.err


@pytest.mark.slow
def test_samples_of_conditional_models_and_of_cascades_are_scored(folder: Path) -> None:
    few = ("n=95", "steps=2", "extractors=random", "cache=null")
    for name, ckpt in (("sr", SR), ("cascade", f"[{BASE},{SR}]")):
        outcome = call(evaluate, folder, f"ckpt={ckpt}", *few, f"out={name}")
        assert outcome.code == 0, outcome.err
        assert (folder / name / "metrics.json").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (f"ckpt={PLAIN} condition=photo0.png", "this model is not conditioned on images: train with dataset.condition"),
        (f"ckpt={PLAIN} show=condition out=a.png", "show=condition: this model is not conditioned on images"),
        (f"ckpt={SR} condition=wide.png", "it has 9x8 pixels (width x height), and this model enlarges 4x4"),
        (f"ckpt={SR} condition=nowhere.png", "condition=nowhere.png cannot be read as an image"),
        (f"ckpt={SR} condition=empty", "condition=empty: no images there (looked for .apng"),
        (f"ckpt={SR} condition=small mask=mask.png", "mask=mask.png needs the image that it belongs to"),
        (f"ckpt={SR} conditioning_noise=0.1", "conditioning_noise belongs to a cascade"),
        (f"ckpt={SR} show=condition rows=2 out=a.png", "rows=2: with show=condition a column is an image"),
        (f"ckpt={SR} show=condition out=a.npz", "show=condition is a picture"),
        (f"ckpt={MASKED} condition=photo0.png sampler=ddim", "this model completes pictures: add mask=mask.png"),
        (
            f"ckpt={MASKED} condition=wide.png mask=mask.png sampler=ddim",
            "it has 9x8 pixels (width x height), and this model draws",
        ),
        (f"ckpt={MASKED} condition=photo0.png mask=mask.png guidance=2", "never trained without its label or image"),
        (f"ckpt=[{SR},{BASE}]", "put the base model first"),
        (f"ckpt=[{BASE},{PLAIN}]", "enlarges nothing: each stage but the first"),
        (f"ckpt=[{PLAIN},{SR}]", "enlarges images of shape (1, 4, 4), and the stage before it draws (1, 8, 8)"),
        (f"ckpt=[{BASE},{SR}] conditioning_noise=0.9", "was trained with noise from 0 to 0.5"),
        (f"ckpt=[{BASE},{SR}] condition=small", "condition= belongs to a single model"),
        (f"ckpt=[{BASE},{SR}] eta=0.5", "eta=0.5 belongs to the ddim sampler"),
        (f"ckpt=[{BASE},{PLAIN}] guidance=2", "guidance=2: this model is unconditional"),
    ],
)
def test_what_does_not_go_together_is_one_line(folder: Path, arguments: str, said: str) -> None:
    assert_refused(call(sample, folder, *arguments.split()), said)


def test_weights_of_a_model_that_counts_on_other_images_are_refused(folder: Path) -> None:
    conditioned = ("dataset.condition=lowres", "denoiser=residual", f"init_from={MASKED}", "preview_every=0")
    before = sorted(folder.glob("lightning_logs/*/*"))
    assert_refused(call(train, folder, *TINY, *conditioned), "is of no use for others: that run's dataset.condition is")
    assert sorted(folder.glob("lightning_logs/*/*")) == before


@pytest.mark.parametrize("flip", [False, True])
def test_each_example_that_a_denoiser_prepares_by_has_its_own_image(flip: bool) -> None:
    module = DataModule(Digits(), batch_size=8, seed=0, flip=flip, condition=LowRes(2, noise=1e-6))
    module.setup()
    x, conditioned = training_data(None, module, torch.device("cpu"), 0, most=10_000)
    assert len(x) == (2 if flip else 1) * module.train_size == len(conditioned["label"])
    torch.testing.assert_close(conditioned["image"], LowRes(2)(x, 0, torch.arange(len(x)))["image"], rtol=0, atol=1e-4)
    assert len(conditioned["level"].unique()) > 1000  # as in training


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("dataset.condition=gray", "dataset.condition=gray does not exist (did you mean grey?)"),
        ("dataset.condition=grey", "dataset.condition=grey takes the colours away"),
        (
            "dataset=moons dataset.condition=lowres",
            "dataset.condition=lowres is made from images, and these data are points",
        ),
        ("dataset.condition=lowres dataset.condition.factor=3", "factor=3 does not divide images of 8x8 pixels"),
        ("dataset.condition=lowres network=tutorial", "TutorialUNet cannot be conditioned on images"),
        ("dataset.source.downsample=3", "downsample=3: must divide the images' 8 rows"),
        ("dataset.condition=masked dataset.condition.largest=2", "need 0 < smallest <= largest <= 1"),
        (
            "experiment=cascade_sr dataset=digits condition_dropout=0.1",
            "condition dropout of 0.1: this denoiser always needs its image; with all else as it is, this would do",
        ),
    ],
)
def test_training_refuses_conditions_that_cannot_be(tmp_path: Path, arguments: str, said: str) -> None:
    assert_refused(call(train, tmp_path, *on_digits(arguments)), said)
    assert not (tmp_path / "lightning_logs").exists()


def test_an_image_that_a_model_is_given_comes_with_its_own_class(folder: Path) -> None:
    test, conditioned = Digits().load().test, torch.tensor([5, 2, 9, 100])
    pipeline = Pipeline.load(str(folder / CLASSES))
    _, labels = draw_samples(pipeline, test, conditioned, 0, ["cpu"], 3)
    assert labels is not None
    assert torch.equal(labels, test.labels[conditioned])
    cond, rows = pipeline.conditions(torch.arange(6)), conditioned[[0, 1, 2, 3, 0, 1]]
    assert pipeline.condition is not None
    assert torch.equal(cond["label"], test.labels[rows])
    assert torch.equal(cond["image"], of_images(pipeline.condition, test, rows)["image"])
    assert pipeline.conditions(torch.arange(2), label=7)["label"].tolist() == [7, 7]
    for asked, expected in (((), test.labels[:12].tolist()), (("label=7",), [7] * 12)):
        draw(folder, f"ckpt={CLASSES}", "n=12", *asked)
        with np.load(folder / "arrays.npz") as file:
            assert file["arr_1"].tolist() == expected


def test_a_split_that_holds_no_others_is_said_to_be_given_again(folder: Path) -> None:
    base = ("extractors=random", "steps=2", "cache=null", "out=again")
    noted = call(evaluate, folder, f"ckpt={SR}", "n=100", *base)
    said = "20 of the 100 images that the model was conditioned on are those that it is judged by"
    assert said in noted.out, noted.err
    for quiet in ((f"ckpt={SR}", "n=100", "split=train"), (f"ckpt={PLAIN}", "n=100")):
        outcome = call(evaluate, folder, *quiet, *base)
        assert outcome.code == 0, outcome.err
        assert "was conditioned on" not in outcome.out


@pytest.mark.parametrize("conditions", [("dataset.condition=lowres",), ()])
def test_previews_and_scores_tell_what_belongs_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, conditions: tuple[str, ...]
) -> None:
    seen: list[Condition] = []

    def watched(denoiser: Denoiser, steps: int) -> tuple[Any, Tensor]:
        sampler, times = quick_method(denoiser, 2)

        def run(denoiser: Denoiser, x: Tensor, times: Tensor, noise: Noise) -> Iterator[Evaluation]:
            assert isinstance(denoiser, Conditioned)
            seen.append(denoiser.cond)
            return sampler(denoiser, x, times, noise)

        return run, times

    monkeypatch.setattr(previews_module, "quick_method", watched)
    every = ("preview_every=4", "score_every=4", "network.num_classes=10")
    outcome = call(train, tmp_path, *TINY, *every, *conditions)
    assert outcome.code == 0, outcome.err
    val = Digits().load().val
    in_preview = torch.arange(16)
    of_scores = judging_and_conditioning(180, 256)[1]
    previews = [cond for cond in seen if len(cond["label"]) == 16]
    scored = {name: torch.cat([cond[name] for cond in seen if len(cond["label"]) > 16]) for name in seen[0]}
    assert len(previews) == 1
    assert torch.equal(previews[0]["label"], val.labels[in_preview] if conditions else in_preview % 10)
    assert torch.equal(scored["label"], val.labels[of_scores])
    if conditions:
        of_both = ((previews[0]["image"], in_preview), (scored["image"], of_scores))
        assert all(torch.equal(image, of_images(LowRes(2, "bilinear"), val, rows)["image"]) for image, rows in of_both)
    else:
        assert set(scored) == {"label"}
