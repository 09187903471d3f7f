"""`capture=`: a run whose steps are static ends as an eager one, resumes to the bit, and says what it does.

There is no CUDA here, so that the functions run in the place of the graphs that would repeat them.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.scripts import TINY, assert_refused, call

import train
from diffusion.machine import graphs
from diffusion.objectives import (
    ConsistencyObjective,
    DenoisingObjective,
    LognormalTimes,
    SimpleWeighting,
    UniformTimes,
)
from diffusion.training import static, trainer
from diffusion.training.module import DiffusionModule
from diffusion.training.static import eager_because

RUN = (*TINY, "accelerator=cpu", "preview_every=0", "learning_rate.warmup_images=40", "learning_rate.decay=cosine")
MUON = ("optimizer=muon", "ema=power", "network.dropout=0.2", "trainer.accumulate_grad_batches=2")


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Steps are static as on a GPU; what was captured."""
    found: list[str] = []

    def captured(function: Any, device: torch.device) -> Any:
        found.append(function.__name__)
        return function

    for owner in (static, trainer):
        monkeypatch.setattr(owner, "eager_because", lambda capture, *_: "" if capture else "capture=false")
    monkeypatch.setattr(graphs, "captured", captured)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10**9, 10**9))
    return found


def stored(folder: Path, version: int) -> dict[str, Any]:
    path = folder / f"lightning_logs/digits/version_{version}/checkpoints/last.ckpt"
    contents: dict[str, Any] = torch.load(path, weights_only=True)
    return contents


def trained(folder: Path, *arguments: str) -> str:
    outcome = call(train, folder, *arguments)
    assert outcome.code == 0, outcome.err
    return outcome.out


@pytest.mark.parametrize(
    "options",
    [
        pytest.param((), marks=pytest.mark.slow),
        MUON,
        pytest.param(("dataset.flip=true", "trainer.precision=bf16-mixed"), marks=pytest.mark.slow),
    ],
)
def test_a_run_with_static_steps_ends_as_an_eager_one_with_the_same_file(
    options: tuple[str, ...], tmp_path: Path, captures: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    eager = trained(tmp_path, *RUN, *options, "capture=false")
    assert "training step: eager, since capture=false" in eager
    assert captures == []
    modules: list[DiffusionModule] = []
    capture = DiffusionModule._capture
    monkeypatch.setattr(DiffusionModule, "_capture", lambda self, batch: (capture(self, batch), modules.append(self)))
    assert "training step: captured as CUDA graphs" in trained(tmp_path, *RUN, *options)
    assert [(module.static, module.served) for module in modules] == [(None, None)]  # the device is free again
    assert captures == 2 * ["_accumulate", "_update"]  # of the copy that is measured, and of the run
    expected, found = (stored(tmp_path, version) for version in range(2))
    assert found["global_step"] == expected["global_step"] == 4
    tolerance = 1e-2 if "trainer.precision=bf16-mixed" in options else 1e-5
    for name, value in expected["state_dict"].items():
        torch.testing.assert_close(found["state_dict"][name], value, rtol=tolerance, atol=tolerance)
    (theirs,), (ours,) = expected["optimizer_states"], found["optimizer_states"]
    assert ours["param_groups"] == theirs["param_groups"]
    assert ours["state"].keys() == theirs["state"].keys()
    logs = [(tmp_path / f"lightning_logs/digits/version_{v}/metrics.csv").read_text().splitlines() for v in range(2)]
    assert len(logs[0]) == len(logs[1])


@pytest.mark.slow
def test_a_resumed_run_captures_again_and_ends_with_the_bits_of_one_that_was_not_stopped(
    tmp_path: Path, captures: list[str]
) -> None:
    settings = (*RUN, *MUON, "learning_rate.decay=none")
    trained(tmp_path, *settings, "trainer.max_steps=6")
    trained(tmp_path, *settings, "trainer.max_steps=3")
    trained(tmp_path, f"resume={tmp_path}/lightning_logs/digits/version_1", "trainer.max_steps=6")
    whole, resumed = stored(tmp_path, 0), stored(tmp_path, 1)
    assert resumed["global_step"] == 6
    for name, value in whole["state_dict"].items():
        assert torch.equal(resumed["state_dict"][name], value), name


def refusing(monkeypatch: pytest.MonkeyPatch, error: RuntimeError) -> None:
    def refused(function: Any, device: torch.device) -> Any:
        raise error

    monkeypatch.setattr(graphs, "captured", refused)


@pytest.mark.slow
def test_where_capturing_fails_the_run_says_so_and_trains_as_an_eager_one(
    tmp_path: Path, captures: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained(tmp_path, *RUN, *MUON, "capture=false")
    refusing(monkeypatch, graphs.NotCapturable("its nonzero makes the host wait for the device\nmore"))
    out = trained(tmp_path, *RUN, *MUON)
    said = "training step: eager, since it cannot be captured: its nonzero makes the host wait for the device"
    assert out.splitlines().count(said) == 1
    assert "training step: captured" not in out
    expected, found = (stored(tmp_path, version)["state_dict"] for version in range(2))
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize(
    ("capture", "error", "said"),
    [
        ("true", graphs.NotCapturable("it asks"), "capture=true: this step cannot be captured: it asks"),
        # after which torch counts on the capture's going on
        ("auto", graphs.CaptureFailed("no"), "CUDA refused to capture the training step: no; add capture=false"),
    ],
)
def test_a_step_that_cannot_be_captured_is_refused_where_it_has_to_be_and_leaves_no_folder(
    capture: str, error: RuntimeError, said: str, tmp_path: Path, captures: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    refusing(monkeypatch, error)
    outcome = call(train, tmp_path, *RUN, f"capture={capture}")
    assert outcome.code == 1
    assert f"error: {said}" in outcome.err
    assert not (tmp_path / "lightning_logs").exists()


def test_capture_true_on_a_cpu_is_refused_before_the_run_has_a_folder(tmp_path: Path) -> None:
    outcome = call(train, tmp_path, *RUN, "capture=true")
    assert_refused(outcome, "capture=true", "CUDA graphs need a CUDA device, and this is cpu", "use capture=auto")
    assert_refused(call(train, tmp_path, *RUN, "capture=yes please"), "capture must be auto, true or false")
    assert not (tmp_path / "lightning_logs").exists()


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({}, ""),
        ({"precision": "bf16-mixed"}, ""),
        ({"precision": "16-mixed"}, "trainer.precision=16-mixed is not 32-true or bf16-mixed"),
        ({"world_size": 2}, "2 devices exchange gradients in each step"),
        ({"_detect_anomaly": True}, "trainer.detect_anomaly=true reads every value"),
    ],
)
def test_what_is_not_captured_has_a_reason(changed: dict[str, Any], reason: str) -> None:
    device = SimpleNamespace(root_device=torch.device("cuda:0"))
    plain = {"strategy": device, "world_size": 1, "precision": "32-true", "_detect_anomaly": False}
    plain_objective = DenoisingObjective(UniformTimes(), SimpleWeighting())
    objective = ConsistencyObjective(LognormalTimes())
    for options, rewinding, expected in (
        (plain | changed, plain_objective, reason),
        (plain, objective, "its objective sets the random number generator back"),
    ):
        assert eager_because("auto", SimpleNamespace(**options), rewinding) == expected  # type: ignore[arg-type]
    assert eager_because(False, SimpleNamespace(**plain), plain_objective) == "capture=false"  # type: ignore[arg-type]
