"""A network behind the best linear denoiser: exact on Gaussian data, EDM where the covariance is a multiple of one."""

import pytest
import torch
from torch import Tensor, nn

from diffusion.denoisers import EDMPreconditioner, GaussianMixtureDenoiser, NetworkDenoiser
from diffusion.networks.unet import UNet
from diffusion.noise import Noise
from diffusion.objectives import DenoisingObjective, LognormalTimes, SimpleWeighting
from diffusion.residual import PrincipalComponents, ResidualDenoiser
from diffusion.schedules import FlowSchedule, Schedule, VarianceExplodingSchedule, VPSchedule, float64

D = 6


class Half(nn.Module):
    """Answers with a fixed function of the first half of its channels."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor, dtype=torch.float64))

    def forward(self, x: Tensor, c_noise: Tensor, cond: dict[str, Tensor]) -> Tensor:
        return self.factor * torch.tanh(x[:, : x.shape[1] // 2])


class EDMHalf(Half):
    def forward(self, x: Tensor, c_noise: Tensor, cond: dict[str, Tensor]) -> Tensor:
        return self.factor * torch.tanh(x)


@pytest.fixture
def data() -> Tensor:
    """Correlated numbers away from zero."""
    generator = torch.Generator().manual_seed(1)
    mix = torch.randn(D, D, generator=generator, dtype=torch.float64)
    return 0.3 + torch.randn(4000, D, generator=generator, dtype=torch.float64) @ mix


def residual(schedule: Schedule, data: Tensor, factor: float = 0.0, components: int = D) -> ResidualDenoiser:
    denoiser = ResidualDenoiser(Half(factor), schedule, list(data.shape[1:]), components).double()
    denoiser.prepare(data)
    return denoiser


@pytest.mark.parametrize("schedule", [VarianceExplodingSchedule(), VPSchedule(), FlowSchedule()])
def test_without_a_network_it_is_the_exact_denoiser_of_the_fitted_gaussian(schedule: Schedule, data: Tensor) -> None:
    denoiser = residual(schedule, data)
    exact = GaussianMixtureDenoiser(schedule, data.mean(0)[None], data.T.cov(correction=0)[None])
    t = torch.tensor([schedule.t_min, 0.2, 0.7, 1.0], dtype=torch.float64)
    x_t = data[:4] + schedule(t)[1][:, None]
    torch.testing.assert_close(denoiser(x_t, t), exact(x_t, t), rtol=1e-6, atol=1e-6)


def test_the_target_makes_it_exact_and_has_unit_variance(data: Tensor) -> None:
    schedule = VPSchedule()
    denoiser = residual(schedule, data)
    generator = torch.Generator().manual_seed(2)
    eps = torch.randn(data.shape, generator=generator, dtype=torch.float64)
    for level in (schedule.t_min, 0.01, 0.3, 0.6, 1.0):
        t = torch.full((len(data),), level, dtype=torch.float64)
        alpha, sigma = schedule(t)
        target, c_out = denoiser.target(data, eps, t)
        linear = denoiser(alpha[:, None] * data + sigma[:, None] * eps, t)
        torch.testing.assert_close(linear + c_out[:, None] * target, data, rtol=0, atol=1e-8)
        assert target.square().mean().item() == pytest.approx(1, abs=0.03)


def test_what_the_network_sees_has_unit_variance_at_every_level(data: Tensor) -> None:
    denoiser, seen = residual(VPSchedule(), data), []
    denoiser.network.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    generator = torch.Generator().manual_seed(3)
    for level in (1e-3, 0.3, 1.0):
        t = torch.tensor(level, dtype=torch.float64)
        alpha, sigma = denoiser.schedule(t)
        denoiser(alpha * data + sigma * torch.randn(data.shape, generator=generator, dtype=torch.float64), t)
        assert seen[-1][:, :D].square().mean().item() == pytest.approx(1, abs=0.03)
        assert seen[-1][:, D:].square().mean().item() <= 1.03


def test_before_it_is_fitted_it_is_edm_with_data_of_unit_variance() -> None:
    schedule, x_t = VarianceExplodingSchedule(), torch.linspace(-3, 3, 5 * D, dtype=torch.float64).view(5, D)
    t = torch.linspace(0.05, 1, 5, dtype=torch.float64)
    edm = NetworkDenoiser(EDMHalf(0.7).double(), schedule, EDMPreconditioner(1.0))
    ours = ResidualDenoiser(Half(0.7), schedule, [D]).double()
    torch.testing.assert_close(ours(x_t, t), edm(x_t, t))
    for a, b in zip(ours.target(x_t, x_t.flip(0), t), edm.target(x_t, x_t.flip(0), t), strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(ours.c_noise(t), edm.precond.c_noise(schedule, t))


def test_fewer_components_keep_the_trace_and_the_leading_directions(data: Tensor) -> None:
    full, part = PrincipalComponents(D, D).double(), PrincipalComponents(D, 2).double()
    full.fit(data)
    part.fit(data)
    torch.testing.assert_close(part.variances[:2], full.variances[:2])
    torch.testing.assert_close(part.trace(part.variances[None]), full.trace(full.variances[None]))
    aligned = (full.components[:, :2] * part.components).sum(0).abs()
    torch.testing.assert_close(aligned, torch.ones(2, dtype=torch.float64))


def test_fewer_data_than_components_still_give_a_basis(data: Tensor) -> None:
    model = PrincipalComponents(D, D).double()
    model.fit(data[:3])
    eye = torch.eye(D, dtype=torch.float64)
    torch.testing.assert_close(model.components.T @ model.components, eye, rtol=0, atol=1e-10)
    assert (model.variances > 0).all()


def test_fitting_leaves_torchs_generator_alone_and_repeats_itself(data: Tensor) -> None:
    state = torch.get_rng_state()
    one, other = PrincipalComponents(D, 3).double(), PrincipalComponents(D, 3).double()
    one.fit(data)
    torch.rand(5)
    other.fit(data)
    assert torch.equal(one.components, other.components)
    torch.set_rng_state(state)


def test_the_objective_is_the_weighted_error_of_the_denoiser(data: Tensor) -> None:
    schedule = VarianceExplodingSchedule()
    denoiser = residual(schedule, data, factor=0.4)
    index = torch.arange(50)
    out = DenoisingObjective(LognormalTimes(), SimpleWeighting())(
        denoiser, {"x": data[:50], "serial": index}, Noise(0, index)
    )
    t = schedule.inverse(out["log_snr"])
    eps = Noise(0, index).normal((D,), draw=1).double()
    x_t = data[:50] + schedule(float64(t))[1][:, None] * eps
    _, c_out = denoiser.target(data[:50], eps, t)
    error = (denoiser(x_t, t) - data[:50]).square().mean(1) / c_out**2
    torch.testing.assert_close(out["loss"], error, rtol=1e-4, atol=1e-6)


def test_images_pass_a_network_with_twice_the_channels() -> None:
    denoiser = ResidualDenoiser(UNet((2, 8, 8), (8, 8), attention=(), in_channels=4), VPSchedule(), [2, 8, 8], 16)
    x = torch.rand(20, 2, 8, 8) * 2 - 1
    denoiser.prepare(x)
    assert denoiser(x, torch.tensor(0.5)).shape == x.shape


@pytest.mark.parametrize(
    ("settings", "said"), [({"variance": "learned"}, "denoiser=learned"), ({"components": 0}, "1")]
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ResidualDenoiser(Half(0.0), VPSchedule(), [D], **settings)  # type: ignore[arg-type]
