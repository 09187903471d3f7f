"""What a run is said to take."""

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from diffusion.objectives import Objective
from diffusion.training import estimate
from diffusion.training.limits import Limit


@pytest.mark.parametrize(("fixed", "each"), [(0.04, 1e-6), (0.001, 0.02), (0.01, 1.0)])
@pytest.mark.parametrize("size", [8, 64, 1024])
def test_what_every_step_costs_is_not_taken_for_a_cost_of_each_image(
    fixed: float, each: float, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    spent = []

    def step_seconds(module: Any, batch: dict[str, torch.Tensor], trainer: Any, seconds: float, **_: Any) -> float:
        spent.append(fixed + each * len(batch["x"]))
        return spent[-1]

    monkeypatch.setattr(estimate, "step_seconds", step_seconds)
    monkeypatch.setattr(estimate, "device_batch", lambda run, trainer: {"x": torch.zeros(size, 2)})
    parts = SimpleNamespace(settings=SimpleNamespace(compile=False), accumulated=2)
    run: Any = SimpleNamespace(module=SimpleNamespace(eager_because=lambda trainer: "capture=false"), parts=parts)
    assert estimate.estimate(run, None, Limit(None)) == pytest.approx(2 * (fixed + each * size), rel=0.1)  # type: ignore[arg-type]
    assert max(spent) < 64 * each + 1  # and nothing is tried that takes long by itself


class Counted(Objective):
    """An objective that counts its batches."""

    batches = 0

    def forward(self, denoiser: nn.Module, batch: dict[str, torch.Tensor], noise: Any) -> dict[str, torch.Tensor]:
        Counted.batches += 1
        return {"loss": denoiser.network(batch["x"])}


@pytest.mark.parametrize(("max_steps", "batches"), [(1, 1), (50, 10)])
def test_a_short_run_is_measured_on_a_tenth_of_its_batches(
    max_steps: int, batches: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    denoiser = nn.Module()
    denoiser.network = nn.Linear(2, 1)
    module = SimpleNamespace(
        eager_because=lambda trainer: "capture=false",
        denoiser=denoiser,
        objective=Counted(),
        optimizer=lambda network, fused: torch.optim.SGD(network.parameters()),
        seed=0,
    )
    trainer: Any = SimpleNamespace(
        precision="32-true",
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
        precision_plugin=SimpleNamespace(forward_context=nullcontext),
    )
    batch = {"x": torch.zeros(4, 2), "serial": torch.arange(4)}
    monkeypatch.setattr(estimate, "device_batch", lambda run, trainer: batch)
    monkeypatch.setattr(Counted, "batches", 0)
    parts = SimpleNamespace(settings=SimpleNamespace(compile=False), accumulated=2)
    run: Any = SimpleNamespace(module=module, parts=parts)
    assert estimate.estimate(run, trainer, Limit(max_steps)) > 0
    assert Counted.batches == 1 + batches
