"""The table of scores: what makes them worse, what copying looks like, what is read, what is drawn."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from data.images import Digits
from data.stream import Images, Points, Splits
from diffusion.evaluation import classifiers, metrics, table
from diffusion.evaluation.cache import Cache
from diffusion.evaluation.copying import copying_row, neighbours
from diffusion.evaluation.extractors import RandomConvolutions, dequantised, features
from diffusion.evaluation.files import read_samples
from diffusion.evaluation.judge import Judge
from diffusion.evaluation.pictures import bound_picture, neighbour_picture
from diffusion.media import quantised
from diffusion.noise import Noise

DIGITS = {"name": "digits", "shape": [1, 8, 8], "source": {"_target_": "data.images.Digits"}}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Intervals and the classification accuracy score are tested elsewhere: here they need not be good."""
    monkeypatch.setattr(metrics, "REPLICATES", 10)
    monkeypatch.setattr(table, "CLASSIFIER_STEPS", 120)


@pytest.fixture(scope="module")
def splits() -> Splits:
    return Digits().load()


@pytest.fixture(scope="module")
def halves(splits: Splits) -> tuple[Tensor, Tensor, Tensor]:
    """Two disjoint sets of 600 real digits, and the labels of the second."""
    pixels, labels = table.everything(splits.train)
    rows = table.random_rows(len(pixels))
    return pixels[rows[:600]], pixels[rows[600:1200]], labels[rows[600:1200]]


def extractor(name: str) -> nn.Module:
    found = classifiers.shipped(DIGITS) if name == "classifier" else RandomConvolutions(1).eval()
    assert found is not None
    return found


def blurred(pixels: Tensor, passes: int) -> Tensor:
    x = dequantised(pixels)
    kernel = torch.tensor([[[[0.05, 0.1, 0.05], [0.1, 0.4, 0.1], [0.05, 0.1, 0.05]]]])
    for _ in range(passes):
        x = F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), kernel)
    return quantised(x)


def worse(kind: str, pixels: Tensor, labels: Tensor, level: int) -> Tensor:
    """Real images, more and more blurred, noisy, or without classes."""
    if kind == "blur":
        return blurred(pixels, level)
    if kind == "noise":
        noise = 0.15 * level * Noise(0, torch.arange(len(pixels))).normal(pixels.shape[1:])
        return quantised(dequantised(pixels) + noise)
    kept = pixels[labels < 10 - 3 * level]
    return kept.repeat(10, 1, 1, 1)[: len(pixels)]


@pytest.mark.parametrize("kind", ["blur", "noise", "classes"])
@pytest.mark.parametrize("name", ["classifier", "random"])
def test_scores_worsen_step_by_step_as_images_are_blurred_noised_or_lose_classes(
    name: str, kind: str, halves: tuple[Tensor, Tensor, Tensor]
) -> None:
    target, others, labels = halves
    module = extractor(name)
    real = features(module, target)
    fakes = [features(module, worse(kind, others, labels, level)) for level in range(4)]
    frechet = [metrics.frechet_distance(fake, real).value for fake in fakes]
    kernel = [metrics.kernel_distance(fake, real).value for fake in fakes]
    coverage = [metrics.neighbour_scores(fake, real)["coverage"].value for fake in fakes]
    assert frechet == sorted(frechet)
    assert kernel == sorted(kernel)
    assert coverage == sorted(coverage, reverse=True)
    assert frechet[-1] > 3 * frechet[0]


def test_a_copycat_is_caught_and_other_real_images_are_not(splits: Splits) -> None:
    training, _ = table.everything(splits.train)
    test = table.held(splits.test, torch.arange(180))
    others = table.held(splits.val, torch.arange(180))
    rows = {}
    for name, fake in (("copies", training[::8][:180]), ("others", others)):
        distances, _ = neighbours(fake, training, 1)
        rows[name] = copying_row(distances[:, 0], test, training, Cache(None)).samples
    assert rows["copies"].value == 1
    assert rows["copies"].low > 0.99
    assert rows["others"].low < 0.5 < rows["others"].high
    half = torch.cat((training[:90], others[:90]))
    mixed = copying_row(neighbours(half, training, 1)[0][:, 0], test, training, Cache(None)).samples
    assert mixed.low > 0.6


def test_copies_are_sought_as_training_shows_its_images_and_what_was_left_out_is_said(
    splits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    def judged(
        parts: Splits, fake: Tensor, trained_on: int | None = None, **changes: object
    ) -> tuple[float | None, list[str]]:
        judge = Judge(parts, "test", 100, DIGITS | changes, ["random"], Cache(None), trained_on=trained_on)
        found = judge(fake)
        row = next((row.samples.value for row in found.rows if row.name == "copying_pixels_n100"), None)
        assert all(note in found.text() for note in found.notes)
        return row, found.notes

    training, _ = table.everything(splits.train)
    mirrored = training[::14][:100].flip(3)
    assert judged(splits, mirrored, flip=True) == (1, [])
    plain, _ = judged(splits, mirrored)
    assert plain is not None and plain < 0.9
    assert judged(splits, training[:100], trained_on=100)[0] == 1
    row, notes = judged(splits, training[100:200], trained_on=100)  # copies of what the model never saw
    assert row is not None and row < 0.9
    assert notes == ["copies were sought among the 100 images that the model was trained on"]
    row, notes = judged(Splits(splits.train, splits.train, splits.train), training[:100])
    assert row is None
    assert "no copying_pixels" in notes[0] and "training set" in notes[0]
    monkeypatch.setattr(table, "_MOST_BYTES", 64 * 400)
    _, notes = judged(splits, training[:100])
    assert "among 400 of the 1,437 training images" in notes[0]


def test_neighbours_are_the_nearest_in_order_and_a_copy_is_at_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffusion.evaluation.copying._CHUNK", 7)
    generator = torch.Generator().manual_seed(0)
    training = torch.randint(256, (30, 3, 4, 4), generator=generator).byte()
    images = torch.cat((training[11:12], torch.randint(256, (5, 3, 4, 4), generator=generator).byte()))
    distances, indices = neighbours(images, training, 4)
    table = torch.cdist(images.flatten(1).double(), training.flatten(1).double()) / 48**0.5
    torch.testing.assert_close(distances.double(), table.sort(dim=1).values[:, :4], rtol=1e-5, atol=1e-5)
    assert torch.equal(indices, table.argsort(dim=1)[:, :4])
    assert (distances[0, 0], indices[0, 0]) == (0, 11)
    picture = neighbour_picture(images, training, distances, indices, rows=2)
    assert picture.shape[0] < picture.shape[1]
    cell = 64
    assert (picture[:cell, :cell] == picture[:cell, 2 * (cell + 2) : 2 * (cell + 2) + cell]).all()  # the copy


def test_the_real_halves_are_disjoint_the_same_each_time_and_as_many(splits: Splits) -> None:
    pixels, labels = torch.arange(40).byte().reshape(40, 1, 1, 1), torch.arange(40) % 3
    parts = Splits(Images(pixels, labels), Images(pixels[:7], labels[:7]), Images(pixels[:9], labels[:9]))
    train, test = table.reference(parts, "train", 100), table.reference(parts, "test", 100)
    assert (len(train), len(test)) == (20, 9)
    assert not set(train.real.flatten().tolist()) & set(train.train.flatten().tolist())
    assert torch.equal(train.labels, train.real.flatten().long() % 3)
    assert torch.equal(test.train_labels, test.train.flatten().long() % 3)
    assert torch.equal(table.reference(parts, "test", 5).real, test.real[:5])
    # A pixel is the number of its image.
    for split, n, others in (("train", 20, 20), ("test", 4, 4), ("test", 5, 4), ("val", 3, 3)):
        found = table.reference(parts, split, n)
        assert len(found.conditioning) == len(set(found.conditioning.tolist())) == n
        assert len(set(found.conditioning.tolist()) - set(found.real.flatten().tolist())) == others
    judged = table.reference(splits, "test", 180)
    spread = (dequantised(judged.noisy) - dequantised(judged.train))[(judged.train > 60) & (judged.train < 200)]
    assert spread.std().item() == pytest.approx(0.1, abs=0.01)


def test_a_sorted_split_is_judged_by_all_of_it() -> None:
    judged, conditioning = table.judging_and_conditioning(3000, 300)
    for rows in (judged, conditioning):
        assert torch.bincount(rows // 1000, minlength=3).min() > 60
    assert torch.equal(judged, table.judging_and_conditioning(3000, 300)[0])


@pytest.fixture(scope="module")
def judge(splits: Splits) -> Judge:
    return Judge(splits, "test", 2000, DIGITS, ["classifier", "random"], Cache(None))


def test_every_row_names_its_features_and_n_and_real_images_score_as_the_yardstick(
    judge: Judge, splits: Splits, tmp_path: Path
) -> None:
    assert len(judge) == 180  # the test split's
    found = judge(table.held(splits.val, torch.arange(180)), splits.val.labels)
    rows = {row.name: row for row in found.rows}
    features_ = [
        f"{score}_{name}_n180"
        for name in ("classifier", "random")
        for score in ("frechet", "kernel", "precision", "recall", "density", "coverage")
    ]
    classes = ["class_histogram_distance_n180", "class_accuracy_n180", "classification_accuracy_score_n180"]
    assert list(rows) == [*features_, *classes, "copying_pixels_n180"]
    for name in ("frechet_random_n180", "kernel_classifier_n180"):
        real = rows[name].real
        assert real is not None
        assert rows[name].samples.low < real.high
        assert rows[name].samples.high > real.low
    assert rows["class_accuracy_n180"].samples.value > 0.95
    assert rows["classification_accuracy_score_n180"].samples.value > 0.7
    assert sum(found.shares["samples"]) == pytest.approx(1)
    found.write(tmp_path, "test", {"n": 180}, step=7)
    record = json.loads((tmp_path / "metrics.json").read_text())
    assert record["scores"]["frechet_random_n180"]["samples"]["value"] == rows["frechet_random_n180"].samples.value
    assert set(record["extractors"]) == {"classifier", "random"}
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["classes.png", "neighbours.png"]


def test_precision_is_of_the_samples_and_recall_of_the_real(judge: Judge, splits: Splits) -> None:
    zeros = table.held(splits.train, torch.arange(len(splits.train))[splits.train.labels == 0])
    rows = {row.name: row.samples.value for row in judge(zeros.repeat(2, 1, 1, 1)[:180]).rows}
    for name in ("classifier", "random"):  # good images of one class alone
        assert rows[f"precision_{name}_n180"] > 0.6
        assert rows[f"density_{name}_n180"] > 0.5
        assert rows[f"recall_{name}_n180"] < 0.3
        assert rows[f"coverage_{name}_n180"] < 0.4


def test_real_features_are_kept_under_a_key_of_the_images_and_the_extractor(splits: Splits, tmp_path: Path) -> None:
    cache, fake = Cache(tmp_path), table.held(splits.val, torch.arange(100))

    def files(split: str = "test", n: int = 100, module: nn.Module | None = None, name: str = "random") -> set[str]:
        real = table.reference(splits, split, n)
        table.feature_rows(fake[:n], real, name, module or RandomConvolutions(1).eval(), cache)
        return {path.name for path in tmp_path.iterdir()}

    first = files()
    assert len(first) == 3  # real, training, noisy
    assert files() == first
    second = files(split="val")
    assert len(second) == 4  # the training images are the same
    third = files(n=90)
    assert len(third) == 7
    fourth = files(module=RandomConvolutions(1, seed=1).eval())
    assert len(fourth) == 10
    assert len(files(name="other")) == 13


def test_kept_features_are_made_anew_when_the_extractors_code_changes(splits: Splits, tmp_path: Path) -> None:
    class Own(nn.Flatten):  # without weights, as another edit of the same file would be
        factor = 1

        def forward(self, x: Tensor) -> Tensor:
            return self.factor * super().forward(x)[:, 20:30]

    def row(cache: Cache) -> table.Row:
        real = table.reference(splits, "test", 100)
        return table.feature_rows(table.held(splits.val, torch.arange(100)), real, "own.Own", Own(), cache)[0]

    row(Cache(tmp_path))
    Own.factor = 4
    assert row(Cache(tmp_path)) == row(Cache(None))


def test_points_are_scored_in_their_own_plane(tmp_path: Path) -> None:
    clouds = [torch.randn(400, 2, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]
    parts = Splits(*(Points(cloud) for cloud in clouds[:3]))
    judge = Judge(parts, "test", 300, {"name": "blob", "shape": [2]}, ["classifier"], Cache(tmp_path))
    distance, test = judge(clouds[3][:300]).rows
    assert (distance.name, test.name) == ("sliced_wasserstein_n300", "two_sample_accuracy_n300")
    assert distance.real is not None
    assert distance.samples.value < 2 * distance.real.value
    moved, conditioning = judge(clouds[3][:300] + 2).rows
    assert moved.samples.value == pytest.approx(2, rel=0.15)  # |(2, 2)| / sqrt 2
    assert conditioning.samples.low > 0.8
    with pytest.raises(ValueError, match="not finite"):
        judge(clouds[3][:300] / 0)
    with pytest.raises(ValueError, match="as many are needed"):
        judge(clouds[3])


def unlabelled(splits: Splits, channels: int = 1) -> Splits:
    """The same images without labels; in colour they are reddish."""
    tint = torch.tensor([1.0, 0.5, 0.5])[:channels, None, None]
    return Splits(*((lambda p: Images((p * tint).byte()))(table.everything(part)[0]) for part in splits))


@pytest.mark.parametrize("channels", [1, 3])
def test_images_without_classes_are_judged_by_random_features_whose_yardsticks_are_in_order(
    splits: Splits, channels: int
) -> None:
    parts = unlabelled(splits, channels)
    blob = {"name": "blob", "shape": [channels, 8, 8], "source": {"_target_": "data.folder.Folder"}}
    judge = Judge(parts, "test", 180, blob, None, Cache(None))
    found = judge(table.everything(parts.val)[0])
    assert list(found.extractors) == ["random"]
    assert found.notes == []
    frechet = next(row for row in found.rows if row.name == "frechet_random_n180")
    assert frechet.real is not None
    assert frechet.noisy is not None
    assert 1.5 * frechet.real.value < frechet.noisy.value
    with pytest.raises(ValueError, match="extractor=classifier: blob has no classes to tell apart: use random"):
        Judge(parts, "test", 180, blob, ["classifier"], Cache(None))


def test_two_classes_are_judged_by_a_classifier_too(splits: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifiers, "training_steps", lambda images: 5)
    halves = Splits(*(Images(table.everything(part)[0], part.labels // 5) for part in splits))
    two = DIGITS | {"name": "two", "source": {"_target_": "data.folder.Folder"}}
    assert list(Judge(halves, "test", 180, two, None, Cache(None)).extractors) == ["classifier", "random"]


def test_a_distance_that_ranks_noisy_data_before_clean_ones_is_named() -> None:
    low, high = (metrics.Score(value, value, value) for value in (0.47, 0.64))
    rows = [
        table.Row("frechet_x_n9", low, real=high, noisy=low),
        table.Row("kernel_x_n9", low, real=low, noisy=high),
        table.Row("precision_x_n9", low, real=high, noisy=low),  # more is better
        table.Row("copying_pixels_n9", low),
    ]
    (note,) = table.out_of_order(rows)
    assert note.startswith("frechet_x_n9 is out of order: it ranks real training data with noise 0.1 (0.47) before")


def test_a_set_smaller_than_the_features_are_many_is_refused_before_anything_slow(splits: Splits) -> None:
    with pytest.raises(ValueError, match="n=50 is too small for the 64 features of extractor classifier"):
        Judge(splits, "test", 50, DIGITS, ["classifier"], Cache(None))


def test_a_split_that_is_too_small_is_said_to_be_with_one_that_is_not(splits: Splits) -> None:
    few = Splits(splits.train, splits.val, Images(splits.test.get(torch.arange(15))))
    size = len(splits.train) // 2
    with pytest.raises(ValueError, match=f"split test has no more images; split=train allows {size}$"):
        Judge(few, "test", 500, DIGITS, ["random"], Cache(None))
    # Half of the training images are compared with the other half: too few here for the 84 features.
    few = Splits(Images(splits.train.get(torch.arange(180))), few.val, few.test)
    for split in ("test", "train"):
        with pytest.raises(ValueError, match="at least 95 are needed$"):
            Judge(few, split, 500, DIGITS, ["random"], Cache(None))


def test_samples_are_read_as_they_were_written(tmp_path: Path) -> None:
    pixels = torch.arange(3 * 2 * 4 * 5).reshape(3, 2, 4, 5)[:, :1].byte()
    np.savez(tmp_path / "x.npz", pixels.permute(0, 2, 3, 1).numpy(), np.arange(3))
    found, labels = read_samples(tmp_path / "x.npz", (1, 4, 5), 2)
    assert torch.equal(found, pixels[:2])
    assert labels is not None
    assert labels.tolist() == [0, 1]
    (tmp_path / "grey").mkdir()
    for row in (2, 0, 1):
        Image.fromarray(pixels[row, 0].numpy()).save(tmp_path / "grey" / f"{row:05d}.png")
    assert torch.equal(read_samples(tmp_path / "grey", (1, 4, 5), 9)[0], pixels)
    assert torch.equal(read_samples(tmp_path / "grey", (3, 4, 5), 9)[0], pixels.expand(-1, 3, -1, -1))
    np.savez(tmp_path / "p.npz", np.ones((4, 2), dtype=np.float32))
    assert read_samples(tmp_path / "p.npz", (2,), 9)[0].shape == (4, 2)


def test_samples_that_do_not_fit_are_one_line(tmp_path: Path) -> None:
    np.savez(tmp_path / "wide.npz", np.zeros((3, 8, 9, 1), dtype=np.uint8))
    np.savez(tmp_path / "float.npz", np.zeros((3, 8, 8, 1)))
    np.savez(tmp_path / "named.npz", images=np.zeros((3, 8, 8, 1)))
    np.savez(tmp_path / "pickled.npz", np.array([{"a": 1}], dtype=object))
    np.savez(tmp_path / "labels.npz", np.zeros((3, 8, 8, 1), dtype=np.uint8), np.arange(4))
    np.savez(tmp_path / "classes.npz", np.zeros((3, 8, 8, 1), dtype=np.uint8), np.arange(-1, 2))
    np.savez(tmp_path / "nan.npz", np.full((3, 2), np.nan))
    (tmp_path / "torn.npz").write_bytes((tmp_path / "wide.npz").read_bytes()[:-40])
    for name in ("empty", "sizes", "damaged"):
        (tmp_path / name).mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "sizes" / "a.png")
    Image.new("L", (9, 8)).save(tmp_path / "sizes" / "b.png")
    (tmp_path / "damaged" / "a.png").write_bytes(b"no picture")
    (tmp_path / "x.txt").write_text("no arrays")
    for name, other in (("deep", Image.new("I", (8, 8), 70_000)), ("glass", Image.new("RGBA", (8, 8), (9, 9, 9, 200)))):
        (tmp_path / name).mkdir()
        other.save(tmp_path / name / ("a.tiff" if name == "deep" else "a.png"))
    image, points = (1, 8, 8), (2,)
    for name, shape, said in (
        ("wide.npz", image, "arr_0 is uint8 of shape (3, 8, 9, 1), and these data are uint8 of shape (n, 8, 8, 1)"),
        ("float.npz", image, "arr_0 is float64"),
        ("wide.npz", points, "these data are floats of shape (n, 2,)"),
        ("named.npz", image, "has no arr_0 but images"),
        ("pickled.npz", image, "cannot be read (Object arrays cannot be loaded"),
        ("labels.npz", image, "arr_1 is no label for each sample but int64 of shape (4,)"),
        ("classes.npz", image, "arr_1 has labels from -1 to 1, and these data have 0 to 9"),
        ("nan.npz", points, "not finite"),
        ("torn.npz", image, "cannot be read"),
        ("nothing.npz", image, "there is no such file or folder"),
        ("x.txt", image, "is neither an .npz file nor a folder of images"),
        ("empty", image, "no images there"),
        ("empty", points, "is a folder of images, but these data are points"),
        ("sizes", image, "b.png is 9x8 pixels, and these data are 8x8"),
        ("damaged", image, "cannot read a.png"),
        ("deep", image, "cannot read a.tiff (it has more than 16 bits a channel"),
        ("glass", image, "cannot read a.png (parts of it are transparent"),
    ):
        with pytest.raises(ValueError) as refusal:
            read_samples(tmp_path / name, shape, 9, classes=10)
        assert said in str(refusal.value)
        assert "\n" not in str(refusal.value)


def test_the_picture_of_a_bound_is_drawn_for_positive_and_for_negative_terms() -> None:
    times = torch.linspace(1, 0, 5).double()
    for terms in (torch.rand(3, 5).double() + 0.1, torch.randn(3, 5).double()):
        picture = bound_picture(times, terms, "bits/dim")
        assert picture.ndim == 3
        assert picture.min() < 100 < 250 < picture.max()
