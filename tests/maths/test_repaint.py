"""Inpainting on Gaussian data, propagated exactly: what replacement gets wrong, and what RePaint mends. Float64."""

from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from support.solutions import affine, marginal
from torch import Tensor

from diffusion.denoisers import Condition, GaussianMixtureDenoiser, Prediction
from diffusion.forward import renoised
from diffusion.guidance import Inpainting
from diffusion.noise import Noise
from diffusion.samplers import (
    ConsistencySampler,
    DDIMSampler,
    DDPMSampler,
    DPMSolverPP2MSampler,
    Draw,
    HeunSampler,
    LogSNRGrid,
    PredictorCorrectorSampler,
    RePaintSampler,
    Sampler,
    prior,
)
from diffusion.schedules import Schedule

KNOWN = 1.3
MASK = torch.tensor([0.0, 1.0], dtype=torch.float64)


def inpainting(gaussian: GaussianMixtureDenoiser) -> Inpainting:
    return Inpainting(gaussian, torch.tensor([KNOWN, 0.0], dtype=torch.float64), MASK)


class _Given(GaussianMixtureDenoiser):
    """What it is given, whatever it sees."""

    def predict(self, x_t: Tensor, t: Tensor, cond: Condition) -> Prediction:
        return Prediction(cond["embedding"])


def test_what_surrounds_the_known_part_is_drawn_for_the_condition(gaussian: GaussianMixtureDenoiser) -> None:
    conditioned = _Given(gaussian.schedule, gaussian.means, torch.eye(2, dtype=torch.float64)[None])
    embedding = torch.tensor([[5.0, 6.0], [7.0, 8.0]], dtype=torch.float64)
    found = inpainting(conditioned)(torch.zeros_like(embedding), torch.tensor(0.5), {"embedding": embedding})
    assert found.tolist() == [[KNOWN, 6], [KNOWN, 8]]


def test_a_step_may_have_times_of_its_own_for_each_sample(gaussian: GaussianMixtureDenoiser) -> None:
    model, x_t = inpainting(gaussian), torch.tensor([[0.3, -0.2], [1.0, 0.5], [0.0, 2.0]], dtype=torch.float64)
    t, s = torch.tensor([[0.9, 0.6, 0.3], [0.8, 0.4, 0.2]], dtype=torch.float64)
    mean, log_var, _ = model.transition(x_t, t, s)
    for k in range(3):
        alone = model.transition(x_t[k : k + 1], t[k], s[k])
        torch.testing.assert_close(mean[k : k + 1], alone[0])
        torch.testing.assert_close(log_var.expand_as(x_t)[k : k + 1], alone[1].expand(1, 2))


def exact(gaussian: GaussianMixtureDenoiser) -> tuple[float, float]:
    """Mean and variance of the second coordinate given the first."""
    basis = gaussian.eigenvectors[0]
    c, m = basis @ torch.diag(gaussian.eigenvalues[0]) @ basis.T, gaussian.means[0]
    mean, variance = m[1] + c[1, 0] / c[0, 0] * (KNOWN - m[0]), c[1, 1] - c[1, 0] ** 2 / c[0, 0]
    return mean.item(), variance.item()


def states(gaussian: GaussianMixtureDenoiser, times: Tensor, rounds: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    """Exact mean and covariance of x at each time, and of D at the last, by ddpm with so many rounds a step.

    The state begins as the noised known value beside the data's.
    """
    denoiser, schedule = inpainting(gaussian), gaussian.schedule
    start, cov = marginal(gaussian, times[0])
    alpha, sigma = schedule(times[0])
    start, cov = torch.stack((alpha * KNOWN, start[1])), torch.diag(torch.stack((sigma**2, cov[1, 1])))
    found = [([start], [cov]) for _ in rounds]
    for t, s in pairwise(times):
        (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t), schedule(s)
        ratio = alpha_t / alpha_s
        added = (sigma_t**2 - (ratio * sigma_s) ** 2) * torch.eye(2)

        def step(z: Tensor, draw: Draw, t: Tensor = t, s: Tensor = s) -> Tensor:
            return DDPMSampler().step(denoiser, z, t, s, (), draw)[0]

        a, b, q = affine(step, 2)
        for (means, covs), count in zip(found, rounds, strict=True):
            mean, cov = means[-1], covs[-1]
            for turn in range(count):
                if turn:
                    mean, cov = ratio * mean, ratio**2 * cov + added
                mean, cov = a @ mean + b, a @ cov @ a.T + q
            means.append(mean)
            covs.append(cov)
    probes = torch.cat((torch.zeros(1, 2), torch.eye(2))).double()
    images = denoiser(probes, times[-1])
    a, b = (images[1:] - images[0]).T, images[0]
    return [
        (torch.stack([*means, a @ means[-1] + b]), torch.stack([*covs, a @ covs[-1] @ a.T])) for means, covs in found
    ]


def errors(gaussian: GaussianMixtureDenoiser, *rounds: int) -> list[tuple[float, float]]:
    """How far mean and variance of what was generated are from the exact ones."""
    times = LogSNRGrid()(gaussian.schedule, 40)[:-1]
    mean, variance = exact(gaussian)
    return [
        (abs(means[-1][1].item() - mean), abs(covs[-1][1, 1].item() - variance))
        for means, covs in states(gaussian, times, rounds)
    ]


@pytest.mark.parametrize("schedule", ["linear", "variance_exploding", "sub_vp"], indirect=True)
def test_the_known_part_is_distributed_as_the_noised_data_at_every_level(gaussian: GaussianMixtureDenoiser) -> None:
    times = LogSNRGrid()(gaussian.schedule, 12)[:-1]
    alpha, sigma = gaussian.schedule(times)
    ((means, covs),) = states(gaussian, times, [1])
    torch.testing.assert_close(means[:-1, 0], KNOWN * alpha, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(covs[:-1, 0, 0], sigma**2, rtol=1e-9, atol=1e-9)
    assert (means[-1, 0], covs[-1, 0, 0]) == (KNOWN, 0)


@pytest.mark.parametrize("schedule", ["vp"], indirect=True)
def test_replacement_is_biased_and_repaint_less_the_more_rounds_it_takes(gaussian: GaussianMixtureDenoiser) -> None:
    by_rounds = errors(gaussian, 1, 2, 5, 20, 200)
    mean, _ = exact(gaussian)
    for before, after in pairwise(by_rounds):
        assert after[0] < 0.9 * before[0]
    # Without what is known the mean is another one: replacement closes less than nine tenths of that gap.
    assert by_rounds[0][0] > 0.1 * abs(mean - gaussian.means[0][1].item())
    assert by_rounds[3][0] < 0.2 * by_rounds[0][0]


@pytest.mark.parametrize("schedule", ["vp"], indirect=True)
def test_without_correlation_replacement_has_the_exact_mean(schedule: Schedule) -> None:
    covariance = torch.diag(torch.tensor([0.5, 0.2], dtype=torch.float64))
    apart = GaussianMixtureDenoiser(schedule, torch.tensor([[0.4, -0.2]], dtype=torch.float64), covariance[None])
    for mean_error, _ in errors(apart, 1, 3):
        assert mean_error < 1e-9


@pytest.mark.parametrize("schedule", ["linear", "sub_vp"], indirect=True)
def test_renoising_undoes_a_step_of_the_data(gaussian: GaussianMixtureDenoiser) -> None:
    t, s = gaussian.schedule.inverse(torch.tensor([-1.0, 1.0], dtype=torch.float64))
    mean, cov = marginal(gaussian, s)
    a, b, q = affine(lambda z, draw: renoised(gaussian.schedule, z, s, t, draw()), 2)
    expected = marginal(gaussian, t)
    torch.testing.assert_close((a @ mean + b, a @ cov @ a.T + q), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("schedule", ["linear"], indirect=True)
def test_a_step_of_repaint_is_its_rounds_one_after_the_other(gaussian: GaussianMixtureDenoiser) -> None:
    denoiser, schedule = inpainting(gaussian), gaussian.schedule
    t, s = schedule.inverse(torch.tensor([-1.0, 1.0], dtype=torch.float64))
    noise, count = Noise(0, torch.arange(4)), 0

    def draw() -> Tensor:
        nonlocal count
        count += 1
        return noise.normal((2,), draw=count).double()

    x_t = prior(schedule, noise, (2,)).double()
    x, _ = RePaintSampler(DDPMSampler(), 3).step(denoiser, x_t, t, s, (), draw)
    assert count == 5
    count = 0
    for turn in range(3):
        if turn:
            x_t = renoised(schedule, y, s, t, draw())  # noqa: F821
        y, _ = DDPMSampler().step(denoiser, x_t, t, s, (), draw)
    torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sampler", [DDPMSampler(), DDIMSampler(), HeunSampler(), DPMSolverPP2MSampler()])
@pytest.mark.parametrize("schedule", ["vp"], indirect=True)
def test_one_round_is_the_sampler_itself_and_more_work_with_any(
    sampler: Sampler, gaussian: GaussianMixtureDenoiser
) -> None:
    noise, times = Noise(0, torch.arange(4)), LogSNRGrid()(gaussian.schedule, 8)
    x, denoiser = prior(gaussian.schedule, noise, (2,)).double(), inpainting(gaussian)
    plain = sampler.sample(denoiser, x, times, noise=noise)
    assert torch.equal(RePaintSampler(sampler, 1).sample(denoiser, x, times, noise=noise), plain)
    more = RePaintSampler(sampler, 4).sample(denoiser, x, times, noise=noise)
    assert (more[:, 0] == KNOWN).all()
    assert (more - plain).abs().max() > 1e-3


@pytest.mark.parametrize("schedule", ["vp"], indirect=True)
def test_a_multistep_method_begins_anew_after_each_return(gaussian: GaussianMixtureDenoiser) -> None:
    t, s, r = gaussian.schedule.inverse(torch.tensor([-2.0, -1.0, 0.0], dtype=torch.float64))
    x_t = torch.tensor([[0.4, -0.9]], dtype=torch.float64)
    sampler, z = DPMSolverPP2MSampler(), torch.ones(1, 2, dtype=torch.float64)
    x_s, history = sampler.step(gaussian, x_t, t, s, (), lambda: z)
    twice, known = RePaintSampler(sampler, 2).step(gaussian, x_s, s, r, history, lambda: z)
    first, _ = sampler.step(gaussian, x_s, s, r, history, lambda: z)
    back = renoised(gaussian.schedule, first, r, s, z)
    assert torch.equal(twice, sampler.step(gaussian, back, s, r, (), lambda: z)[0])
    assert len(known) == 1


def test_no_rounds_are_refused() -> None:
    with pytest.raises(ValueError, match="resample must be at least 1, got 0"):
        RePaintSampler(DDPMSampler(), 0)


def test_the_samplers_properties_are_those_of_the_one_that_it_repeats() -> None:
    for inner in (DPMSolverPP2MSampler(), PredictorCorrectorSampler(rule="norm"), ConsistencySampler()):
        outer = RePaintSampler(inner, 2)
        for name in ("order", "from_pure_noise", "by_transition", "remembers", "affine", "flow_map"):
            assert getattr(outer, name) == getattr(inner, name), name
