"""How often the intervals of scores cover: a simulation with real images of Fashion-MNIST, as a table.

    python docs/intervals.py                       prints it, in about a minute
    python docs/intervals.py docs/evaluation.md    puts it between the page's two marks

Each repetition draws two sets of 250 that share no image, and scores one by the other. The truth is the mean of a score
over all repetitions, since a score is of sets of this size; an interval that keeps its word covers it in 95 % of them.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from tables import put

from data.images import Fashion
from diffusion.evaluation.classifiers import shipped
from diffusion.evaluation.extractors import RandomConvolutions, dequantised, features
from diffusion.evaluation.metrics import Score, frechet_distance, kernel_distance, neighbour_scores
from diffusion.evaluation.table import held, random_rows
from diffusion.media import quantised
from diffusion.noise import EVALUATION, Noise

MARK = "<!-- intervals -->"
N, REPETITIONS = 250, 60
NOISE = 0.05
FASHION = {"name": "fashion", "shape": [1, 32, 32], "source": {"_target_": "data.images.Fashion"}}
POOL = 12_000  # images on each side


def sets() -> Iterator[tuple[str, Tensor, Tensor]]:
    """Features of two halves of real images, the second also with noise: name, (POOL, d), (POOL, d)."""
    train = Fashion("data/raw").load().train
    pixels = held(train, random_rows(len(train))[: 2 * POOL])
    left, right = pixels.split(POOL)
    noisy = quantised(dequantised(right) + NOISE * Noise(0, torch.arange(POOL), EVALUATION).normal(right.shape[1:]))
    classifier = shipped(FASHION)
    assert classifier is not None
    for name, extractor in (("classifier", classifier), ("random", RandomConvolutions(1).eval())):
        real = features(extractor, left)
        yield f"{name}, both real", real, features(extractor, right)
        yield f"{name}, noise {NOISE}", real, features(extractor, noisy)


def scored(real: Tensor, other: Tensor, repetition: int) -> dict[str, Score]:
    """All scores of N rows of `other` by N of `real`."""
    draw = np.random.RandomState(repetition)
    x, y = (rows[torch.from_numpy(draw.permutation(POOL)[:N])] for rows in (other, real))
    return {
        "frechet": frechet_distance(x, y, repetition, replicates=50),  # not 200, to save time
        "kernel": kernel_distance(x, y, repetition),
        **neighbour_scores(x, y, repetition),
    }


def cell(scores: list[Score]) -> str:
    """The share of intervals that cover the scores' mean, and their mean width over that which 1.96 s would have."""
    values = torch.tensor([score.value for score in scores])
    truth, spread = values.mean().item(), values.std().item()
    covered = sum(score.low <= truth <= score.high for score in scores) / len(scores)
    width = sum(score.high - score.low for score in scores) / len(scores)
    return f"{covered:.2f} ({width / (2 * 1.96 * spread):.2f})"


if __name__ == "__main__":
    columns = {}
    for name, real, other in sets():
        found = [scored(real, other, repetition) for repetition in range(REPETITIONS)]
        columns[name] = {score: cell([one[score] for one in found]) for score in found[0]}
    rows = [("covers (relative width)", *columns), ("---",) * (1 + len(columns))]
    rows += [(f"`{score}`", *(column[score] for column in columns.values())) for score in next(iter(columns.values()))]
    text = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    if len(sys.argv) == 1:
        print(text)
    else:
        put(Path(sys.argv[1]), MARK, text)
