"""All scores of one set of samples, and writing them down."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from diffusion import media
from diffusion.evaluation import extractors as ext
from diffusion.evaluation import metrics, table
from diffusion.evaluation.cache import Cache
from diffusion.evaluation.classifiers import class_count, classifier
from diffusion.evaluation.copying import copying_row, neighbours
from diffusion.evaluation.pictures import histogram_picture, neighbour_picture
from diffusion.evaluation.points import LEAST
from diffusion.evaluation.record import curves_of, marked, write_scores
from diffusion.runs.digests import digest

NEIGHBOURS = 6  # in the picture


@dataclass
class Findings:
    """What an evaluation found.

    Attributes:
        rows: of the table.
        pictures: by the names of their files, (H, W, C).
        shares: of the classes among samples and real data, by name.
        extractors: the weights' digests, by name.
        notes: what else has to be known to read the rows, a line each.
    """

    rows: list[table.Row] = field(default_factory=list)
    pictures: dict[str, media.Pixels] = field(default_factory=dict)
    shares: dict[str, list[float]] = field(default_factory=dict)
    extractors: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def text(self) -> str:
        """The table, and under it the classes where the data have any."""
        lines = [table.table(self.rows)]
        for name, shares in self.shares.items():
            lines.append(f"classes of {name:<8} " + " ".join(f"{100 * share:5.1f}" for share in shares) + "  %")
        return "\n".join([*lines, *self.notes])

    def write(self, folder: Path, split: str, settings: Mapping[str, Any], step: int) -> None:
        """Writes the split's metrics.json, and what `draw` writes."""
        record = dict(settings) | {
            "extractors": self.extractors,
            "scores": table.as_plain(self.rows),
            "classes": self.shares,
            "notes": self.notes,
        }
        write_scores(folder, split, record)
        self.draw(folder, split, step)

    def draw(self, folder: Path, split: str, step: int) -> None:
        """Writes the pictures, and TensorBoard's curves and pictures at an optimizer step."""
        with SummaryWriter(str(folder)) as writer:
            for row in self.rows:
                writer.add_scalar(f"{curves_of(split)}/{row.name}", row.samples.value, step)
            for name, pixels in self.pictures.items():
                media.save_picture(folder / f"{marked(name, split)}.png", pixels)
                writer.add_image(f"{curves_of(split)}/{name}", pixels, step, dataformats="HWC")


class Judge:
    """Scores samples against the real data of one split; prepares all that can fail before samples are drawn.

    Args:
        splits: of the data.
        split: "train", "val" or "test".
        n: real data to judge by, fewer if there are fewer; as many samples are wanted (`len(judge)`).
        dataset: the run's `dataset` configuration.
        extractors: their names; None is the classifier where the data have classes, and random features. Not used for
            points.
        cache: keeps features of real images and trained classifiers.
        device: for features.
        trained_on: the model saw the first so many training images alone, so it can have copied no others; None is all.

    Raises:
        ValueError: an extractor cannot be had, or n is too small for its features.
    """

    def __init__(
        self,
        splits: table.Splits,
        split: str,
        n: int,
        dataset: Mapping[str, Any],
        extractors: Sequence[str] | None,
        cache: Cache,
        device: str = "cpu",
        trained_on: int | None = None,
    ) -> None:
        self.reference = table.reference(splits, split, n)
        self.cache, self.device = cache, device
        self.split, self.in_training = split, 0 if self.reference.is_training else len(splits.train)
        self.images = len(dataset["shape"]) == 3
        self.extractors: dict[str, nn.Module] = {}
        if not self.images:
            if len(self) < LEAST:
                raise ValueError(f"n={len(self)} points are too few to be scored: at least {LEAST} are needed")
            return
        room = "" if n > len(self) else f"; split {split} would allow {len(getattr(splits, split))}"
        self.classes = class_count(splits.train.labels)
        if extractors is None:
            extractors = [ext.CLASSIFIER, ext.RANDOM] if self.classes else [ext.RANDOM]
        if ext.CLASSIFIER in extractors:
            if not self.classes:
                raise ValueError(
                    f"extractor={ext.CLASSIFIER}: {dataset['name']} has no classes to tell apart: use {ext.RANDOM}, "
                    f"{ext.INCEPTION} or a torch module of your own"
                )
            self._check_size(ext.CLASSIFIER, ext.FEATURES, room)  # before one is trained
        self.training, labels = table.everything(splits.train)
        # The shares of classes need it even if it is not asked for as an extractor.
        self.classifier = classifier(dataset, self.training, labels, cache) if self.classes else None
        seen = min(trained_on or len(splits.train), len(splits.train))
        if seen < len(splits.train):
            self.training, _ = table.everything(splits.train, seen)
        held = len(self.training)
        if dataset.get("flip", False):  # training shows them mirrored too
            self.training = torch.cat((self.training, self.training.flip(3)))
        self.notes: list[str] = []
        if seen < len(splits.train):
            self.notes.append(f"copies were sought among the {seen:,} images that the model was trained on")
        if held < seen:
            self.notes.append(
                f"copies were sought among {held:,} of the {seen:,} training images, as many as fit into memory, "
                f"chosen at random"
            )
        if self.reference.is_training:
            self.notes.append(f"no copying_pixels, as split {split} is of the training set: no real images are new")
        for name in extractors:
            made = self.classifier if name == ext.CLASSIFIER else ext.untrained(name, dataset["shape"][0])
            assert made is not None
            with ext.blamed_on(name, f"no features of images of shape {tuple(dataset['shape'])}"):
                d = ext.features(made, self.reference.real[:2], device).shape[1]
            self._check_size(name, d, room)
            self.extractors[name] = made

    def _check_size(self, name: str, d: int, room: str) -> None:
        n, needed = len(self), metrics.least_rows(d)
        if n < needed:
            if not room and self.in_training // 2 >= needed:  # half of them are samples' yardstick
                room = f", and split {self.split} has no more images; split=train allows {self.in_training // 2}"
            raise ValueError(
                f"n={n} is too small for the {d} features of extractor {name}: at least {needed} are needed{room}"
            )

    def __len__(self) -> int:
        return len(self.reference)

    def __call__(self, fake: Tensor, labels: Tensor | None = None) -> Findings:
        """Scores samples: bytes (n, C, H, W) or points (n, 2), with the labels (n,) that they were made for."""
        if len(fake) != len(self):
            raise ValueError(f"{len(fake)} samples cannot be judged by {len(self)} real ones: as many are needed")
        if not fake.isfinite().all():
            raise ValueError("some samples are not finite: the model or its sampler diverged")
        if not self.images:
            rows = table.point_rows(fake, self.reference)
            return Findings(rows=rows, notes=table.out_of_order(rows))
        found = Findings(extractors={name: digest(module) for name, module in self.extractors.items()})
        for name, module in self.extractors.items():
            found.rows += table.feature_rows(fake, self.reference, name, module, self.cache, self.device)
        found.notes = [*self.notes, *table.out_of_order(found.rows)]
        if self.classifier is not None and self.classes:
            self.classifier.to("cpu")
            found.rows += table.class_rows(fake, labels, self.reference, self.classifier)
            for name, pixels in (("samples", fake), ("real", self.reference.real)):
                counts = torch.bincount(ext.predicted(self.classifier, pixels), minlength=self.classes)
                found.shares[name] = (counts / len(pixels)).tolist()
            found.pictures["classes"] = histogram_picture(*map(np.array, found.shares.values()))
        distances, indices = neighbours(fake, self.training, NEIGHBOURS)
        if not self.reference.is_training:
            found.rows.append(copying_row(distances[:, 0], self.reference.real, self.training, self.cache))
        found.pictures["neighbours"] = neighbour_picture(fake, self.training, distances, indices)
        return found
