"""A captured denoiser answers as the inner one does, and freezes no time. On a CPU the call itself is the graph."""

import pickle
import warnings
from typing import Any

import pytest
import torch
from support.recorded import Recorded, changed
from torch import Tensor

from diffusion.denoisers import (
    ClippedDenoiser,
    Condition,
    Denoiser,
    EpsPreconditioner,
    NetworkDenoiser,
    Prediction,
    ResidualDenoiser,
)
from diffusion.guidance import ClassifierFreeGuidance
from diffusion.machine import graphs
from diffusion.networks.unet import UNet
from diffusion.noise import Noise
from diffusion.samplers import DDIMSampler, DDPMSampler, DPMSolverPP2MSampler, TrailingGrid, prior
from diffusion.sampling.captured import FEWEST_CALLS, CapturedDenoiser, graphed
from diffusion.sampling.pipeline import Pipeline
from diffusion.schedules import CosineSchedule, LinearSchedule

SHAPE = (1, 8, 8)


@pytest.fixture(autouse=True)
def uncaptured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "captured", lambda function, device: function)


def network(channels: int = 1, num_classes: int = 0) -> UNet:
    torch.manual_seed(0)
    made = UNet(SHAPE, widths=(4, 8), blocks=1, attention=(), in_channels=channels, num_classes=num_classes)
    for p in made.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return made


def denoisers() -> dict[str, Denoiser]:
    residual = ResidualDenoiser(network(2), CosineSchedule(), list(SHAPE), clusters=2, components=4)
    return {
        "eps": NetworkDenoiser(network(), LinearSchedule(), EpsPreconditioner()),
        "clipped": ClippedDenoiser(NetworkDenoiser(network(), LinearSchedule(), EpsPreconditioner())),
        "residual": residual,
    }


@torch.no_grad()
def test_guidance_that_acts_at_every_level_asks_the_device_nothing() -> None:
    model = NetworkDenoiser(network(num_classes=3), LinearSchedule(), EpsPreconditioner()).eval()
    x, t, cond = torch.ones(2, *SHAPE), torch.tensor(0.5, dtype=torch.float64), {"label": torch.tensor([0, 2])}
    with graphs.Unasked(torch.device("cpu")):
        found = ClassifierFreeGuidance(model, 2.0).predict(x, t, cond).x0
    with pytest.raises(graphs.NotCapturable), graphs.Unasked(torch.device("cpu")):
        ClassifierFreeGuidance(model, 2.0, (0.1, 5.0)).predict(x, t, cond)
    assert not torch.equal(found, model.predict(x, t, cond).x0)


@pytest.mark.parametrize("name", denoisers())
@pytest.mark.parametrize(
    "sampler", [DDPMSampler(), DDIMSampler(), DPMSolverPP2MSampler()], ids=lambda s: type(s).__name__
)
@torch.no_grad()
def test_samples_are_those_of_the_inner_denoiser(name: str, sampler: Any) -> None:
    denoiser = denoisers()[name].eval()
    noise, times = Noise(0, torch.arange(3)), TrailingGrid()(denoiser.schedule, 6)
    x = prior(denoiser.schedule, noise, SHAPE)
    expected = sampler.sample(denoiser, x, times, noise)
    found = sampler.sample(CapturedDenoiser(denoiser), x, times, noise)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", denoisers())
@torch.no_grad()
def test_a_call_at_another_time_is_the_same_call(name: str) -> None:
    denoiser = denoisers()[name].eval()
    recorded = []
    denoiser(torch.zeros(2, *SHAPE), torch.tensor(0.5, dtype=torch.float64))  # a table of noise levels comes to be
    for time in (0.9, 0.2):
        x, t = torch.full((2, *SHAPE), time), torch.tensor(time, dtype=torch.float64)
        with Recorded() as operations, graphs.Unasked(torch.device("cpu")):
            denoiser.predict(x, t, {})
        recorded.append(operations)
    assert changed(*recorded) == []


@torch.no_grad()
def test_each_shape_is_captured_once_and_answers_outlive_the_next_call() -> None:
    inner = NetworkDenoiser(network(num_classes=3), LinearSchedule(), EpsPreconditioner()).eval()
    denoiser = CapturedDenoiser(inner)
    t = torch.tensor(0.5, dtype=torch.float64)
    answers = []
    for count, label in ((2, 0), (3, 1), (2, 2)):
        cond = {"label": torch.full((count,), label)}
        x = torch.full((count, *SHAPE), 0.1 * count)
        answers.append((denoiser(x, t, cond), inner(x, t, cond)))
    assert len(denoiser._graphs) == 2
    for found, expected in answers:
        torch.testing.assert_close(found, expected)


class Asking(Denoiser):
    """Reads its time on the host."""

    def predict(self, x_t: Tensor, t: Tensor, cond: Condition) -> Prediction:
        return Prediction(x_t * t.item())


@torch.no_grad()
def test_a_denoiser_that_cannot_be_captured_is_called_as_it_is_with_one_warning() -> None:
    denoiser, t = CapturedDenoiser(Asking(LinearSchedule())), torch.tensor(0.5, dtype=torch.float64)
    x = torch.ones(2, 2)
    with pytest.warns(UserWarning, match="sampling without CUDA graphs, since .* wait for the device"):
        assert torch.equal(denoiser(x, t), x / 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(denoiser(x, t), x / 2)


def test_gradients_go_through_the_inner_denoiser() -> None:
    inner = NetworkDenoiser(network(), LinearSchedule(), EpsPreconditioner()).requires_grad_(False)
    x = torch.ones(2, *SHAPE, requires_grad=True)
    CapturedDenoiser(inner)(x, torch.tensor(0.5, dtype=torch.float64)).sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0


def test_only_many_calls_on_a_gpu_are_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    inner = NetworkDenoiser(network(), LinearSchedule(), EpsPreconditioner())
    assert graphed(inner, torch.device("cpu"), 1000) is inner
    assert graphed(inner, torch.device("cuda"), FEWEST_CALLS - 1) is inner
    assert isinstance(graphed(inner, torch.device("cuda"), FEWEST_CALLS), CapturedDenoiser)


def test_a_pipeline_draws_the_same_by_graphs_and_takes_none_to_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    inner = NetworkDenoiser(network(), LinearSchedule(), EpsPreconditioner()).eval().requires_grad_(False)
    pipeline = Pipeline(inner, DDIMSampler(), TrailingGrid()(inner.schedule, 4), SHAPE, num_classes=0)
    expected = pipeline.sample(3)
    monkeypatch.setattr("diffusion.sampling.pipeline.graphed", lambda denoiser, *_, **__: CapturedDenoiser(denoiser))
    torch.testing.assert_close(pipeline.sample(3), expected)
    assert isinstance(pipeline._fast, CapturedDenoiser) and pipeline._fast._graphs
    assert pickle.loads(pickle.dumps(pipeline))._fast is None
