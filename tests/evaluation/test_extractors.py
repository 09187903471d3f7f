"""Extractors of features, the classifiers that are shipped, and the cache."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from data.images import DEBIAN_FASHION, Digits, Fashion
from data.mnist5k import Mnist5k
from diffusion.evaluation import classifiers
from diffusion.evaluation import extractors as ext
from diffusion.evaluation.cache import Cache, fingerprint, read_arrays, write_arrays
from diffusion.evaluation.table import held, random_rows
from diffusion.media import quantised
from diffusion.runs.digests import digest


def bytes_of(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, shape, generator=generator, dtype=torch.int64).byte()


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (1, 5, 3), (3, 100, 70)])
def test_both_extractors_take_any_image_and_give_one_vector_each(shape: tuple[int, ...]) -> None:
    pixels = bytes_of(0, 3, *shape)
    for module, d in ((ext.RandomConvolutions(shape[0]), 84), (ext.Classifier(shape, 10), 64)):
        found = ext.features(module.eval(), pixels)
        assert found.shape == (3, d)
        torch.testing.assert_close(found[1:2], ext.features(module, pixels[1:2]), rtol=1e-4, atol=1e-5)


def test_random_convolutions_are_the_same_everywhere_and_do_not_hear_flat_images() -> None:
    pixels = (torch.arange(64).reshape(1, 1, 8, 8) * 37 % 256).byte()
    found = ext.features(ext.RandomConvolutions(1).eval(), pixels)[0, [0, 7, 8, 19, 20]]
    torch.testing.assert_close(
        found, torch.tensor([2.530965, 4.33467, 0.396181, 1.540597, 3.090011]), rtol=1e-5, atol=1e-5
    )  # on whatever machine and version
    assert digest(ext.RandomConvolutions(1)) != digest(ext.RandomConvolutions(1, seed=1))
    flat = torch.full((1, 1, 16, 16), 77, dtype=torch.uint8)
    inside = torch.nn.functional.conv2d(ext.dequantised(flat), ext.RandomConvolutions(1).get_buffer("filters0"))
    torch.testing.assert_close(inside, torch.zeros_like(inside), atol=1e-6, rtol=0)


def test_quantising_gives_back_every_byte_and_rounds() -> None:
    pixels = torch.arange(256).byte().reshape(1, 1, 16, 16)
    assert torch.equal(quantised(ext.dequantised(pixels)), pixels)
    assert quantised(torch.tensor([-1.5, 0.9 / 127.5, 1.5])).tolist() == [0, 128, 255]


def test_a_digest_changes_with_any_weight_and_with_the_class() -> None:
    module = ext.Classifier((1, 8, 8), 10)
    before = digest(module)
    module.head.bias.data[3] += 1e-6
    assert digest(module) != before
    assert digest(nn.Linear(2, 2, bias=False)) != digest(nn.Sequential())


def test_training_a_classifier_repeats_itself_and_leaves_the_random_numbers_alone() -> None:
    pixels, labels = bytes_of(0, 40, 1, 8, 8), torch.arange(40) % 4
    state = torch.get_rng_state()
    first, second = (ext.train_classifier(pixels, labels, 4, steps=5) for _ in range(2))
    assert digest(first) == digest(second)
    assert digest(first) != digest(ext.train_classifier(pixels, labels, 4, steps=5, seed=1))
    assert torch.equal(state, torch.get_rng_state())


def test_shipped_classifiers_are_small_whole_and_accurate() -> None:
    for name, source, least in (
        *(("digits", Digits(), 0.97), ("fashion", Fashion(download=False), 0.9)),
        ("mnist5k", Mnist5k(), 0.97),
    ):
        path = classifiers.SHIPPED / f"{name}.npz"
        assert path.stat().st_size < 500_000
        assert hashlib.sha256(path.read_bytes()).hexdigest() == classifiers.SHA256[name]
        if name == "fashion" and not DEBIAN_FASHION.is_dir():
            continue
        target = f"{type(source).__module__}.{type(source).__name__}"
        data = {"name": name, "shape": list(source.shape), "source": {"_target_": target}}
        made = classifiers.shipped(data)
        assert made is not None
        # A larger validation split has images that it was trained on; all of a smaller one are new to it.
        for holdout, comes in ((0, True), (5000, True), (5001, False)):
            found = classifiers.shipped(data | {"source": {"_target_": target, "holdout": holdout}})
            assert (found is not None) == comes
        test = source.load().test
        rows = random_rows(len(test))[:2000]
        assert (ext.predicted(made, held(test, rows)) == test.labels[rows]).double().mean() > least
    assert classifiers.shipped({"name": "digits", "shape": [1, 8, 8], "source": {"_target_": "data.toy.Toy2d"}}) is None


def test_a_shipped_classifier_that_was_changed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "digits.npz").write_bytes((classifiers.SHIPPED / "digits.npz").read_bytes() + b"x")
    monkeypatch.setattr(classifiers, "SHIPPED", tmp_path)
    with pytest.raises(ValueError, match="not the file that was shipped"):
        classifiers.shipped({"name": "digits", "shape": [1, 8, 8], "source": {"_target_": "data.images.Digits"}})


def test_another_data_sets_classifier_is_trained_once_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(classifiers, "training_steps", lambda images: 3)
    dataset = {"name": "blobs", "shape": [1, 8, 8], "source": {"_target_": "data.folder.Folder"}}
    pixels, labels = bytes_of(0, 40, 1, 8, 8), torch.arange(40) % 4
    first = classifiers.classifier(dataset, pixels, labels, Cache(tmp_path))
    assert "training a classifier of blobs" in capsys.readouterr().out
    again = classifiers.classifier(dataset, pixels, labels, Cache(tmp_path))
    assert capsys.readouterr().out == ""
    assert digest(first) == digest(again)
    classifiers.classifier(dataset, pixels, labels.flip(0), Cache(tmp_path))
    assert "training" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("clasifier", "extractor 'clasifier' does not exist: choose classifier, random, inception"),
        ("no_such_package.Net", "cannot import no_such_package"),
        ("mine.Missing", "mine has no Missing"),
        ("mine.number", "is int, not a torch module"),
        ("torn.Net", "extractor=torn.Net: cannot import torn \\(SyntaxError"),
        ("mine.needs", "extractor=mine.needs: needs\\(\\) fails \\(TypeError"),
    ],
)
def test_an_extractor_that_cannot_be_had_is_one_line(
    name: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text("number = 3\ndef needs(width): pass\n")
    (tmp_path / "torn.py").write_text("class Net(\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=said):
        ext.untrained(name, 1)


def test_any_torch_module_by_its_path_is_an_extractor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_features.py").write_text(
        "from torch import nn\nclass Flat(nn.Flatten):\n    pass\n"
        "class Wrong(nn.Identity):\n    pass\nclass Nan(nn.Flatten):\n"
        "    def forward(self, x): return x.flatten(1) / 0\n"
    )
    monkeypatch.chdir(tmp_path)
    pixels = bytes_of(0, 2, 1, 2, 2)
    torch.testing.assert_close(
        ext.features(ext.untrained("own_features.Flat", 1), pixels), ext.dequantised(pixels).flatten(1)
    )
    with pytest.raises(ValueError, match="an extractor gives \\(n, d\\)"):
        ext.features(ext.untrained("own_features.Wrong", 1), pixels)
    with pytest.raises(ValueError, match="not finite"):
        ext.features(ext.untrained("own_features.Nan", 1), pixels)


def test_weights_that_an_own_extractor_draws_are_the_same_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_random.py").write_text("from torch import nn\ndef net(): return nn.Linear(4, 2)\n")
    monkeypatch.chdir(tmp_path)
    state = torch.get_rng_state()
    first, second = (ext.untrained("own_random.net", 1) for _ in range(2))
    assert digest(first) == digest(second)
    assert torch.equal(state, torch.get_rng_state())


def test_inception_says_what_is_missing_and_where_to_put_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*arguments: object, **named: object) -> None:
        raise OSError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(ValueError, match="no network") as refusal:
        ext.inception_weights()
    assert str(tmp_path / "hub" / "checkpoints" / ext.INCEPTION_FILE) in str(refusal.value)
    monkeypatch.setitem(__import__("sys").modules, "torch_fidelity", None)
    with pytest.raises(ValueError, match="pip install torch-fidelity"):
        ext.untrained("inception", 1)


@pytest.mark.parametrize("given", [[], ["random", "random"], ["random", "x"]])
def test_extractors_are_named_once_each(given: list[str]) -> None:
    with pytest.raises(ValueError, match="extractor"):
        ext.names(given)


def test_the_cache_makes_a_value_once_for_each_key_and_again_if_its_file_is_torn(tmp_path: Path) -> None:
    made: list[int] = []

    def make() -> dict[str, np.ndarray]:
        made.append(1)
        return {"a": np.arange(3)}

    cache, key = Cache(tmp_path), {"dataset": "fashion", "n": 3, "extractor": "x"}
    for _ in range(2):
        assert cache.get("features", key, make)["a"].tolist() == [0, 1, 2]
    assert len(made) == 1
    path = cache.path("features", key)
    assert path is not None
    for torn in (b"", path.read_bytes()[:-30], b"\x80\x04N."):
        path.write_bytes(torn)
        cache.get("features", key, make)
    write_arrays(path, {"a": np.arange(9), "key": np.array("another key")})
    assert cache.get("features", key, make)["a"].tolist() == [0, 1, 2]
    assert len(made) == 5
    for change in ({"dataset": "mnist"}, {"n": 4}, {"extractor": "y"}, {"more": 0}):
        assert cache.path("features", key | change) != path
    assert cache.path("nearest", key) != path
    assert not list(tmp_path.glob(".*part"))
    Cache(None).get("features", key, make)
    assert len(made) == 6


def test_a_fingerprint_changes_with_every_value_type_and_shape() -> None:
    x = bytes_of(0, 4, 1, 3, 3)
    changed = x.clone()
    changed[3, 0, 2, 2] ^= 1
    prints = {fingerprint(some) for some in (x, changed, x.flatten(), x.long(), x[:3], x.flip(0))}
    assert len(prints) == 6
    assert fingerprint(x.clone()) in prints


def test_pickled_arrays_are_not_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", a=np.array([{"code": 1}], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle"):
        read_arrays(tmp_path / "x.npz")


def test_features_say_how_many_images_of_each_batch_are_done() -> None:
    done: list[int] = []
    ext.features(ext.untrained("random", 1), torch.zeros(260, 1, 8, 8, dtype=torch.uint8), after_batch=done.append)
    assert done == [250, 10]
