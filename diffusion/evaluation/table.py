"""The table of scores: samples against real data, beside two yardsticks of the same size.

The yardsticks are real training data, what a perfect model would get, and the same with Gaussian noise of standard
deviation 0.1 (of images in the range [-1, 1]). Images are bytes (n, C, H, W) everywhere,
points float32 (n, 2). A score's name says by which features and from how many samples: frechet_classifier_n2000.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from data.stream import Examples, Splits
from diffusion.evaluation import metrics
from diffusion.evaluation.cache import Cache, fingerprint
from diffusion.evaluation.extractors import (
    INCEPTION,
    Classifier,
    dequantised,
    features,
    predicted,
    random_rows,
    train_classifier,
)
from diffusion.evaluation.metrics import Score
from diffusion.evaluation.points import sliced_wasserstein, two_sample_test
from diffusion.media import quantised
from diffusion.noise import EVALUATION, Noise
from diffusion.terminal.progress import progress

NOISE = 0.1
DISTANCES = ("frechet_", "fid_", "kernel_", "kid_", "sliced_wasserstein_")  # the lower, the nearer to real data
CLASSIFIER_STEPS = 600  # of the classification accuracy score
_MOST_BYTES = 2**30  # of images held at a time


@dataclass(frozen=True)
class Row:
    """One line of the table: a score of the samples, of real training data, and of the latter with noise."""

    name: str
    samples: Score
    real: Score | None = None
    noisy: Score | None = None


@dataclass(frozen=True)
class Reference:
    """n real data to judge by, n others from the training set, and the latter with noise.

    Attributes:
        is_training: whether the real ones are training data too.
        real: bytes (n, C, H, W), or points (n, 2).
        labels: of the real ones, (n,).
        train: likewise.
        train_labels: of these.
        conditioning: rows of the split whose conditions a conditional model gets, (n,): not the real ones, as far as
            there are others.
    """

    is_training: bool
    real: Tensor
    labels: Tensor
    train: Tensor
    train_labels: Tensor
    conditioning: Tensor

    def __len__(self) -> int:
        return len(self.real)

    @property
    def noisy(self) -> Tensor:
        """The training data with noise of 0.1, quantised again if they are images."""
        noise = NOISE * Noise(0, torch.arange(len(self)), EVALUATION).normal(self.train.shape[1:])
        return quantised(dequantised(self.train) + noise) if self.train.dtype == torch.uint8 else self.train + noise


def held(examples: Examples, rows: Tensor) -> Tensor:
    """These examples: images as bytes (b, C, H, W), points as they are."""
    parts = [examples.get(part) for part in rows.split(1000)]
    return torch.cat([quantised(part) if part.ndim == 4 else part for part in parts])


def everything(examples: Examples, first: int | None = None) -> tuple[Tensor, Tensor]:
    """All examples, or the first so many, with their labels; chosen at random if they do not fit into 1 GiB."""
    size = examples.get(torch.tensor([0])).numel()
    rows = random_rows(len(examples) if first is None else first)[: max(1, _MOST_BYTES // size)].sort().values
    return held(examples, rows), examples.labels[rows]


def reference(splits: Splits, split: str, n: int) -> Reference:
    """n real data of a split and n of the training set, chosen at random but always the same; fewer if there are fewer.

    Where the split is the training set itself, as all are of a folder with `holdout=0`, the two are different halves of
    it.
    """
    chosen: Examples = getattr(splits, split)
    is_training = chosen is splits.train
    others = random_rows(len(splits.train))
    n = min(n, len(chosen), len(others) // 2 if is_training else len(others))
    rows, conditioning = (others[-n:], others[:n]) if is_training else judging_and_conditioning(len(chosen), n)
    return Reference(
        is_training,
        real=held(chosen, rows),
        labels=chosen.labels[rows],
        train=held(splits.train, others[:n]),
        train_labels=splits.train.labels[others[:n]],
        conditioning=conditioning,
    )


def judging_and_conditioning(size: int, n: int) -> tuple[Tensor, Tensor]:
    """n of so many data to judge by, and n that samples are conditioned on: others, as far as there are so many.

    Both are chosen at random but always the same: the first of a set that is sorted would not stand for it.
    """
    rows = random_rows(size)
    return rows[:n], rows.roll(-n)[:n]


def feature_rows(
    fake: Tensor, real: Reference, name: str, extractor: nn.Module, cache: Cache, device: str = "cpu", seed: int = 0
) -> list[Row]:
    """Frechet and kernel distance, precision, recall, density and coverage in an extractor's features.

    Only Inception's are called FID and KID.

    Raises:
        ValueError: too few samples for the extractor's dimension.
    """

    def seen(pixels: Tensor) -> Tensor:
        with progress(len(pixels), "image", f"features by {name}") as advance:
            return features(extractor, pixels, device, advance)

    def kept(pixels: Tensor) -> Tensor:
        # What it makes of eight images changes with its weights, its code and its settings, and with the device.
        probe = fingerprint(features(extractor, pixels[:8], device))
        key = {"extractor": name, "probe": probe, "pixels": fingerprint(pixels)}
        made = cache.get("features", key, lambda: {"features": seen(pixels).numpy()})
        return torch.from_numpy(made["features"])

    target = kept(real.real)
    sets = [seen(fake), kept(real.train), kept(real.noisy)]
    frechet, kernel = ("fid", "kid") if name == INCEPTION else ("frechet", "kernel")
    columns = [
        {
            frechet: metrics.frechet_distance(some, target, seed),
            kernel: metrics.kernel_distance(some, target, seed),
            **metrics.neighbour_scores(some, target, seed),
        }
        for some in sets
    ]
    return [Row(f"{score}_{name}_n{len(fake)}", *(column[score] for column in columns)) for score in columns[0]]


def point_rows(fake: Tensor, real: Reference, seed: int = 0) -> list[Row]:
    """Sliced Wasserstein distance and two-sample test of points in the plane."""
    sets = (fake, real.train, real.noisy)
    scores = {"sliced_wasserstein": sliced_wasserstein, "two_sample_accuracy": two_sample_test}
    return [
        Row(f"{name}_n{len(fake)}", *(score(some, real.real, seed) for some in sets)) for name, score in scores.items()
    ]


def class_rows(
    fake: Tensor, labels: Tensor | None, real: Reference, classifier: Classifier, seed: int = 0
) -> list[Row]:
    """How the classifier's labels are distributed; of labelled samples also whether it agrees with them, and whether a
    classifier trained on them alone knows real images (the classification accuracy score of Ravuri and Vinyals 2019,
    arXiv 1905.10887).

    Args:
        fake: bytes (n, C, H, W).
        labels: what the samples were conditioned on, (n,), or None.
        real: to judge by.
        classifier: of these data.
        seed: of the intervals.
    """
    classes = classifier.head.out_features
    sets = (fake, real.train, real.noisy)
    guesses = [predicted(classifier, some) for some in sets]
    target = predicted(classifier, real.real)
    n = len(fake)
    histograms = [metrics.histogram_distance(guess, target, classes, seed) for guess in guesses]
    rows = [Row(f"class_histogram_distance_n{n}", *histograms)]
    if labels is None:
        return rows
    # The classifier knows its training images better than any others: here the real ones are those judged by.
    rows.append(Row(f"class_accuracy_n{n}", _accuracy(guesses[0], labels), _accuracy(target, real.labels)))
    learned = [
        _accuracy(predicted(train_classifier(some, own, classes, CLASSIFIER_STEPS), real.real), real.labels)
        for some, own in ((fake, labels), (real.train, real.train_labels))
    ]
    rows.append(Row(f"classification_accuracy_score_n{n}", *learned))
    return rows


def out_of_order(rows: Iterable[Row]) -> list[str]:
    """A line for each distance whose yardsticks are out of order: noisy data score better there than clean data do, so
    it cannot rank samples either."""
    notes = []
    for row in rows:
        if row.name.startswith(DISTANCES) and row.real and row.noisy and row.real.value > row.noisy.value:
            notes.append(
                f"{row.name} is out of order: it ranks real training data with noise {NOISE} ({row.noisy.value:.4g}) "
                f"before those without ({row.real.value:.4g}), so do not judge samples by it; a larger n= may help"
            )
    return notes


def _accuracy(guesses: Tensor, labels: Tensor) -> Score:
    return metrics.share((guesses == labels).sum().item(), len(labels))


def table(rows: Iterable[Row]) -> str:
    """One line a score, with intervals."""
    cells = [["", "samples", "real training data", f"with noise {NOISE}"]]
    for row in rows:
        columns = (row.samples, row.real, row.noisy)
        cells.append([row.name, *("-" if score is None else str(score) for score in columns)])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in cells)


def as_plain(rows: Iterable[Row]) -> dict[str, Mapping[str, Mapping[str, float]]]:
    """The rows for JSON: name -> samples, real, noisy -> value, low, high."""
    return {row.name: {key: value for key, value in asdict(row).items() if isinstance(value, dict)} for row in rows}
