"""The table that a sweep ends in."""

import pytest

from diffusion.training.sweep import Result, table


@pytest.mark.parametrize(
    "name", ["objective", "denoiser.mean", "schedule", "timesteps", "dataset/condition", "experiment"]
)
def test_the_table_of_a_sweep_ranks_no_losses_that_measure_different_things(name: str) -> None:
    losses = {("a", 1): 0.9, ("b", 1): 0.2, ("a", 2): 0.5, ("b", 2): None}
    runs: list[Result] = [
        Result({name: kind, "lr": lr}, f"run_{kind}{lr}", loss, "") for (kind, lr), loss in losses.items()
    ]
    _, *rows, last = table(runs).splitlines()
    assert [row.split()[1] for row in rows] == ["run_a2", "run_a1", "run_b1", "run_b2"]
    assert f"does not compare runs that differ in {name}: compare the scores" in last
    assert "python evaluate.py ckpt=" in last


def test_the_table_of_a_sweep_ranks_losses_that_compare() -> None:
    runs: list[Result] = [Result({"lr": lr}, f"run_{lr}", loss, "") for lr, loss in ((1, 0.9), (2, 0.2), (3, 0.5))]
    _, *rows = table(runs).splitlines()
    assert [row.split()[1] for row in rows] == ["run_2", "run_3", "run_1"]
