"""Data sets in the format of Hugging Face's library datasets: parquet files, what it saved, or a name on the Hub."""

import io
import logging
import re
import warnings
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import torch
from torch import Tensor

from data.collection import Collection, Files, counted, report, some
from data.pictures import UnreadableImage, is_hidden, printable
from data.stream import Examples, Splits

if TYPE_CHECKING:
    import datasets

# Names of the columns that are taken, and of the splits that are used, where there are several.
IMAGES, LABELS = ("image", "img", "images", "picture"), ("label", "labels", "class", "target")
TRAIN, VAL, TEST = ("train",), ("validation", "valid", "val", "dev"), ("test",)
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_CLASSES = 100_000


class Column(Files):
    """The images of a column, as the bytes of their files."""

    def __init__(self, table: "datasets.Dataset", column: str, split: str) -> None:
        import datasets

        table = table.select_columns([column])
        if isinstance(table.features[column], datasets.Image):
            table = table.cast_column(column, datasets.Image(decode=False))
        self.table, self.column, self.split = table, column, split

    def __len__(self) -> int:
        return len(self.table)

    def name(self, row: int) -> str:
        return f"row {row} of {self.split}"

    def open(self, row: int) -> BinaryIO:
        value = self.table[row][self.column]
        content = value.get("bytes") if isinstance(value, Mapping) else value
        if not isinstance(content, bytes):
            raise UnreadableImage("it has no image, or only the name of one")
        return io.BytesIO(content)

    def identity(self, row: int) -> None:
        return None

    def check(self, row: int) -> None:
        """Nothing: a row is read as a whole, and what is unreadable shows when it is decoded."""


class HuggingFace(Collection):
    """A data set with a column of images, and perhaps one of labels, resized and centre-cropped.

    A split `validation` or `test` that it has is used as such. For each that it lacks, `holdout` of the images of
    `train` are held out, by a permutation that is the same on every machine.

    Args:
        path: a folder with parquet files or with what `save_to_disk` wrote, a parquet file, or a name on the Hub.
        image_size, channels, holdout, max_unreadable, background, memory_gib: see `Collection`.
        subset: one of several in a data set: the name of a configuration on the Hub, or of a subfolder.
        image_column: null finds it: the only column of images, or the one that is called image.
        label_column: of whole numbers or texts; null finds it: the only column of classes, or the one that is called
            label.

    Raises:
        ValueError: an argument is missing or out of its range.
    """

    def __init__(
        self,
        path: str | Path | None,
        image_size: int | Sequence[int] = 64,
        channels: int = 3,
        holdout: float = 0.05,
        max_unreadable: float = 0.01,
        background: int = 255,
        memory_gib: float = 4.0,
        subset: str | None = None,
        image_column: str | None = None,
        label_column: str | None = None,
    ) -> None:
        if not isinstance(path, (str, Path)) or not str(path):
            raise ValueError("dataset=huggingface needs dataset.path=<folder, parquet file, or name on the Hub>")
        super().__init__(image_size, channels, holdout, max_unreadable, background, memory_gib)
        self.path, self.subset = str(path), subset
        self.image_column, self.label_column = image_column, label_column

    def load(self) -> Splits:
        """Read and decode the images, and print what was found; `classes` is known afterwards.

        Raises:
            OSError: there is no such data set here, and the Hub is out of reach; or it cannot be read.
            ValueError: the package datasets lacks, no column of images is found, labels are no classes, or more than
                `max_unreadable` of the images are unreadable.
        """
        tables = self._tables()
        first = tables["train"]
        image_column = self._image_column(first)
        label_column = self._label_column(first)
        tables = self._labelled(tables, label_column)
        labels = self._labels(tables, label_column)
        sizes = ", ".join(f"{split} {counted(len(table), 'image')}" for split, table in tables.items())
        text = f"{printable(self.path)}: {sizes} (column {printable(image_column)})"
        if label_column is not None:
            text += f" in {counted(len(self.classes), 'class')} (column {printable(label_column)})"
        report(text)
        in_memory = self.fits(sum(map(len, tables.values())))
        made = {
            split: self.decoded(
                Column(table, image_column, split), labels[split], in_memory, f"{printable(self.path)}, {split}"
            )
            for split, table in tables.items()
        }
        lacking = [split for split in ("val", "test") if split not in made]
        build, readable = made["train"]
        rows = dict(zip(("train", *lacking), self.held_out(readable, len(lacking)), strict=True))
        parts: dict[str, Examples] = {split: build(chosen) for split, chosen in rows.items()}
        parts |= {split: make(whole) for split, (make, whole) in made.items() if split != "train"}
        return Splits(parts["train"], parts["val"], parts["test"])

    def _tables(self) -> dict[str, "datasets.Dataset"]:
        """The splits that there are: train, and perhaps val and test."""
        found = self._read()
        names = {ours: next((name for name in theirs if name in found), None) for ours, theirs in _SPLITS.items()}
        if names["train"] is None and len(found) == 1:
            names = {"train": next(iter(found))}
        tables = {ours: found[name] for ours, name in names.items() if name is not None and len(found[name])}
        if names["train"] in found and "train" not in tables:
            raise ValueError(f"{printable(self.path)}: the split {names['train']} has no rows")
        if "train" not in tables:
            raise ValueError(f"{printable(self.path)} has no split train but {some(list(found)) or 'none'}")
        columns = set(tables["train"].column_names)
        if odd := [split for split, table in tables.items() if not columns <= set(table.column_names)]:
            raise ValueError(f"{printable(self.path)}: the split {odd[0]} lacks columns that train has")
        return tables

    def _read(self) -> Mapping[str, "datasets.Dataset"]:
        # Older ones run the code that a data set brings.
        if find_spec("datasets") is None or int(version("datasets").split(".")[0]) < 4:
            raise ValueError("dataset=huggingface needs the package datasets, 4.0 or newer: pip install -U datasets")
        try:
            import datasets
        except ImportError as error:  # of pyarrow, say, on a version of NumPy that it does not know
            raise ValueError(f"the package datasets cannot be imported: {_text(error)}") from error

        datasets.disable_progress_bars()
        for name in ("datasets", "huggingface_hub"):  # what they say of each attempt is said here in one line
            logging.getLogger(name).setLevel(logging.CRITICAL)
        path = Path(self.path).expanduser()
        hub = not path.exists()
        if hub and not _NAME.fullmatch(self.path):
            raise FileNotFoundError(
                f"{printable(self.path)}: no such folder or parquet file; give one, or a name on the Hub (user/name), "
                "by dataset.path="
            )
        if hub:
            report(f"{self.path}: looking for it on the Hub")
        try:
            found = datasets.load_dataset(self.path, self.subset) if hub else _local(path, self.subset)
        except (FileNotFoundError, NotADirectoryError) as error:
            if not hub:
                raise
            raise self._out_of_reach(error) from error
        except Exception as error:  # of the library, of pyarrow and of what speaks to the Hub, each with its own kinds
            if hub:
                raise self._out_of_reach(error) from error
            raise OSError(f"{printable(self.path)} cannot be read: {_text(_cause(error))}") from error
        return found if isinstance(found, Mapping) else {"train": found}

    def _out_of_reach(self, error: Exception) -> OSError:
        subset = f" and dataset.source.subset={self.subset}" if self.subset else ""
        return OSError(
            f"{self.path} is no folder here, and as a name on the Hub it cannot be had ({_text(error)}); on a machine "
            f"with a network: hf download {self.path} --repo-type dataset --local-dir {self.path.split('/')[-1]}, and "
            f"then here dataset.path={self.path.split('/')[-1]}{subset}"
        )

    def _image_column(self, table: "datasets.Dataset") -> str:
        if self.image_column is not None:
            return self._column("image_column", self.image_column, table)
        found = [name for name, feature in table.features.items() if _holds_images(feature)]
        chosen = found if len(found) == 1 else [name for name in IMAGES if name in found][:1]
        if not chosen:
            several = f"several columns may hold images, {some(found, 8)}" if found else "no column holds images"
            raise ValueError(
                f"{printable(self.path)}: {several}; choose by dataset.source.image_column=, of "
                f"{some(table.column_names, 20)}"
            )
        return chosen[0]

    def _label_column(self, table: "datasets.Dataset") -> str | None:
        """The column of labels; None without a word where nothing looks like one."""
        import datasets

        if self.label_column is not None:
            return self._column("label_column", self.label_column, table)
        classes = [name for name, feature in table.features.items() if isinstance(feature, datasets.ClassLabel)]
        named = [name for name in LABELS if name in classes or (not classes and _may_label(table.features.get(name)))]
        if len(classes) > 1 and not named:
            warnings.warn(
                f"{printable(self.path)}: no image has a label, since {some(classes, 8)} may all be one: choose by "
                "dataset.source.label_column=",
                stacklevel=3,
            )
            return None
        other = [name for name in LABELS if name in table.column_names and name not in named]
        if other and not classes and not named:
            warnings.warn(
                f"{printable(self.path)}: no image has a label, since the column {other[0]} holds "
                f"{table.features[other[0]]}, which are no classes",
                stacklevel=3,
            )
        return next(iter([*(classes if len(classes) == 1 else []), *named]), None)

    def _column(self, setting: str, name: str, table: "datasets.Dataset") -> str:
        if name not in table.column_names:
            raise ValueError(f"{setting}={name}: there is no such column; there are {some(table.column_names, 20)}")
        return name

    def _labelled(self, tables: Mapping[str, "datasets.Dataset"], column: str | None) -> dict[str, "datasets.Dataset"]:
        """The splits without those, other than train, whose labels are withheld: -1, or none."""
        withheld = [
            split
            for split, table in tables.items()
            if column is not None and split != "train" and set(map(str, _cells(table, column))) <= {"-1", "None"}
        ]
        if withheld:
            warnings.warn(
                f"{printable(self.path)}: the labels of {some(withheld)} are withheld: images of train are held out "
                "in its place",
                stacklevel=3,
            )
        return {split: table for split, table in tables.items() if split not in withheld}

    def _labels(self, tables: Mapping[str, "datasets.Dataset"], column: str | None) -> dict[str, Tensor]:
        """The labels of each split, int64, and the names of the `classes`."""
        import datasets

        if column is None:
            return {split: torch.zeros(len(table), dtype=torch.int64) for split, table in tables.items()}
        names = {
            split: feature.names if isinstance(feature := table.features[column], datasets.ClassLabel) else None
            for split, table in tables.items()
        }
        if odd := [split for split, known in names.items() if known != names["train"]]:
            raise ValueError(
                f"{printable(self.path)}: the column {printable(column)} of {odd[0]} has other classes than that of "
                "train, or in another order: make the splits alike by cast_column, of the package datasets"
            )
        values = {split: _cells(table, column) for split, table in tables.items()}
        every = [value for split in values.values() for value in split]
        if all(isinstance(value, str) for value in every):
            self.classes = tuple(sorted(set(every)))
            number = {name: i for i, name in enumerate(self.classes)}
            return {split: torch.tensor([number[name] for name in texts]) for split, texts in values.items()}
        if wrong := [value for value in every if not isinstance(value, int) or not 0 <= value < _CLASSES]:
            raise ValueError(
                f"{printable(self.path)}: the column {printable(column)} has {printable(repr(wrong[0])[:50])}, and "
                f"classes are texts or whole numbers from 0 to {_CLASSES - 1}: set dataset.source.label_column="
            )
        self.classes = tuple(names["train"] or map(str, range(1 + max(every))))
        return {split: torch.tensor(numbers, dtype=torch.int64) for split, numbers in values.items()}


_SPLITS = {"train": TRAIN, "val": VAL, "test": TEST}


def _may_label(feature: Any) -> bool:
    """Whether a column of this kind can hold classes: texts or whole numbers, not several of them nor fractions."""
    return str(getattr(feature, "dtype", "")).startswith(("int", "uint", "string", "large_string", "bool"))


def _local(path: Path, subset: str | None) -> Any:
    """What lies here: one parquet file, or a folder with parquet files or what `save_to_disk` wrote."""
    import datasets

    root = path / subset if subset else path
    if root.is_file():
        if root.suffix.lower() != ".parquet":
            raise FileNotFoundError(f"{printable(str(root))} is a file: give a .parquet, or a folder of them")
        return datasets.load_dataset("parquet", data_files={"train": str(root)})
    if (root / "dataset_dict.json").is_file() or (root / "state.json").is_file():
        return datasets.load_from_disk(str(root))
    files = sorted(file for file in root.rglob("*.parquet") if not any(map(is_hidden, file.relative_to(root).parts)))
    if not files:
        raise FileNotFoundError(
            f"{printable(str(root))}: no parquet files there, and nothing that save_to_disk wrote; a folder of images "
            "is dataset=folder"
        )
    return datasets.load_dataset("parquet", data_files=_by_split([str(file) for file in files], root))


def _by_split(files: Sequence[str], root: Path) -> dict[str, list[str]]:
    """Files by the split that their names begin with, or that their folder is called: train-00000-of-00002.parquet."""
    found: dict[str, list[str]] = {}
    for file in files:
        words = [re.split(r"[-_.]", part)[0].lower() for part in Path(file).relative_to(root).parts]
        split = next((ours for ours, theirs in _SPLITS.items() if set(theirs) & set(words)), "train")
        found.setdefault(split, []).append(file)
    return found


def _holds_images(feature: Any) -> bool:
    """Whether a column's values are images in files, or may be: bytes."""
    import datasets

    if isinstance(feature, Mapping):
        return "bytes" in feature
    return isinstance(feature, datasets.Image) or getattr(feature, "dtype", None) in ("binary", "large_binary")


def _cells(table: "datasets.Dataset", column: str) -> list[Any]:
    return list(table.select_columns([column])[:][column])


def _cause(error: BaseException) -> BaseException:
    """What was the matter: the library wraps errors of pyarrow in some that say nothing."""
    return error if error.__cause__ is None else _cause(error.__cause__)


def _text(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
