"""A zip of images is read as the folder that was packed; what no data set has in a zip is refused in one line."""

import json
import pickle
import stat
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from data.archive import LARGEST, Archive
from data.changes import identities
from data.folder import Folder
from data.labels import CLASSES
from data.stream import Batches, Sequential


def pictures(folder: Path, count: int = 20) -> list[str]:
    """EDM's names of images, in two folders that are no classes."""
    chance = np.random.default_rng(0)
    names = [f"{i // 10:05d}/img{i:08d}.png" for i in range(count)]
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(chance.integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(folder / name)
    return names


def packed(folder: Path, **options: int) -> Path:
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w", **options) as archive:  # type: ignore[arg-type]
        for file in sorted(folder.rglob("*"), reverse=True):  # the order in an archive means nothing
            if file.is_file():
                archive.write(file, file.relative_to(folder).as_posix())
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """20 images with EDM's labels, 0, 1, 2, 0, 1, ..."""
    names = pictures(tmp_path / "edm")
    labels = {"labels": [[name, i % 3] for i, name in reversed(list(enumerate(names)))]}
    (tmp_path / "edm" / "dataset.json").write_text(json.dumps(labels))
    return tmp_path / "edm"


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
@pytest.mark.parametrize("memory_gib", [4.0, 0.0])
def test_a_zip_has_the_examples_of_its_folder_in_the_same_order_with_the_same_identities(
    folder: Path, compression: int, memory_gib: float
) -> None:
    path = packed(folder, compression=compression)
    for ours, theirs in zip(Folder(path, 8, memory_gib=memory_gib).load(), Folder(folder, 8).load(), strict=True):
        assert ours.lazy == (memory_gib == 0)
        assert torch.equal(ours.labels, theirs.labels)
        assert torch.equal(identities(ours), identities(theirs))
        every = torch.arange(len(ours))
        assert torch.equal(ours.get(every), theirs.get(every))


def test_the_labels_of_dataset_json_are_the_classes(folder: Path) -> None:
    source = Folder(packed(folder), 8, holdout=0)
    assert source.load().train.labels.tolist() == [i % 3 for i in range(20)]
    assert source.classes == ("0", "1", "2")


def test_a_dataset_json_without_labels_means_none_and_one_about_something_else_leaves_the_subfolders(
    folder: Path,
) -> None:
    (folder / "dataset.json").write_text('{"labels": null}')
    source = Folder(packed(folder), 8)
    assert not source.load().train.labels.any() and source.classes == ()
    (folder / "dataset.json").write_text('{"licence": "none"}')
    source = Folder(packed(folder), 8)
    source.load()
    assert source.classes == ("00000", "00001")


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ("[", "dataset.json is no JSON"),
        ("[" * 100_000, "dataset.json is no JSON"),
        ('{"labels": 3}', "must be a list of"),
        ('{"labels": [["00000/img00000000.png", -1]]}', "must be a list of"),
        ('{"labels": [["00000/img00000000.png", true]]}', "must be a list of"),
        ('{"labels": [["00000/img00000000.png", [0.5, 0.5]]]}', "must be a list of"),
        (json.dumps({"labels": [["00000/img00000000.png", CLASSES]]}), "must be a list of"),
        (
            '{"labels": [["00000/img00000000.png", 1]]}',
            "no label of 19 of 20 images, such as 00000/img00000001.png",
        ),
        ('{"labels": []}', "has no label of 20 of 20 images"),
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_labels_that_are_no_classes_are_refused(folder: Path, labels: str, said: str, zipped: bool) -> None:
    (folder / "dataset.json").write_text(labels)
    with pytest.raises(ValueError, match=said) as refused:
        Folder(packed(folder) if zipped else folder, 8).load()
    assert "\n" not in str(refused.value)


def entry(name: str, mode: int = stat.S_IFREG | 0o644) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info


@pytest.mark.parametrize(
    ("odd", "said"),
    [
        (entry("../x.png"), "a name that leads elsewhere"),
        (entry("a/../../x.png"), "a name that leads elsewhere"),
        (entry("/etc/x.png"), "a name that leads elsewhere"),
        (entry("a\\..\\x.png"), "a name that leads elsewhere"),
        (entry("C:/x.png"), "a name that leads elsewhere"),
        (entry("a//x.png"), "a name that leads elsewhere"),
        (entry("x.png", stat.S_IFLNK | 0o777), "is a link"),
        (entry("x.png", stat.S_IFIFO | 0o644), "is a link or another thing that is no file"),
        (entry("00000/img00000000.png"), "is there twice"),
    ],
    ids=lambda odd: odd.filename if isinstance(odd, zipfile.ZipInfo) else "",
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_entries_that_no_data_set_has_are_refused(folder: Path, odd: zipfile.ZipInfo, said: str) -> None:
    path = packed(folder)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(odd, "/etc/passwd")
    with pytest.raises(ValueError, match=said) as refused:
        Archive(path)
    assert "\n" not in str(refused.value)


def changed(path: Path, offset: int, value: bytes) -> None:
    """Overwrites bytes of the first entry in an archive's directory, from `offset` on."""
    content = bytearray(path.read_bytes())
    start = content.index(b"PK\x01\x02") + offset
    content[start : start + len(value)] = value
    path.write_bytes(content)


def test_a_file_that_is_said_to_be_huge_is_refused_before_it_is_read(folder: Path) -> None:
    path = packed(folder)
    changed(path, 24, (LARGEST + 1).to_bytes(4, "little"))
    with pytest.raises(ValueError, match="is said to have 268,435,457 bytes"):
        Archive(path)


def test_encrypted_files_are_refused(folder: Path) -> None:
    path = packed(folder)
    changed(path, 8, b"\x01")
    with pytest.raises(ValueError, match="is encrypted"):
        Archive(path)


def test_no_more_is_inflated_than_an_entry_declares(tmp_path: Path) -> None:
    """The bytes that are read are bounded by the declared size, which is bounded itself."""
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.png", bytes(10**6))
    changed(path, 24, (100).to_bytes(4, "little"))
    with Archive(path).open(0) as file, pytest.raises(zipfile.BadZipFile):
        assert len(file.read(10**6)) <= 100


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"\x89PNG"])
def test_a_file_that_is_no_zip_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.zip").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.zip is no \.zip that can be read"):
        Folder(tmp_path / "x.zip").load()


def test_a_zip_that_was_cut_off_is_one_line(folder: Path) -> None:
    path = packed(folder)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"is no \.zip that can be read"):
        Folder(path).load()


def test_a_zip_without_images_says_what_it_has(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a/latents.npy", b"")
    with pytest.raises(ValueError, match=r"no images there .*passed over 1 \.npy"):
        Folder(tmp_path / "x.zip").load()


def test_damaged_images_in_a_zip_are_named_and_skipped_up_to_the_share(folder: Path) -> None:
    path = packed(folder)
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 20] ^= 255  # of one stored image
    path.write_bytes(content)
    with pytest.warns(UserWarning, match=r"skipped 1 of 20 images"):
        assert sum(map(len, Folder(path, 8, max_unreadable=0.1).load())) == 19
    with pytest.raises(ValueError, match="1 of 20 images in"):
        Folder(path, 8).load()


def test_workers_read_a_zip_that_this_process_has_open(folder: Path) -> None:
    examples = Folder(packed(folder), 8, memory_gib=0, holdout=0).load().train
    loader = DataLoader(Batches(examples), sampler=Sequential(20, 4), batch_size=None, num_workers=2)
    served = torch.cat([batch["x"] for batch in loader])
    assert torch.equal(served, examples.get(torch.arange(20)))


def test_a_zip_is_sent_to_a_process_without_its_open_file(folder: Path) -> None:
    examples = Folder(packed(folder), 8, memory_gib=0, holdout=0).load().train
    sent = pickle.loads(pickle.dumps(examples))
    assert torch.equal(sent.get(torch.arange(20)), examples.get(torch.arange(20)))


def test_a_folder_that_holds_all_else_and_what_a_mac_adds_are_left_out_of_names(folder: Path) -> None:
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for file in folder.rglob("*"):
            if file.is_file():
                archive.write(file, file.relative_to(folder.parent).as_posix())
        archive.writestr("__MACOSX/edm/._dataset.json", b"x")
    source = Folder(path, 8)
    splits = source.load()
    assert source.classes == ("0", "1", "2")  # of dataset.json
    assert torch.equal(identities(splits.train), identities(Folder(folder, 8).load().train))
    assert Archive(path).folders() == ["00000", "00001"]


def test_a_zip_of_one_class_and_a_text_beside_it_is_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    (folder / "cats").mkdir(parents=True)
    for name in pictures(tmp_path / "made", 4):
        (tmp_path / "made" / name).rename(folder / "cats" / Path(name).name)
    (folder / "README.txt").write_text("cats")
    ours, theirs = Folder(packed(folder), 8), Folder(folder, 8)
    assert torch.equal(identities(ours.load().train), identities(theirs.load().train))
    assert ours.classes == theirs.classes == ("cats",)
