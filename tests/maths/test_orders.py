"""The page of measured orders holds what its command measures."""

import importlib.util
from pathlib import Path

import pytest
from support.solutions import DETERMINISTIC

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("orders", ROOT / "docs" / "orders.py")
assert SPEC
assert SPEC.loader
orders = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(orders)


def rows(text: str) -> dict[tuple[str, str], list[str]]:
    """The cells of a table's rows, by schedule and sampler."""
    found, schedule = {}, ""
    for line in text.splitlines():
        name, *cells = (cell.strip(" `") for cell in line.strip("|").split("|"))
        if "inside" in cells:
            schedule = name
        elif name in DETERMINISTIC:
            found[schedule, name] = cells
    return found


@pytest.fixture(scope="module")
def page() -> dict[tuple[str, str], list[str]]:
    """What stands on the page."""
    return rows((ROOT / "docs/orders.md").read_text().split(orders.MARK)[1])


def test_the_page_has_every_deterministic_sampler_on_every_grid(page: dict[tuple[str, str], list[str]]) -> None:
    assert page.keys() == {(schedule, name) for schedule in orders.SCHEDULES for name in DETERMINISTIC}
    for (_, name), (stated, inside, *grids) in page.items():
        assert int(stated) == DETERMINISTIC[name][0].order
        assert float(inside) == pytest.approx(int(stated), abs=0.25)
        assert len(grids) == len(orders.GRIDS)


def numbers(cells: list[str]) -> list[float]:
    """The orders in a row, without the errors."""
    return [float(part) for cell in cells for part in cell.split("(")[0].split("/")]


def test_a_row_measured_again_is_the_pages(page: dict[tuple[str, str], list[str]]) -> None:
    again = rows(orders.table("variance_exploding", ["ddim"]))["variance_exploding", "ddim"]
    assert numbers(again) == pytest.approx(numbers(page["variance_exploding", "ddim"]), abs=0.11)


@pytest.mark.slow
@pytest.mark.parametrize("schedule", orders.SCHEDULES)
def test_every_row_measured_again_is_the_pages(schedule: str, page: dict[tuple[str, str], list[str]]) -> None:
    for (_, name), again in rows(orders.table(schedule, list(DETERMINISTIC))).items():
        assert numbers(again) == pytest.approx(numbers(page[schedule, name]), abs=0.11)
