"""Curves of a web page."""

import math
import re
from xml.etree import ElementTree

import pytest

from diffusion.media.svg import HEIGHT, MOST_POINTS, WIDTH, Scale, curves, thinned, ticks


def points_of(drawn: str) -> list[tuple[float, float]]:
    (path,) = re.findall(r'points="([^"]*)"', drawn)
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in path.split())]


def test_a_falling_curve_falls_in_the_picture_and_stays_inside() -> None:
    places = points_of(curves({"loss": [(1, 0.9), (2, 0.5), (3, 0.2)]}, "step"))
    assert [x for x, _ in places] == sorted(x for x, _ in places)
    assert [y for _, y in places] == sorted(y for _, y in places)  # y counts down from the top
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in places)


def test_equal_ratios_are_equal_distances_on_a_logarithmic_axis() -> None:
    places = points_of(curves({"loss": [(1, 100.0), (2, 10.0), (3, 1.0)]}, "step", logarithmic=True))
    assert places[1][1] - places[0][1] == pytest.approx(places[2][1] - places[1][1], abs=0.11)
    straight = points_of(curves({"loss": [(1, 100.0), (2, 10.0), (3, 1.0)]}, "step"))
    assert straight[1][1] - straight[0][1] > 5 * (straight[2][1] - straight[1][1])


def test_values_that_are_not_finite_are_left_out_and_nothing_is_drawn_of_nothing() -> None:
    assert len(points_of(curves({"a": [(1, math.nan), (2, 1.0), (3, math.inf), (4, 2.0)]}, "step"))) == 2
    assert curves({"a": [(1, math.nan)]}, "step") == curves({}, "step") == ""


def test_one_point_and_a_constant_curve_are_drawn() -> None:
    assert "<circle" in curves({"a": [(5, 0.0)]}, "step")
    assert len({y for _, y in points_of(curves({"a": [(1, 2.0), (2, 2.0)]}, "step"))}) == 1


def test_a_long_curve_is_drawn_by_some_of_its_points_with_both_ends() -> None:
    long = [(k, 1.0 / k) for k in range(1, 5001)]
    kept = thinned(long)
    assert len(kept) == MOST_POINTS
    assert (kept[0], kept[-1]) == (long[0], long[-1])


@pytest.mark.parametrize(
    ("low", "high", "logarithmic"),
    [(0, 1, False), (-3, 7, False), (1, 20000, False), (0.2, 0.3, False), (1e-8, 1e-3, True), (0.02, 0.9, True)],
)
def test_an_axis_has_a_few_round_numbers_within_its_ends(low: float, high: float, logarithmic: bool) -> None:
    found = ticks(Scale(low, high, 0, 100, logarithmic))
    assert 2 <= len(found) <= 12
    assert all(low <= value * (1 + 1e-9) and value <= high * (1 + 1e-9) for value in found)
    assert all(float(f"{value:.2g}") == pytest.approx(value) for value in found)


def test_names_are_escaped_and_the_picture_is_whole_xml() -> None:
    drawn = curves({'<b>"&': [(1, 1.0), (2, 2.0)], "other": [(1, 3.0)]}, "<step>")
    texts = [node.text for node in ElementTree.fromstring(drawn).iter("text")]
    assert '<b>"&' in texts
    assert "<step>" in texts
