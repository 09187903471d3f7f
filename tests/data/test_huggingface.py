"""Data sets of the library datasets, as files of it here; a name on the Hub without a network."""

import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.scripts import TINY, call
from torch.utils.data import DataLoader

import train
from data.changes import identities
from data.folder import Folder
from data.huggingface import HuggingFace
from data.stream import Batches, Sequential

datasets = pytest.importorskip("datasets")
COUNT = 30


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def images(count: int = COUNT) -> list[Image.Image]:
    chance = np.random.default_rng(0)
    return [Image.fromarray(chance.integers(0, 256, (9, 9, 3), dtype=np.uint8)) for _ in range(count)]


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def table(labels: Sequence[Any] | None = None, feature: Any = None, **more: Any) -> Any:
    """A data set of 30 images in the column img."""
    columns = {"img": images()} | ({} if labels is None else {"label": labels}) | more
    made = datasets.Dataset.from_dict(columns).cast_column("img", datasets.Image())
    return made if feature is None else made.cast_column("label", feature)


NAMED = [i % 2 for i in range(COUNT)], datasets.ClassLabel(names=["cat", "dog"])


def test_every_form_has_the_images_of_a_folder_of_them_in_the_same_order(tmp_path: Path) -> None:
    whole = table(*NAMED)
    (tmp_path / "photos").mkdir()
    for i, image in enumerate(images()):
        image.save(tmp_path / "photos" / f"{i:03d}.png")
    whole.to_parquet(tmp_path / "one.parquet")
    (tmp_path / "shards").mkdir()
    for i in range(2):
        rows = range(i * 15, i * 15 + 15)
        whole.select(rows).to_parquet(tmp_path / "shards" / f"train-{i:05d}-of-00002.parquet")
    whole.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict({"train": whole}).save_to_disk(tmp_path / "parts")
    ours = Folder(tmp_path / "photos", 8).load()
    for name in ("one.parquet", "shards", "saved", "parts"):
        for memory_gib in (4.0, 0.0):
            source = HuggingFace(tmp_path / name, 8, memory_gib=memory_gib)
            for split, expected in zip(source.load(), ours, strict=True):
                assert split.lazy == (memory_gib == 0)
                assert torch.equal(split.get(torch.arange(len(split))), expected.get(torch.arange(len(expected))))
            assert source.classes == ("cat", "dog")


def test_the_splits_that_there_are_are_used_and_others_held_out(tmp_path: Path) -> None:
    for name, rows in (("train", range(20)), ("test", range(20, 30))):
        table(*NAMED).select(rows).to_parquet(tmp_path / f"{name}-00000-of-00001.parquet")
    assert [len(split) for split in HuggingFace(tmp_path, 8, holdout=0.1).load()] == [18, 2, 10]
    table(*NAMED).select(range(3)).to_parquet(tmp_path / "validation.parquet")
    splits = HuggingFace(tmp_path, 8).load()
    assert [len(split) for split in splits] == [20, 3, 10]
    assert splits.test.labels.tolist() == [i % 2 for i in range(20, 30)]


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        ([i % 3 for i in range(COUNT)], ("0", "1", "2")),
        (["dog" if i % 2 else "cat" for i in range(COUNT)], ("cat", "dog")),
        (None, ()),
    ],
    ids=["numbers", "texts", "none"],
)
def test_labels_are_numbers_or_texts(tmp_path: Path, labels: list[Any] | None, classes: tuple[str, ...]) -> None:
    table(labels).to_parquet(tmp_path / "x.parquet")
    source = HuggingFace(tmp_path / "x.parquet", 8, holdout=0)
    found = source.load().train.labels.tolist()
    assert source.classes == classes
    assert found == ([0] * COUNT if labels is None else [sorted(set(labels)).index(label) for label in labels])


def test_columns_are_named_where_several_would_do(tmp_path: Path) -> None:
    fine, coarse = ({"names": [f"{kind}{i}" for i in range(2)]} for kind in ("fine", "coarse"))
    several = table(two=[0] * COUNT, one=[i % 2 for i in range(COUNT)], mask=images())
    several = several.cast_column("one", datasets.ClassLabel(**fine)).cast_column("two", datasets.ClassLabel(**coarse))
    several = several.cast_column("mask", datasets.Image())
    several.rename_column("img", "left").to_parquet(tmp_path / "x.parquet")
    path = tmp_path / "x.parquet"
    with pytest.raises(ValueError, match="several columns may hold images, .*dataset.source.image_column="):
        HuggingFace(path, 8).load()
    with pytest.warns(UserWarning, match="no image has a label, since .* may all be one"):
        assert not HuggingFace(path, 8, image_column="left").load().train.labels.any()
    source = HuggingFace(path, 8, image_column="left", label_column="one", holdout=0)
    assert source.load().train.labels.tolist() == [i % 2 for i in range(COUNT)]
    assert source.classes == ("fine0", "fine1")
    for setting in ("image_column", "label_column"):
        chosen = {"image_column": "left", setting: "right"}
        with pytest.raises(ValueError, match=f"{setting}=right: there is no such column; there are "):
            HuggingFace(path, 8, **chosen).load()


def test_bytes_without_a_feature_are_images_too(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"picture": [png(image) for image in images()]}).to_parquet(tmp_path / "x.parquet")
    assert len(HuggingFace(tmp_path / "x.parquet", 8, holdout=0).load().train) == COUNT


@pytest.mark.parametrize(("label", "column"), [(-1, None), (10**6, None), (0.5, "label"), (None, "label")])
def test_labels_that_are_no_classes_are_refused(tmp_path: Path, label: Any, column: str | None) -> None:
    table([label] * COUNT).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(ValueError, match="the column label has .*, and classes are texts or whole numbers from 0"):
        HuggingFace(tmp_path / "x.parquet", 8, label_column=column).load()


def test_rows_without_an_image_are_skipped_up_to_the_share(tmp_path: Path) -> None:
    contents = [png(image) for image in images()]
    contents[3] = b"no image"
    contents[4] = None  # type: ignore[call-overload]
    datasets.Dataset.from_dict({"image": contents}).to_parquet(tmp_path / "x.parquet")
    with pytest.warns(UserWarning, match=r"row 3 of train \(not an image\), row 4 of train \(it has no image"):
        splits = HuggingFace(tmp_path / "x.parquet", 8, max_unreadable=0.1, holdout=0).load()
    assert len(splits.train) == COUNT - 2
    with pytest.raises(ValueError, match="2 of 30 images in .* cannot be read"):
        HuggingFace(tmp_path / "x.parquet", 8).load()


def test_a_path_in_a_row_is_not_followed(tmp_path: Path) -> None:
    """A parquet file can name any file of the machine in the place of an image's bytes."""
    images(1)[0].save(tmp_path / "secret.png")
    row = {"bytes": None, "path": str(tmp_path / "secret.png")}
    hostile = datasets.Dataset.from_dict({"image": [row] * 4}).cast_column("image", datasets.Image(decode=False))
    hostile.to_parquet(tmp_path / "x.parquet")
    with pytest.raises(ValueError, match="4 of 4 images in .* cannot be read"):
        HuggingFace(tmp_path / "x.parquet", 8).load()


def test_workers_read_rows(tmp_path: Path) -> None:
    table(*NAMED).save_to_disk(tmp_path / "saved")
    examples = HuggingFace(tmp_path / "saved", 8, memory_gib=0, holdout=0).load().train
    assert len(identities(examples).unique()) == COUNT
    loader = DataLoader(Batches(examples), sampler=Sequential(COUNT, 10), batch_size=None, num_workers=2)
    served = torch.cat([batch["x"] for batch in loader])
    assert torch.equal(served, examples.get(torch.arange(COUNT)))


def test_what_is_no_data_set_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "b.parquet").write_bytes(b"PAR1 but no more")
    (tmp_path / "photos").mkdir()
    for path, said in (
        (tmp_path / "a.txt", "is a file: give a .parquet"),
        (tmp_path / "b.parquet", "cannot be read"),
        (tmp_path / "photos", "no parquet files there"),
        (tmp_path / "nothing", "no such folder or parquet file"),
    ):
        with pytest.raises(OSError, match=said) as refused:
            HuggingFace(path).load()
        assert "\n" not in str(refused.value)


def test_a_name_on_the_hub_without_a_network_says_what_to_type_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(name: str, subset: str | None) -> None:
        raise ConnectionError(f"Couldn't reach '{name}'\non the Hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    outcome = call(train, tmp_path, "dataset=huggingface", "dataset.path=user/cats")
    assert outcome.code == 1 and len(outcome.err.splitlines()) == 1
    assert "hf download user/cats --repo-type dataset --local-dir cats, and then here dataset.path=cats" in outcome.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_run_resumes_to_the_same_weights(tmp_path: Path) -> None:
    table(*NAMED).to_parquet(tmp_path / "cats.parquet")
    settings = (
        *(argument for argument in TINY if not argument.startswith(("dataset=", "trainer.max_steps="))),
        *(
            "dataset=huggingface",
            "network=unet",
            "network.attention=[]",
            "dataset.path=cats.parquet",
            "dataset.image_size=8",
            "network.num_classes=2",
        ),
        *("condition_dropout=0.1", "dataset.source.memory_gib=0", "workers=1", "preview_every=0", "accelerator=cpu"),
    )
    assert call(train, tmp_path, *settings, "trainer.max_steps=4").code == 0
    assert call(train, tmp_path, *settings, "trainer.max_steps=2").code == 0
    assert call(train, tmp_path, "resume=last", "trainer.max_steps=4").code == 0
    first, second = (
        torch.load(tmp_path / f"lightning_logs/huggingface/version_{i}/checkpoints/last.ckpt", weights_only=True)
        for i in (0, 1)
    )
    assert first["state_dict"].keys() == second["state_dict"].keys()
    for name, value in first["state_dict"].items():
        assert torch.equal(value, second["state_dict"][name]), name


def test_without_the_package_one_line_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.huggingface.find_spec", lambda name: None)
    (tmp_path / "x.parquet").write_bytes(b"")
    with pytest.raises(ValueError, match="needs the package datasets, 4.0 or newer: pip install -U datasets"):
        HuggingFace(tmp_path / "x.parquet").load()
    monkeypatch.setattr("data.huggingface.find_spec", lambda name: datasets.__spec__)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match="the package datasets cannot be imported: "):
        HuggingFace(tmp_path / "x.parquet").load()


def test_labels_that_are_lists_are_refused(tmp_path: Path) -> None:
    table([[0], [1]] * 15).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=r"the column label has \[0\], and classes are texts or whole numbers"):
        HuggingFace(tmp_path, 8, label_column="label").load()


def test_splits_whose_classes_have_another_order_are_refused(tmp_path: Path) -> None:
    turned = table(NAMED[0], datasets.ClassLabel(names=["dog", "cat"]))
    datasets.DatasetDict({"train": table(*NAMED), "test": turned}).save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match="label of test has other classes than that of train"):
        HuggingFace(tmp_path / "saved", 8).load()


@pytest.mark.parametrize("hidden", [-1, None])
def test_a_split_whose_labels_are_withheld_is_not_used(hidden: int | None, tmp_path: Path) -> None:
    table(*NAMED).to_parquet(tmp_path / "train.parquet")
    table([hidden] * COUNT, NAMED[1]).to_parquet(tmp_path / "test.parquet")
    with pytest.warns(UserWarning, match="the labels of test are withheld"):
        splits = HuggingFace(tmp_path, 8, holdout=0.1).load()
    assert [len(split) for split in splits] == [24, 3, 3]


def test_files_that_do_not_fit_together_are_named_by_what_is_wrong(tmp_path: Path) -> None:
    table(*NAMED).to_parquet(tmp_path / "train-0.parquet")
    table(*NAMED, more=[1] * COUNT).to_parquet(tmp_path / "train-1.parquet")
    with pytest.raises(OSError, match="cannot be read: .*more"):
        HuggingFace(tmp_path, 8).load()


def test_a_column_of_other_things_that_is_called_label_is_not_taken_for_classes(tmp_path: Path) -> None:
    table([i / 7 for i in range(COUNT)]).to_parquet(tmp_path / "train.parquet")
    source = HuggingFace(tmp_path, 8)
    with pytest.warns(UserWarning, match="no image has a label, since the column label holds .*float"):
        source.load()
    assert source.classes == ()
