"""Published data sets: read as published, and what a user sees when they are missing or damaged."""

import gzip
import hashlib
import pickle
import re
import tarfile
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torchvision import datasets

from data import images as images_module
from data import prepare
from data.images import Cifar, DataUnavailable, Fashion, Mnist

# --- published sets ---


def idx(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    return header + array.astype(np.uint8).tobytes()


def idx_files(train: int = 40, test: int = 12) -> dict[str, bytes]:
    random = np.random.RandomState(1)
    return {
        f"{part}-{kind}-ubyte": idx(array)
        for part, n in (("train", train), ("t10k", test))
        for kind, array in (
            ("images-idx3", random.randint(0, 256, (n, 28, 28))),
            ("labels-idx1", np.arange(n) % 10),
        )
    }


def write_idx(root: Path, folder: str) -> dict[str, bytes]:
    files = idx_files()
    (root / folder).mkdir(parents=True)
    for name, content in files.items():
        (root / folder / name).write_bytes(content)
    return files


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setattr(images_module, "DEBIAN_FASHION", Path("no/such/folder"))


def write_cifar(root: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Write ten-image batches in the real format and let torchvision take their md5 for the real ones."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    pixels = np.random.RandomState(2).randint(0, 256, (60, 3072)).astype(np.uint8)
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    contents = {
        name: pickle.dumps({"data": pixels[10 * i : 10 * i + 10], "labels": list(range(10))})
        for i, name in enumerate(names)
    }
    contents["batches.meta"] = pickle.dumps({"label_names": list("abcdefghij")})
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    md5 = {name: hashlib.md5(content).hexdigest() for name, content in contents.items()}
    monkeypatch.setattr(datasets.CIFAR10, "train_list", [[name, md5[name]] for name in names[:5]])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [["test_batch", md5["test_batch"]]])
    monkeypatch.setattr(datasets.CIFAR10, "meta", {**datasets.CIFAR10.meta, "md5": md5["batches.meta"]})
    return pixels


@pytest.mark.parametrize(("source", "folder"), [(Mnist, "MNIST/raw"), (Fashion, "FashionMNIST/raw")])
def test_idx_files_are_read_padded_with_black_and_split(tmp_path: Path, source: type[Mnist], folder: str) -> None:
    files = write_idx(tmp_path, folder)
    splits = source(tmp_path, download=False, holdout=5).load()
    assert [len(part) for part in splits] == [35, 5, 12]
    held = np.random.RandomState(0).permutation(40)[:5]
    assert splits.val.rows.tolist() == held.tolist()
    assert sorted([*splits.train.rows.tolist(), *held.tolist()]) == list(range(40))
    x = splits.test.get(torch.arange(12))
    assert x.shape == (12, *source(tmp_path).shape) == (12, 1, 32, 32)
    inner = torch.zeros(32, 32, dtype=torch.bool)
    inner[2:-2, 2:-2] = True
    assert (x[:, :, ~inner] == -1).all()
    published = np.frombuffer(files["t10k-images-idx3-ubyte"], np.uint8, offset=16).reshape(12, 28, 28)
    assert np.array_equal(np.rint((x[:, 0, 2:-2, 2:-2].numpy() + 1) * 127.5), published)
    assert splits.test.labels.tolist() == [i % 10 for i in range(12)]


def test_holdout_0_trains_on_all_and_validates_on_the_test_split(tmp_path: Path) -> None:
    write_idx(tmp_path, "MNIST/raw")
    splits = Mnist(tmp_path, holdout=0).load()
    assert len(splits.train) == 40
    assert splits.val is splits.test


def test_more_held_out_than_there_are_is_refused(tmp_path: Path) -> None:
    write_idx(tmp_path, "MNIST/raw")
    with pytest.raises(ValueError, match="holdout=5000: must be below the 40"):
        Mnist(tmp_path).load()


def test_cifar_is_read_in_planes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = write_cifar(tmp_path, monkeypatch)
    splits = Cifar(tmp_path, download=False, holdout=0).load()
    assert [len(part) for part in splits] == [50, 10, 10]
    assert np.array_equal(splits.train.pixels.numpy(), pixels[:50].reshape(-1, 3, 32, 32))
    assert np.array_equal(splits.test.pixels.numpy(), pixels[50:].reshape(-1, 3, 32, 32))
    assert splits.train.labels.tolist() == list(range(10)) * 5


def test_a_cifar_file_that_fails_its_md5_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar(tmp_path, monkeypatch)
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").write_bytes(b"torn")
    with pytest.raises(DataUnavailable, match="data_batch_3 fails its md5 check.*delete .*cifar-10-batches-py"):
        Cifar(tmp_path).load()


@pytest.mark.parametrize("source", [Mnist, Fashion, Cifar])
def test_offline_one_line_names_every_place_and_nothing_is_left(
    tmp_path: Path, source: type[Mnist], offline: None
) -> None:
    with pytest.raises(DataUnavailable) as caught:
        source(tmp_path / "new" / "raw").load()
    text = str(caught.value)
    assert "\n" not in text
    for part in ("new/raw", "not found", "Name or service not known", "dataset=digits", "data.prepare dataset="):
        assert part in text
    assert ("no/such/folder: not found" in text) == (source is Fashion)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_download_leaves_the_users_own_folders(tmp_path: Path, offline: None) -> None:
    (tmp_path / "raw").mkdir()
    with pytest.raises(DataUnavailable):
        Mnist(tmp_path / "raw").load()
    assert list((tmp_path / "raw").iterdir()) == []


def test_download_false_never_touches_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: pytest.fail("asked the network"))
    with pytest.raises(DataUnavailable, match="download=false"):
        Mnist(tmp_path, download=False).load()


def test_a_data_dir_that_cannot_be_written_is_reported(tmp_path: Path, offline: None) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataUnavailable, match="download: .*Not a directory"):
        Mnist(tmp_path / "file" / "raw").load()


@pytest.mark.parametrize("keep", [0, 3, 16, 1000])
def test_a_truncated_idx_file_is_one_clear_line_and_is_not_replaced(tmp_path: Path, keep: int, offline: None) -> None:
    files = write_idx(tmp_path, "MNIST/raw")
    path = tmp_path / "MNIST/raw/train-images-idx3-ubyte"
    path.write_bytes(files[path.name][:keep])
    with pytest.raises(DataUnavailable, match="damaged.*never replaces files; delete") as caught:
        Mnist(tmp_path).load()
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == files[path.name][:keep]


def test_wrong_labels_are_damage(tmp_path: Path) -> None:
    write_idx(tmp_path, "MNIST/raw")
    path = tmp_path / "MNIST/raw/train-labels-idx1-ubyte"
    path.write_bytes(idx(np.full(40, 11)))
    with pytest.raises(DataUnavailable, match="labels outside 0..9"):
        Mnist(tmp_path).load()
    path.write_bytes(idx(np.zeros(39)))
    with pytest.raises(DataUnavailable, match="40 training images but 39 labels"):
        Mnist(tmp_path).load()


def test_debians_fashion_is_read_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline: None) -> None:
    debian = tmp_path / "debian"
    debian.mkdir()
    for name, content in idx_files().items():
        (debian / f"{name}.gz").write_bytes(gzip.compress(content))
    monkeypatch.setattr(images_module, "DEBIAN_FASHION", debian)
    write_idx(tmp_path, "FashionMNIST/raw")
    unpacked = Fashion(tmp_path, holdout=5).load()
    with pytest.warns(UserWarning, match=r"passed over .*none/FashionMNIST/raw: not found; using .*debian"):
        packed = Fashion(tmp_path / "none", holdout=5).load()  # a folder that was named has not the data
    assert not (tmp_path / "none").exists()
    for a, b in zip(unpacked, packed, strict=True):
        everything = torch.arange(len(a))
        assert torch.equal(a.get(everything), b.get(everything))
        assert torch.equal(a.labels, b.labels)
    (debian / "t10k-images-idx3-ubyte.gz").write_bytes(b"\x1f\x8b torn")
    with pytest.raises(DataUnavailable, match="debian: "):
        Fashion(tmp_path / "none").load()


@pytest.mark.parametrize(("source", "folder"), [(Mnist, "MNIST/raw"), (Fashion, "FashionMNIST/raw")])
def test_gz_files_where_the_message_wants_them_are_read_as_the_unpacked_ones(
    tmp_path: Path, source: type[Mnist], folder: str, offline: None
) -> None:
    write_idx(tmp_path / "unpacked", folder)
    home = tmp_path / "packed" / folder
    home.mkdir(parents=True)
    for name, content in idx_files().items():
        (home / f"{name}.gz").write_bytes(gzip.compress(content))
    unpacked, packed = (source(tmp_path / name, holdout=5).load() for name in ("unpacked", "packed"))
    for a, b in zip(unpacked, packed, strict=True):
        assert torch.equal(a.get(torch.arange(len(a))), b.get(torch.arange(len(b))))
        assert torch.equal(a.labels, b.labels)
    (home / "train-images-idx3-ubyte.gz").unlink()
    with pytest.raises(DataUnavailable, match=r"\*\.gz: train-images-idx3-ubyte\.gz not found"):
        source(tmp_path / "packed").load()


@pytest.mark.parametrize("place", [".", "cifar-10-batches-py"])
def test_cifars_archive_is_read_after_its_md5_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline: None, place: str
) -> None:
    pixels = write_cifar(tmp_path / "unpacked", monkeypatch)
    archive = tmp_path / "packed" / place / "cifar-10-python.tar.gz"
    archive.parent.mkdir(parents=True)
    with tarfile.open(archive, "w:gz") as file:
        file.add(tmp_path / "unpacked" / "cifar-10-batches-py", "cifar-10-batches-py")
    with pytest.raises(DataUnavailable, match=r"cifar-10-python\.tar\.gz: damaged: it fails its md5 check"):
        Cifar(tmp_path / "packed").load()
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    test = Cifar(tmp_path / "packed", holdout=5).load().test
    assert np.array_equal(np.rint((test.get(torch.arange(10)).numpy() + 1) * 127.5).reshape(10, -1), pixels[50:])


def test_damaged_files_passed_over_for_debians_are_mentioned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline: None
) -> None:
    for name, content in idx_files().items():
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content))
    monkeypatch.setattr(images_module, "DEBIAN_FASHION", tmp_path)
    write_idx(tmp_path, "FashionMNIST/raw")
    (tmp_path / "FashionMNIST/raw/train-labels-idx1-ubyte").write_bytes(b"")
    with pytest.warns(UserWarning, match="passed over .*FashionMNIST/raw: damaged"):
        assert len(Fashion(tmp_path, holdout=5).load().train) == 35


def test_a_download_fills_in_what_is_missing_and_replaces_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = write_idx(tmp_path, "MNIST/raw")
    (tmp_path / "MNIST/raw/t10k-labels-idx1-ubyte").unlink()
    mine = tmp_path / "MNIST/raw/train-images-idx3-ubyte"

    def download(self: datasets.MNIST) -> None:
        Path(self.raw_folder).mkdir(parents=True)
        for name, content in files.items():
            fetched = content if name != mine.name else idx(np.zeros((40, 28, 28)))
            Path(self.raw_folder, name).write_bytes(fetched)

    monkeypatch.setattr(datasets.MNIST, "download", download)
    assert [len(part) for part in Mnist(tmp_path, holdout=5).load()] == [35, 5, 12]
    assert mine.read_bytes() == files[mine.name]
    assert [path.name for path in tmp_path.iterdir()] == ["MNIST"]


# --- prepare ---


def test_prepare_reports_what_it_has(capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare.main(["dataset=digits"]) == 0
    assert capsys.readouterr().out == "digits: 1,437 train, 180 val, 180 test; each of shape (1, 8, 8)\n"


def test_prepare_lists_the_data_sets_and_its_settings_by_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare.main(["--help"]) == 0
    out = capsys.readouterr().out
    assert "digits fashion folder" in out
    assert all(setting in out for setting in ("dataset=NAME", "data_dir=FOLDER", "download=false"))


def test_prepare_takes_the_options_of_the_yaml_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_idx(tmp_path, "MNIST/raw")
    assert prepare.main(["dataset=mnist", f"data_dir={tmp_path}", "dataset.source.holdout=5"]) == 0
    assert "35 train, 5 val, 12 test" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dataset=cifa"], "dataset=cifa: must be one of .*did you mean 'cifar'"),
        ([], "dataset=: must be one of"),
        (["cifar"], "'cifar': write key=value"),
        (["dataset=digits", "data_dri=x"], "data_dri=x: unknown key.*did you mean 'data_dir'"),
        (["dataset=mnist", "dataset.source.holdout=abc"], "holdout=abc"),
        (["dataset=folder"], "dataset=folder needs dataset.path="),
        (["dataset=folder", "dataset.path=no/such"], "no/such: no such folder"),
        (["dataset=mnist", "data_dir=no/such", "download=false"], "mnist is not available"),
    ],
)
def test_prepare_fails_with_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare.main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert re.search(message, error)


# Their shape is a setting.
SIZED = ("folder", "huggingface")


@pytest.mark.parametrize("name", [path.stem for path in sorted(prepare.CONFIGS.glob("*.yaml"))])
def test_every_yaml_file_builds_a_source_of_its_shape(name: str, tmp_path: Path) -> None:
    arguments = [f"dataset={name}", *([f"dataset.path={tmp_path}"] if name in SIZED else [])]
    config = OmegaConf.load(prepare.CONFIGS / f"{name}.yaml")
    _, source = prepare.build(arguments)
    assert config.name == name
    expected = [3, 128, 128] if name in SIZED else config.shape
    assert list(source.shape) == expected


@pytest.mark.parametrize("name", [path.stem for path in sorted(prepare.CONFIGS.glob("*.yaml"))])
def test_each_setting_of_prepare_changes_the_data_or_is_refused(name: str) -> None:
    config = OmegaConf.load(prepare.CONFIGS / f"{name}.yaml")
    keys = ["data_dir", "download", *(f"dataset.{key}" for key in config)]
    keys += [f"dataset.source.{key}" for key in config.source if key != "_target_"]
    arguments = [f"dataset={name}", *(["dataset.path=photos"] if name in SIZED else [])]
    _, default = prepare.build(arguments)
    for key in keys:
        try:
            _, source = prepare.build([*arguments, f"{key}=7"])
        except (ValueError, OmegaConfBaseException):
            continue
        assert vars(source) != vars(default), key
