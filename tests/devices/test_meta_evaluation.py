"""What evaluates a model runs on a device that refuses to mix with the CPU; see `support.meta`."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from support.meta import Net, no_autocast  # noqa: F401
from test_meta_sampling import KINDS, SHAPE
from test_meta_training import _Examples, made
from torch import Tensor, nn

from diffusion.denoisers import Conditioned, Denoiser, EpsPreconditioner, NetworkDenoiser, ResidualDenoiser
from diffusion.evaluation.copying import neighbours
from diffusion.evaluation.extractors import Inception
from diffusion.likelihood import ode_log_density, variational_bound
from diffusion.networks.mlp import MLP
from diffusion.noise import Noise
from diffusion.samplers import TrailingGrid
from diffusion.schedules import LinearSchedule
from diffusion.training.scores import Scores


def on_points(kind: str) -> Denoiser:
    schedule = LinearSchedule()
    if kind == "residual":
        return ResidualDenoiser(MLP((2,), width=8, depth=1, in_channels=4), schedule, [2], clusters=2, components=2)
    return NetworkDenoiser(MLP((2,), width=8, depth=1), schedule, EpsPreconditioner())


@pytest.mark.parametrize("kind", ["network", "residual"])
def test_the_exact_divergence_is_taken(kind: str) -> None:
    denoiser, x = on_points(kind).to("meta"), torch.zeros(3, 2, device="meta", dtype=torch.float64)
    with Net(copies=True):
        x_1, change = ode_log_density(denoiser, x, None, steps=1, probe="exact")
    assert x_1.shape == (3, 2)
    assert change.shape == (3,)


@pytest.mark.parametrize("kind", ["guided", "residual_classes", "inpainted", "inpainted_residual"])
@pytest.mark.parametrize("likelihood", ["vlb", "ode"])
def test_likelihoods_of_wrapped_denoisers_run(kind: str, likelihood: str) -> None:
    denoiser = KINDS[kind](LinearSchedule()).to("meta")
    x, noise = torch.zeros(2, *SHAPE, device="meta"), Noise(0, torch.arange(2, device="meta"))
    label = {"label": torch.zeros(2, dtype=torch.int64, device="meta")} if denoiser.num_classes else {}
    # Guidance between two levels has to know the level, which is a number on the CPU in a sampler alone.
    with Net(copies=True, answers=bool(label)):
        if likelihood == "vlb":
            terms = variational_bound(
                Conditioned(denoiser, label), x, TrailingGrid()(denoiser.schedule, 2), noise, True
            )
            assert terms.shape == (2, 3)
        else:
            x_1, change = ode_log_density(Conditioned(denoiser, label), x.double(), noise, steps=1)
            assert (x_1.shape, change.shape) == ((2, *SHAPE), (2,))


def test_samples_are_scored_during_training() -> None:
    module, _, _ = made("experiment=fast_swissroll", "network.width=8")
    scores = Scores(1, (2,), clip=False)
    scores._real, scores._told = torch.randn(20, 2), torch.zeros(20, dtype=torch.int64)
    module.trainer.datamodule = SimpleNamespace(splits=SimpleNamespace(val=_Examples((2,))), condition=None)  # type: ignore[attr-defined]
    with Net(copies=True):
        assert set(scores.scores(module)) == {"val_score/sliced_wasserstein_n20"}


def test_nearest_training_images_are_found() -> None:
    images, training = (torch.zeros(n, *SHAPE, dtype=torch.uint8, device="meta") for n in (3, 7))
    with Net():
        distances, indices = neighbours(images, training, 2)
    assert distances.shape == indices.shape == (3, 2)


class Pooled(nn.Module):
    """Takes bytes of three channels and returns a tuple, as the Inception network does."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, pixels: Tensor) -> tuple[Tensor]:
        assert pixels.dtype == torch.uint8
        return (pixels.float().mean((2, 3)) * self.scale,)


@pytest.mark.parametrize("channels", [1, 3])
def test_what_surrounds_the_inception_network_runs(channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def init(self: Inception) -> None:
        nn.Module.__init__(self)
        self.network = Pooled()

    make: Callable[[], Inception] = Inception
    monkeypatch.setattr(Inception, "__init__", init)
    extractor = make().to("meta")
    with Net():
        assert extractor(torch.zeros(2, channels, 8, 8, device="meta")).shape == (2, 3)
