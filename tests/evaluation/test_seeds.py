"""Means over seeds: what is one row, what a row is called, and how wide its interval is."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import t as student

from diffusion.evaluation.results import Result
from diffusion.evaluation.seeds import Comparison, comparisons, mean, names, t_quantile


def result(settings: Mapping[str, Any], seed: int | None, value: float, **changes: Any) -> Result:
    plain: dict[str, Any] = {
        "file": Path(__file__), "run": f"{settings}{seed}", "seed": seed, "noise_seed": 0, "settings": settings,
        "judged_by": (("dataset", "digits"), ("n", 180)), "scores": {"frechet": value}, "calls": 10, "seconds": 1.0,
        "device": "1 x cpu", "images": 640,
    }  # fmt: skip
    return Result(**(plain | changes))


def one(*results: Result) -> Comparison:
    (found,) = comparisons(results)
    return found


@pytest.mark.parametrize("degrees", [*range(1, 12), 29, 30, 120, 1001])
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
def test_the_quantile_of_students_distribution_is_scipys(degrees: int, confidence: float) -> None:
    assert t_quantile(degrees, confidence) == pytest.approx(student.ppf((1 + confidence) / 2, degrees), rel=1e-9)


def test_a_mean_of_three_has_the_interval_of_the_textbook_and_one_value_has_none() -> None:
    found = mean([1.0, 2.0, 3.0])
    assert (found.value, found.n) == (2.0, 3)
    assert found.half_width == pytest.approx(4.302652729911275 / math.sqrt(3))  # t of 2 degrees of freedom, s = 1
    assert mean([5.0]).half_width is None
    assert mean([5.0, 5.0]).half_width == 0


def test_an_interval_covers_the_truth_in_95_of_100_experiments() -> None:
    draws = torch.randn(4000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).tolist()
    covered = sum(abs(found.value) <= (found.half_width or 0) for found in map(mean, draws))
    assert covered / 4000 == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / 4000))


def test_runs_that_differ_by_seed_alone_are_one_row_and_all_others_are_rows_of_their_own() -> None:
    found = one(
        *(result({"schedule": "linear", "lr": 1e-3}, seed, seed + 1.0) for seed in (2, 0, 1)),
        result({"schedule": "linear", "lr": 1.0000000001e-3}, 0, 9.0),
        result({"schedule": "cosine", "lr": 1e-3}, 0, 9.0),
    )
    assert [(row.seeds, row.scores["frechet"]) for row in found.rows] == [
        ([0, 1, 2], [1.0, 2.0, 3.0]),
        ([0], [9.0]),
        ([0], [9.0]),
    ]
    assert [row.name for row in found.rows] == [
        "schedule=linear lr=0.001",
        "schedule=linear lr=0.0010000000001",
        "schedule=cosine lr=0.001",
    ]


def test_a_run_that_was_made_twice_counts_once_and_a_line_says_which() -> None:
    found = one(*(result({}, 0, 1.0, run=run) for run in ("version_0", "version_5")), result({}, 1, 2.0))
    assert found.rows[0].scores["frechet"] == [1.0, 2.0]
    assert len(found.notes) == 1
    assert "version_0 repeats version_5, seed 0" in found.notes[0]


def test_repeated_samples_of_one_run_are_no_independent_runs() -> None:
    twice = [result({}, 0, value, run="a", noise_seed=noise) for value, noise in ((1.0, 0), (3.0, 1), (3.0, 1))]
    found = one(*twice, result({}, 1, 4.0, run="b"))
    assert found.rows[0].scores["frechet"] == [2.0, 4.0]
    assert found.notes == []


def test_scores_by_other_data_or_extractors_stand_in_another_table() -> None:
    ways = [
        (("real", real), ("extractors", ((name, digest),))) for real in "ab" for name, digest in (("c", 1), ("c", 2))
    ]
    found = comparisons([result({}, 0, 1.0, judged_by=way) for way in ways])
    assert [tuple(comparison.judged_by.items()) for comparison in found] == ways


def test_samples_of_no_known_run_are_rows_of_their_own() -> None:
    found = one(*(result({"samples": name}, None, 1.0, run=name) for name in ("a.npz", "b.npz")))
    assert [row.name for row in found.rows] == ["samples=a.npz", "samples=b.npz"]
    assert [row.seeds for row in found.rows] == [[None], [None]]


def test_seconds_on_different_devices_are_named() -> None:
    found = one(result({}, 0, 1.0), result({}, 1, 1.0, device="1 x NVIDIA H100"))
    assert found.notes == ["seconds were measured on different devices and do not compare: 1 x NVIDIA H100, 1 x cpu"]


def test_a_part_is_named_by_its_choice_and_its_settings_only_among_equal_choices() -> None:
    settings = [
        {"sampler": "ddim", "sampler.eta": 0.0, "steps": 10},
        {"sampler": "ddim", "sampler.eta": 1.0, "steps": 10},
        {"sampler": "heun", "steps": 10},
    ]
    assert names(settings) == ["sampler=ddim sampler.eta=0.0", "sampler=ddim sampler.eta=1.0", "sampler=heun"]


def test_a_shorthands_place_is_called_by_the_shorthand() -> None:
    settings = [{"schedule": "linear", "schedule.timesteps": steps, "optimizer.lr": 1e-3} for steps in (100, 1000)]
    assert names(settings) == ["timesteps=100", "timesteps=1000"]


VALUES = st.one_of(st.none(), st.booleans(), st.integers(2, 3), st.floats(0.1, 0.9), st.tuples(st.integers(2, 4)))


@given(
    st.lists(
        st.dictionaries(st.sampled_from(["a", "b", "a.x", "a.y", "a.y.z"]), VALUES, max_size=5), min_size=2, max_size=5
    )
)
def test_different_settings_have_different_names(settings: list[dict[str, Any]]) -> None:
    distinct = list({tuple(sorted(one.items())): one for one in settings}.values())
    assert len(set(names(distinct))) == len(distinct)
