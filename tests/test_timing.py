"""What a run is said to take."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from diffusion import timing


@pytest.mark.parametrize(("fixed", "each"), [(0.04, 1e-6), (0.001, 0.02), (0.01, 1.0)])
@pytest.mark.parametrize("size", [8, 64, 1024])
def test_what_every_step_costs_is_not_taken_for_a_cost_of_each_image(
    fixed: float, each: float, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    spent = []

    def step_seconds(module: Any, batch: dict[str, torch.Tensor], trainer: Any, seconds: float) -> float:
        spent.append(fixed + each * len(batch["x"]))
        return spent[-1]

    monkeypatch.setattr(timing, "step_seconds", step_seconds)
    monkeypatch.setattr(timing, "device_batch", lambda run, trainer: {"x": torch.zeros(size, 2)})
    run: Any = SimpleNamespace(module=None, config={"trainer": {"accumulate_grad_batches": 2}})
    assert timing.estimate(run, None) == pytest.approx(2 * (fixed + each * size), rel=0.1)  # type: ignore[arg-type]
    assert max(spent) < 64 * each + 1  # and nothing is tried that takes long by itself
