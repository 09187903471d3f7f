"""The pure parts of the benchmarks: ratios, laws, regressions, tables, and whose turn it is."""

import argparse
import math
from pathlib import Path

import costs
import pytest
import race
import speedrun
import throughput
from race import Row
from support.scripts import TINY, call
from timing import fallen, power_law, ratios, table

import train


def test_a_power_law_is_found_again_and_its_error_is_that_of_the_points() -> None:
    law = power_law([1, 2, 4, 8], [3 * x**1.5 for x in (1, 2, 4, 8)])
    assert (law.factor, law.exponent, law.error) == pytest.approx((3, 1.5, 0), abs=1e-9)
    assert law(16) == pytest.approx(3 * 64)
    assert power_law([1, 1, 2, 2], [math.e, 1 / math.e, math.e, 1 / math.e]).error == pytest.approx(1)
    with pytest.raises(ValueError, match="two different places"):
        power_law([2, 2], [1, 3])


def test_a_ratio_is_taken_within_each_round() -> None:
    found = ratios({"ours": [1.0, 2.0, 9.0], "theirs": [2.0, 4.0, 18.0]}, "ours")
    assert found == {"ours": 1.0, "theirs": 0.5}


def test_only_what_fell_by_more_than_is_allowed_or_is_missing_is_a_regression() -> None:
    stored = {"same": 1.0, "a little": 1.0, "much": 2.0, "gone": 1.0}
    found = {"same": 1.0, "a little": 0.9, "much": 1.0, "new": 0.1}
    lines = fallen(stored, found, allowed=0.15)
    assert lines == ["much: 1, 2 in the stored run, 50 % less", "gone: 1 in the stored run, not measured now"]


def test_eight_cards_train_as_fast_as_their_share_of_eight_times_one_says() -> None:
    # 1 TFLOP an image, 3.6 million images, 100 TFLOP/s: 36,000 seconds
    assert costs.hours(1e3, 3.6e6, 100, cards=1, share=0.5) == pytest.approx(10)
    assert costs.hours(1e3, 3.6e6, 100, cards=8, share=0.5) == pytest.approx(2.5)


def test_a_table_is_one_of_markdown() -> None:
    assert table(("a", "bb"), [("1", "2")]).splitlines() == ["| a | bb |", "| - | -- |", "| 1 | 2  |"]


def options(**changed: object) -> argparse.Namespace:
    values = {"device": "cpu", "modes": ["eager"], "against": None, "out": None}
    return argparse.Namespace(**(values | changed))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"modes": ["captured"]}, "CUDA graphs need --device cuda"),
        ({"device": "cuda"}, "finds no CUDA device"),
        ({"against": Path("nowhere.json")}, "no stored run nowhere.json: make one .* --out nowhere.json"),
        ({"out": Path("nowhere/run.json")}, "lies in no folder that exists"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(changed: dict[str, object], message: str) -> None:
    with pytest.raises(SystemExit, match=f"^error: .*{message}"):
        throughput.check(options(**changed))


def test_the_commands_that_are_timed_are_not_refused(tmp_path: Path) -> None:
    tiny = [setting for setting in TINY if not setting.startswith("val_every")]
    outcome = call(train, tmp_path, *tiny, *throughput.STEPS_ALONE, "trainer.max_steps=1")
    assert outcome.code == 0, outcome.err


ROWS = [
    Row("ours", 1, 100, "raw", 3.0, 1.0),
    Row("ours", 1, 100, "ema", 2.0, 1.5),
    Row("ours", 2, 200, "raw", 0.9, 0.5),
    Row("theirs", 1, 50, "raw", 9.0, 4.0),
]


def test_the_better_weights_of_an_arm_count_and_a_target_that_is_missed_is_not_reached() -> None:
    best = race.better(ROWS)
    assert [(row.arm, row.minute, row.weights) for row in best] == [
        ("ours", 1, "ema"),
        ("ours", 2, "raw"),
        ("theirs", 1, "raw"),
    ]
    assert race.reached(best, "ours", "frechet_classifier", 2.0) == "1"
    assert race.reached(best, "ours", "frechet_classifier", 1.0) == "2"
    assert race.reached(best, "theirs", "frechet_classifier", 2.0) == "not reached"
    assert "not reached" in race.report(ROWS, [1.0])


def test_scores_are_kept_row_by_row_and_drawn(tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    assert race.read(path) == []
    race.append(path, ROWS[:1])
    race.append(path, ROWS[1:])
    assert race.read(path) == ROWS
    race.picture(ROWS, tmp_path / "scores.png")
    assert (tmp_path / "scores.png").stat().st_size > 1000


def test_turns_end_each_minute_and_at_each_mark() -> None:
    assert speedrun.turns([1, 2, 4], 1.0) == [1, 2, 3, 4]
    assert speedrun.turns([0.25, 1], 0.5) == [0.25, 0.5, 1]
