"""The same model outputs give the same trajectories as diffusers' schedulers, wherever the definitions agree.

Where they do not: diffusers' strided grids need the number of steps to divide T, its betas are not rescaled with T, its
ancestral step with `fixed_large` adds noise even on the last step of a strided grid, and its Heun and multistep
schedulers keep their state in float32 (hence their tolerances, and no cosine schedule for Heun, whose first step
multiplies rounding errors by a sigma / alpha of 2e4). Its DPM-Solver++(3M) gives the second difference half of the
weight that the parabola's integral has, which makes its order 2, so that there is no parity with dpmpp_3m.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from diffusion.denoisers import GaussianMixtureDenoiser
from diffusion.noise import Noise
from diffusion.samplers import (
    DDIMSampler,
    DDPMSampler,
    DPMSolverPP2MSampler,
    DPMSolverPP2MSDESampler,
    HeunSampler,
    KarrasGrid,
    Sampler,
    TrailingGrid,
    UniPCSampler,
    prior,
)
from diffusion.schedules import (
    CosineSchedule,
    DiscreteSchedule,
    LinearSchedule,
    QuadraticSchedule,
    Schedule,
    SigmoidSchedule,
    VarianceExplodingSchedule,
)

diffusers = pytest.importorskip("diffusers")

NAMES = {
    "linear": LinearSchedule,
    "squaredcos_cap_v2": CosineSchedule,
    "sigmoid": SigmoidSchedule,
    "scaled_linear": QuadraticSchedule,
}
TIMESTEPS = 100
SETTINGS = {"num_train_timesteps": TIMESTEPS, "timestep_spacing": "trailing"}


def _mixture(schedule: Schedule, variance: str = "beta") -> GaussianMixtureDenoiser:
    """Four narrow Gaussians in the plane, a task that no sampler solves in one step."""
    means = torch.tensor([[1.0, 1.0], [-1.0, 0.5], [0.3, -1.0], [-0.5, -0.4]], dtype=torch.float64)
    covariances = 0.05 * torch.eye(2, dtype=torch.float64).expand(4, 2, 2)
    return GaussianMixtureDenoiser(schedule, means, covariances, variance=variance)


def _eps(denoiser: GaussianMixtureDenoiser, x_t: Tensor, step: Tensor) -> Tensor:
    """What an eps-predicting network would say at diffusers' step, counted from zero."""
    t = (step.double() + 1) / TIMESTEPS
    alpha, sigma = denoiser.schedule(t)
    return (x_t - alpha * denoiser(x_t, t)) / sigma


def _in_double(scheduler: object, schedule: DiscreteSchedule) -> None:
    """Gives a scheduler our table, so that its float32 one does not blur the comparison."""
    scheduler.betas = schedule.betas
    scheduler.alphas = 1 - schedule.betas
    scheduler.alphas_cumprod = (1 - schedule.betas).cumprod(0)


@pytest.mark.parametrize("name", NAMES)
def test_the_betas_are_equal(name: str) -> None:
    theirs = diffusers.DDPMScheduler(1000, beta_schedule=name).betas.double()
    torch.testing.assert_close(NAMES[name]().betas, theirs, rtol=5e-4, atol=1e-8)


@pytest.mark.parametrize("steps", [TIMESTEPS, 20])
@pytest.mark.parametrize(("variance", "theirs"), [("beta", "fixed_large"), ("beta_tilde", "fixed_small")])
@pytest.mark.parametrize("kind", [LinearSchedule, CosineSchedule])
def test_ddpm(
    kind: Callable[[int], DiscreteSchedule], variance: str, theirs: str, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    schedule = kind(TIMESTEPS)
    denoiser, noise = _mixture(schedule, variance), Noise(0, torch.arange(3))
    scheduler = diffusers.DDPMScheduler(variance_type=theirs, clip_sample=False, **SETTINGS)
    _in_double(scheduler, schedule)
    scheduler.set_timesteps(steps)
    x_start = prior(schedule, noise, (2,)).double()
    ours = [state.x_t for state in DDPMSampler()(denoiser, x_start, TrailingGrid()(schedule, steps), noise=noise)]
    module = diffusers.schedulers.scheduling_ddpm
    x = x_start
    for i, step in enumerate(scheduler.timesteps):
        torch.testing.assert_close(x, ours[i], rtol=1e-6, atol=1e-6)
        monkeypatch.setattr(module, "randn_tensor", lambda *_, i=i, **__: noise.normal((2,), step=i + 1).double())
        x = scheduler.step(_eps(denoiser, x, step), step, x).prev_sample
    if steps == TIMESTEPS or variance == "beta_tilde":
        torch.testing.assert_close(x, ours[-1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("steps", [TIMESTEPS, 50, 10])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("kind", [LinearSchedule, CosineSchedule])
def test_ddim(kind: Callable[[int], DiscreteSchedule], eta: float, steps: int) -> None:
    schedule = kind(TIMESTEPS)
    denoiser, noise = _mixture(schedule), Noise(1, torch.arange(3))
    scheduler = diffusers.DDIMScheduler(clip_sample=False, set_alpha_to_one=True, **SETTINGS)
    _in_double(scheduler, schedule)
    scheduler.set_timesteps(steps)
    x = prior(schedule, noise, (2,)).double()
    ours = [state.x_t for state in DDIMSampler(eta)(denoiser, x, TrailingGrid()(schedule, steps), noise=noise)]
    for i, step in enumerate(scheduler.timesteps):
        torch.testing.assert_close(x, ours[i], rtol=1e-6, atol=1e-6)
        z = noise.normal((2,), step=i + 1).double() if i < steps - 1 else torch.zeros(3, 2, dtype=torch.float64)
        x = scheduler.step(_eps(denoiser, x, step), step, x, eta=eta, variance_noise=z).prev_sample
    torch.testing.assert_close(x, ours[-1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("steps", [10, 50])
@pytest.mark.parametrize("kind", [LinearSchedule, CosineSchedule])
def test_dpmpp_2m(kind: Callable[[int], DiscreteSchedule], steps: int) -> None:
    schedule = kind(TIMESTEPS)
    denoiser = _mixture(schedule)
    scheduler = diffusers.DPMSolverMultistepScheduler(
        algorithm_type="dpmsolver++",
        solver_type="midpoint",
        lower_order_final=False,
        final_sigmas_type="zero",
        **SETTINGS,
    )
    _in_double(scheduler, schedule)
    scheduler.set_timesteps(steps)
    x = prior(schedule, Noise(2, torch.arange(3)), (2,)).double()
    ours = [state.x_t for state in DPMSolverPP2MSampler()(denoiser, x, TrailingGrid()(schedule, steps))]
    for i, step in enumerate(scheduler.timesteps):
        torch.testing.assert_close(x.double(), ours[i], rtol=1e-3, atol=2e-4)
        x = scheduler.step(_eps(denoiser, x.double(), step), step, x).prev_sample
    torch.testing.assert_close(x.double(), ours[-1], rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("steps", [10, 50])
@pytest.mark.parametrize("kind", [LinearSchedule, CosineSchedule])
def test_dpmpp_2m_sde(kind: Callable[[int], DiscreteSchedule], steps: int) -> None:
    schedule = kind(TIMESTEPS)
    denoiser, noise = _mixture(schedule), Noise(5, torch.arange(3))
    scheduler = diffusers.DPMSolverMultistepScheduler(
        algorithm_type="sde-dpmsolver++",
        solver_type="midpoint",
        lower_order_final=False,
        final_sigmas_type="zero",
        **SETTINGS,
    )
    _in_double(scheduler, schedule)
    scheduler.set_timesteps(steps)
    x = prior(schedule, noise, (2,)).double()
    times = TrailingGrid()(schedule, steps)
    ours = [state.x_t for state in DPMSolverPP2MSDESampler()(denoiser, x, times, noise=noise)]
    for i, step in enumerate(scheduler.timesteps):
        torch.testing.assert_close(x.double(), ours[i], rtol=1e-3, atol=2e-4)
        z = noise.normal((2,), step=i + 1).double()
        x = scheduler.step(_eps(denoiser, x.double(), step), step, x, variance_noise=z).prev_sample
    torch.testing.assert_close(x.double(), ours[-1], rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("steps", [10, 50])
@pytest.mark.parametrize("kind", [LinearSchedule, CosineSchedule])
def test_unipc(kind: Callable[[int], DiscreteSchedule], steps: int) -> None:
    schedule = kind(TIMESTEPS)
    denoiser = _mixture(schedule)
    scheduler = diffusers.UniPCMultistepScheduler(
        solver_order=2,
        solver_type="bh2",
        predict_x0=True,
        lower_order_final=True,
        final_sigmas_type="zero",
        **SETTINGS,
    )
    _in_double(scheduler, schedule)
    scheduler.set_timesteps(steps)
    x = prior(schedule, Noise(6, torch.arange(3)), (2,)).double()
    ours = [state.x_t for state in UniPCSampler()(denoiser, x, TrailingGrid()(schedule, steps))]
    for i, step in enumerate(scheduler.timesteps):
        torch.testing.assert_close(x.double(), ours[i], rtol=1e-3, atol=2e-4)
        x = scheduler.step(_eps(denoiser, x.double(), step), step, x).prev_sample
    torch.testing.assert_close(x.double(), ours[-1], rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("steps", [10, 50])
@pytest.mark.parametrize("kind", [LinearSchedule, QuadraticSchedule])
def test_heun(kind: Callable[[int], DiscreteSchedule], steps: int) -> None:
    schedule = kind(TIMESTEPS)
    denoiser = _mixture(schedule)
    scheduler = diffusers.HeunDiscreteScheduler(**SETTINGS)
    _in_double(scheduler, schedule)
    scheduler.set_timesteps(steps)
    times = TrailingGrid()(schedule, steps)
    alpha = schedule(times)[0]
    x_start = prior(schedule, Noise(3, torch.arange(3)), (2,)).double()
    ours = [state.x_t for state in HeunSampler()(denoiser, x_start, times)]
    y, i = x_start / alpha[0], 0  # diffusers' state here is x / alpha; its timesteps hold both of Heun's evaluations
    for step in scheduler.timesteps:
        if scheduler.state_in_first_order:
            torch.testing.assert_close(alpha[i] * y.double(), ours[i], rtol=1e-3, atol=2e-4)
            i += 1
        alpha_step = schedule((step.double() + 1) / TIMESTEPS)[0]
        y = scheduler.step(_eps(denoiser, alpha_step * y.double(), step), step, y).prev_sample
    torch.testing.assert_close(y.double(), ours[-1], rtol=1e-3, atol=2e-4)


def test_the_karras_grid() -> None:
    schedule = LinearSchedule()
    scheduler = diffusers.HeunDiscreteScheduler(1000, use_karras_sigmas=True)
    _in_double(scheduler, schedule)
    scheduler.set_timesteps(18)
    theirs = torch.cat((scheduler.sigmas[:1], scheduler.sigmas[1:-1:2])).double()  # Heun's are listed twice
    alpha, sigma = schedule(KarrasGrid()(schedule, 18)[:-1])
    torch.testing.assert_close(sigma / alpha, theirs, rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("name", "sampler"),
    [("EDMEulerScheduler", DDIMSampler()), ("EDMDPMSolverMultistepScheduler", DPMSolverPP2MSampler())],
)
def test_edm(name: str, sampler: Sampler) -> None:
    schedule = VarianceExplodingSchedule(0.002, 80.0)
    denoiser = _mixture(schedule)
    scheduler = getattr(diffusers, name)(sigma_min=0.002, sigma_max=80.0, sigma_data=0.5, rho=7.0)
    scheduler.set_timesteps(18)
    x = prior(schedule, Noise(4, torch.arange(3)), (2,)).double()
    states = list(sampler(denoiser, x, KarrasGrid()(schedule, 18)))
    for step, sigma, state in zip(scheduler.timesteps, scheduler.sigmas.double(), states, strict=False):
        torch.testing.assert_close(x.double(), state.x_t, rtol=1e-3, atol=5e-4)
        t = schedule.inverse(-2 * sigma.log())
        raw_skip, raw_out = 0.25 / (sigma**2 + 0.25), sigma * 0.5 / (sigma**2 + 0.25).sqrt()  # EDM, table 1
        x_t = x.double()
        x = scheduler.step((denoiser(x_t, t) - raw_skip * x_t) / raw_out, step, x).prev_sample
    torch.testing.assert_close(x.double(), states[-1].x_t, rtol=1e-3, atol=5e-4)
