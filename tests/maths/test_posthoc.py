"""Averages by a power function: their weighting, and making one of any width out of snapshots of two."""

import shutil
from pathlib import Path

import pytest
import torch
from support.scripts import TINY, call
from torch import Tensor

import train
from diffusion.optimizers import PowerEMA, coefficients, exponent, spacing
from diffusion.runs.checkpoints import find
from diffusion.runs.places import CheckpointError
from diffusion.runs.trained import load_model

STEPS, MOST = 700, 16


def weightings(sigma_rels: list[float]) -> Tensor:
    """How much each average weighs each step, after each step: (STEPS, averages, STEPS).

    The average of models that are rows of a unit matrix is the weighting itself.
    """
    ema, average, rows = PowerEMA(sigma_rels), torch.zeros(len(sigma_rels), STEPS, dtype=torch.float64), []
    for k in range(STEPS):
        weight = torch.tensor(ema.weights(k + 1), dtype=torch.float64)[:, None]
        average = average * (1 - weight)
        average[:, k] += weight[:, 0]
        rows.append(average)
    return torch.stack(rows)


@pytest.mark.parametrize("sigma_rel", [0.02, 0.05, 0.1, 0.2, 0.28])
def test_the_width_is_the_standard_deviation_of_a_weighting_that_sums_to_one(sigma_rel: float) -> None:
    weighting = weightings([sigma_rel])[-1, 0]
    tau = torch.arange(1, STEPS + 1, dtype=torch.float64) / STEPS
    assert weighting.sum().item() == pytest.approx(1, abs=1e-12)
    mean = (weighting * tau).sum()
    assert (weighting * (tau - mean) ** 2).sum().sqrt().item() == pytest.approx(sigma_rel, rel=1e-2)
    gamma = exponent(sigma_rel)
    torch.testing.assert_close(weighting, tau ** (gamma + 1) - (tau - 1 / STEPS) ** (gamma + 1), atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("wanted", "error"), [(0.05, 1e-6), (0.1, 1e-6), (0.04, 0.02), (0.07, 0.01), (0.15, 0.02), (0.2, 0.05)]
)
def test_an_average_made_afterwards_is_the_one_that_was_tracked(wanted: float, error: float) -> None:
    """To within the distance that `coefficients` states; the two tracked ones come back as they are."""
    tracked = [0.1, 0.05]
    known, directly = weightings(tracked), weightings([wanted])[-1, 0]
    kept = [step for step in range(1, STEPS + 1) if step % spacing(STEPS, MOST) == 0 or step == STEPS]
    steps = [step for step in kept for _ in tracked]
    c, stated = coefficients(steps, [exponent(width) for width in tracked] * len(kept), STEPS, exponent(wanted))
    assert c.sum().item() == pytest.approx(1, abs=1e-9)
    made = (c[:, None] * torch.cat([known[step - 1] for step in kept])).sum(0)
    distance = ((made - directly).norm() / directly.norm()).item()
    assert distance <= error
    assert distance == pytest.approx(stated, rel=0.1, abs=1e-6)


def test_snapshots_are_few_whenever_the_run_ends() -> None:
    kept: set[int] = set()
    for step in range(1, 3000):
        every = spacing(step, MOST)
        if step % every == 0:
            kept = {earlier for earlier in kept if earlier % every == 0} | {step}
        assert len(kept) <= MOST
        assert len(kept) >= min(step, MOST // 2)
        assert max(kept) > step - every


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run's folder."""
    folder = tmp_path_factory.mktemp("run")
    recipe = ("trainer.max_steps=24", "val_every=24", "preview_every=0", "lr=0.01", "learning_rate.warmup_images=0")
    assert call(train, folder, *TINY, *recipe, "ema=power", "ema.snapshots=12").code == 0
    return folder / "lightning_logs/digits/version_0"


def weights(run: Path, which: str | float) -> Tensor:
    return torch.cat([p.flatten() for p in load_model(find(str(run)), weights=which).parameters()])


def test_a_runs_snapshots_give_averages_of_any_width(run: Path) -> None:
    assert len(list((run / "averages").iterdir())) == 12
    state = find(str(run)).state
    first, second = (
        torch.cat([value.flatten() for name, value in state.items() if name.startswith(prefix)])
        for prefix in ("ema.network.", "other_emas.0.network.")
    )
    assert torch.equal(weights(run, "ema"), first)
    torch.testing.assert_close(weights(run, 0.1), first, atol=1e-7, rtol=0)
    torch.testing.assert_close(weights(run, 0.05), second, atol=1e-7, rtol=0)
    # From long to short averages the weights come nearer to the last ones.
    distances = [(weights(run, width) - weights(run, "raw")).norm().item() for width in (0.15, 0.1, 0.07, 0.05)]
    assert distances == sorted(distances, reverse=True) and distances[-1] > 0


def test_what_cannot_be_made_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"weights=0.28 is out of reach: .* miss it by \d+ %, more than 15 %"):
        weights(run, 0.28)
    moved = tmp_path / "moved"
    shutil.copytree(run, moved)
    file = moved / "averages" / "20.pt"
    for averages in ([{"a": torch.ones(1)}], [*torch.load(file, weights_only=True)["averages"], 7]):
        torch.save({"averages": averages}, file)
        with pytest.raises(CheckpointError, match=r"20.pt holds no averages of this checkpoint's weights"):
            weights(moved, 0.07)
    shutil.rmtree(moved / "averages")
    assert torch.equal(weights(moved, 0.1), weights(run, "ema"))  # which the checkpoint holds itself
    with pytest.raises(CheckpointError, match=r"weights=0.15 is out of reach: .* 0 snapshots"):
        weights(moved, 0.15)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, "x", None, torch.zeros(3), torch.zeros(2, dtype=torch.int64)])
def test_a_crafted_snapshot_is_refused_in_one_line(run: Path, tmp_path: Path, value: object) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(run, moved)
    file = moved / "averages" / "20.pt"
    contents = torch.load(file, weights_only=True)
    part = contents["averages"][0]
    name = next(iter(part))
    if isinstance(value, float):
        part[name].view(-1)[0] = value
    else:
        part[name] = value
    torch.save(contents, file)
    with pytest.raises(CheckpointError, match=r"20\.pt (holds no averages|has weights that are not finite)"):
        weights(moved, 0.07)


def test_snapshots_of_no_step_are_passed_over(run: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(run, moved)
    for name in ("0.pt", "007.pt"):
        shutil.copy(moved / "averages" / "20.pt", moved / "averages" / name)
    assert torch.equal(weights(moved, 0.07), weights(run, 0.07))
