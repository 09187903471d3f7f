"""`compile=true`: one compilation a run, the same numbers, and one line where it is not possible."""

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.scripts import TINY, call
from torch import fx

import train
from diffusion.denoisers import EpsPreconditioner, NetworkDenoiser
from diffusion.networks.mlp import MLP
from diffusion.runs.checkpoints import read
from diffusion.schedules import LinearSchedule
from diffusion.training.compiling import compile_network


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[fx.GraphModule]:
    """The graphs that were compiled so far; they run as PyTorch runs them, so that a test takes no minutes."""
    found: list[fx.GraphModule] = []

    def backend(graph: fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        found.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    return found


LIMITS = ("compile=true", "accelerator=cpu", "trainer.max_steps=4", "val_every=2", "preview_every=2")
# Training has batches of 24, validation of other sizes, with a smaller last one; previews draw 16.
POINTS = (
    *("dataset=swissroll", "network.width=8", "network.depth=1", "batch_size=24", "timesteps=50"),
    *("trainer.accumulate_grad_batches=2", *LIMITS),
)


def state(folder: Path, version: int, dataset: str) -> dict[str, torch.Tensor]:
    """The weights that a run stored."""
    path = folder / f"lightning_logs/{dataset}/version_{version}/checkpoints/last.ckpt"
    found: dict[str, torch.Tensor] = read(path).state
    return found


@pytest.mark.parametrize(
    "options",
    [
        pytest.param((*POINTS, "ema=exponential", "score_every=2"), marks=pytest.mark.slow),
        (*POINTS, "ema=power", "denoiser=residual"),
        pytest.param(
            (*POINTS, "denoiser.variance=learned", "objective=hybrid", "trainer.precision=bf16-mixed"),
            marks=pytest.mark.slow,
        ),
        (*TINY, *LIMITS, "ema=none", "network.dropout=0.1", "network.num_classes=10", "condition_dropout=0.1"),
    ],
)
def test_estimate_training_validation_and_previews_compile_one_graph_in_all(
    options: tuple[str, ...], tmp_path: Path, graphs: list[fx.GraphModule]
) -> None:
    outcome = call(train, tmp_path, *options)
    assert outcome.code == 0, outcome.err
    assert len(graphs) == 1
    assert "compiling the network: the first step takes a minute or so\n" in outcome.out


def test_a_compiled_run_has_the_weights_of_one_that_is_not(tmp_path: Path, graphs: list[fx.GraphModule]) -> None:
    for switch in ("true", "false"):
        assert call(train, tmp_path, *POINTS, f"compile={switch}", "ema=none").code == 0
    assert len(graphs) == 1
    compiled, plain = (state(tmp_path, version, "swissroll") for version in range(2))
    assert compiled.keys() == plain.keys()
    for name, value in plain.items():
        torch.testing.assert_close(compiled[name], value, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_a_resumed_run_and_one_by_budget_compile_one_graph_each(tmp_path: Path, graphs: list[fx.GraphModule]) -> None:
    assert call(train, tmp_path, *POINTS).code == 0
    graphs.clear()
    outcome = call(train, tmp_path, "resume=last", "trainer.max_steps=6")
    assert outcome.code == 0, outcome.err
    assert len(graphs) == 1
    graphs.clear()
    outcome = call(train, tmp_path, *POINTS, "trainer.max_steps=null", "budget_minutes=0.001")
    assert outcome.code == 0, outcome.err
    assert len(graphs) == 1


@pytest.mark.parametrize(("kind", "count"), [("autoencoder", 2), ("classifier", 1)])
def test_an_autoencoder_compiles_its_two_ways_and_a_classifier_its_one(
    kind: str, count: int, tmp_path: Path, graphs: list[fx.GraphModule]
) -> None:
    parts = {"autoencoder": ("network=autoencoder", "objective=elbo"), "classifier": ("network=encoder",)}
    objective = () if kind == "autoencoder" else ("objective=classifier",)
    outcome = call(train, tmp_path, *TINY, *LIMITS, f"denoiser={kind}", *parts[kind], *objective)
    assert outcome.code == 0, outcome.err
    assert len(graphs) == count


def compiled_denoiser(width: int) -> NetworkDenoiser:
    denoiser = NetworkDenoiser(MLP((2,), width=width, depth=1), LinearSchedule(), EpsPreconditioner())
    compile_network(denoiser)
    return denoiser


def test_every_run_of_a_long_sweep_compiles(graphs: list[fx.GraphModule]) -> None:
    for width in range(2, 22, 2):  # torch compiles one function eight times at most
        compiled_denoiser(width).network(torch.zeros(3, 2), torch.zeros(3), {})
    assert len(graphs) == 10


def test_a_copy_of_a_compiled_network_computes_with_its_own_weights(graphs: list[fx.GraphModule]) -> None:
    denoiser = compiled_denoiser(8)
    other = copy.deepcopy(denoiser)
    inputs: tuple[Any, ...] = (torch.ones(3, 2), torch.zeros(3), {})
    denoiser.network(*inputs)
    torch.nn.init.ones_(other.network.get_parameter("last.bias"))
    assert torch.equal(other.network(*inputs), torch.ones(3, 2))
    assert torch.equal(denoiser.network(*inputs), torch.zeros(3, 2))
    assert len(graphs) == 1


def test_a_network_that_cannot_be_compiled_is_refused_before_the_run_has_a_folder(tmp_path: Path) -> None:
    outcome = call(train, tmp_path, "experiment=swissroll", "compile=true", "accelerator=cpu")
    assert outcome.code == 1
    assert outcome.err == (
        "error: compile=true: torch.compile refuses Heads (Data-dependent branching): leave compile out\n"
    )
    assert not (tmp_path / "lightning_logs").exists()


def test_a_machine_without_a_compiler_is_told_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch._inductor.config

    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("no-such-compiler",))
    outcome = call(train, tmp_path, *POINTS)
    assert outcome.code == 1
    assert outcome.err == (
        "error: compile=true needs a C++ compiler, and PyTorch finds none: install one, such as g++, or leave compile "
        "out\n"
    )
    assert not (tmp_path / "lightning_logs").exists()


@pytest.mark.slow
def test_a_network_in_machine_code_trains_as_one_that_is_not_compiled(tmp_path: Path) -> None:
    for switch in ("true", "false"):
        outcome = call(train, tmp_path, *TINY, *LIMITS, f"compile={switch}", "ema=none")
        assert outcome.code == 0, outcome.err
    compiled, plain = (state(tmp_path, version, "digits") for version in range(2))
    assert compiled.keys() == plain.keys()
    for name, value in plain.items():
        torch.testing.assert_close(compiled[name], value, atol=1e-3, rtol=1e-2)
