"""DDIM under its other names, and rising times: from data to noise and back. Float64."""

import pytest
import torch
from support.solutions import interior, solution
from torch import Tensor

from diffusion.denoisers import GaussianMixtureDenoiser
from diffusion.noise import Noise
from diffusion.samplers import (
    DDIMSampler,
    DDPMSampler,
    DPMSolverPP2MSampler,
    DPMSolverPP3MSampler,
    HeunSampler,
    IPNDMSampler,
    KarrasGrid,
    LogSNRGrid,
    Sampler,
    UniPCSampler,
    prior,
)
from diffusion.schedules import Schedule

SAMPLERS: dict[str, tuple[Sampler, float]] = {
    "ddim": (DDIMSampler(), 0.03),
    "heun": (HeunSampler(), 1e-3),
    "dpmpp_2m": (DPMSolverPP2MSampler(), 1e-3),
    "dpmpp_3m": (DPMSolverPP3MSampler(), 1e-3),
    "unipc": (UniPCSampler(), 1e-3),
    "ipndm": (IPNDMSampler(), 1e-3),
}


@pytest.mark.parametrize("eta", [0.0, 1.0], ids=["euler", "euler_ancestral"])
def test_euler_and_euler_ancestral_are_k_diffusions(
    eta: float, schedule: Schedule, mixture: GaussianMixtureDenoiser
) -> None:
    # There y = x / alpha has noise of the level sigma / alpha; ancestral steps go down to `down` and up again by `up`.
    times = KarrasGrid()(schedule, 9)
    alpha, sigma = schedule(times)
    level = sigma / alpha
    noise = Noise(0, torch.arange(4))
    x = prior(schedule, noise, (2,)).double()
    states = list(DDIMSampler(eta)(mixture, x, times, noise=noise))
    y = x / alpha[0]
    for i in range(9):
        torch.testing.assert_close(alpha[i] * y, states[i].x_t, rtol=1e-9, atol=1e-9)
        denoised = mixture(alpha[i] * y, times[i])
        begin, end = level[i], level[i + 1]
        up = eta * (end**2 * (begin**2 - end**2) / begin**2).sqrt()
        down = (end**2 - up**2).sqrt()
        slope = (y - denoised) / begin
        y = y + (down - begin) * slope + up * noise.normal((2,), step=i + 1).double()
    torch.testing.assert_close(y, states[-1].x_t, rtol=1e-9, atol=1e-9)


def _states(mixture: GaussianMixtureDenoiser, t: Tensor) -> Tensor:
    """Points of the data, noised to t."""
    alpha, sigma = mixture.schedule(t)
    x0 = mixture.means.repeat(2, 1) + 0.1
    return alpha * x0 + sigma * torch.randn(x0.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("schedule", ["linear", "sub_vp"], indirect=True)
@pytest.mark.parametrize("name", SAMPLERS)
def test_rising_times_solve_the_same_ode(name: str, gaussian: GaussianMixtureDenoiser) -> None:
    sampler, error = SAMPLERS[name]
    times = interior(gaussian.schedule, "lambda", 100, before=0).flip(0)
    x = _states(gaussian, times[0])
    result = sampler.sample(gaussian, x, times)
    torch.testing.assert_close(result, solution(gaussian, x, times[0], times[-1]), rtol=error, atol=error)


@pytest.mark.parametrize("schedule", ["cosine", "variance_exploding", "sub_vp"], indirect=True)
@pytest.mark.parametrize("name", SAMPLERS)
def test_data_turned_into_noise_and_back_is_what_it_was(
    name: str, schedule: Schedule, mixture: GaussianMixtureDenoiser
) -> None:
    sampler, error = SAMPLERS[name]
    falling = LogSNRGrid()(schedule, 120)[:-1]
    x = _states(mixture, falling[-1])
    noise = sampler.sample(mixture, x, falling.flip(0))
    assert (noise - x).abs().max() > 0.3
    back = sampler.sample(mixture, noise, falling)
    torch.testing.assert_close(back, x, rtol=0, atol=4 * error)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_turn_starts_a_multistep_method_anew(name: str, mixture: GaussianMixtureDenoiser) -> None:
    sampler, _ = SAMPLERS[name]
    falling = interior(mixture.schedule, "lambda", 5, before=0)
    x = _states(mixture, falling[0])
    there = sampler.sample(mixture, x, falling)
    both = sampler.sample(mixture, x, torch.cat((falling, falling.flip(0)[1:])))
    assert torch.equal(both, sampler.sample(mixture, there, falling.flip(0)))


@pytest.mark.parametrize(
    ("sampler", "times", "message"),
    [
        (DDPMSampler(), [0.2, 0.4], "a stochastic sampler must fall; to invert use a deterministic one"),
        (DDIMSampler(0.5), [1.0, 0.2, 0.4, 0.0], "a stochastic sampler must fall"),
        (DDIMSampler(), [0.0, 0.4], "only the last may be 0"),
        (DDIMSampler(), [0.4, 0.4], "differ from one to the next"),
    ],
)
def test_times_that_cannot_be_are_refused(
    sampler: Sampler, times: list[float], message: str, mixture: GaussianMixtureDenoiser
) -> None:
    x = torch.zeros(1, 2, dtype=torch.float64)
    with pytest.raises(ValueError, match=message):
        sampler.sample(mixture, x, torch.tensor(times), noise=Noise(0, torch.arange(1)))
