"""Samplers: the loop, exact propagation of Gaussians, and the measured order of convergence. Float64 throughout."""

from itertools import pairwise

import pytest
import torch
from support.solutions import DETERMINISTIC as VARIABLES
from support.solutions import marginal, order, propagate, solution, weak_order
from torch import Tensor

from diffusion.denoisers import ClippedDenoiser, Condition, GaussianMixtureDenoiser, Prediction
from diffusion.forward import posterior
from diffusion.noise import Noise
from diffusion.samplers import (
    AnnealedLangevinSampler,
    ChurnSampler,
    DDIMSampler,
    DDPMSampler,
    DPMSolverPP2MSDESampler,
    EulerMaruyamaSampler,
    Evaluation,
    LogSNRGrid,
    PredictorCorrectorSampler,
    Sampler,
    TrailingGrid,
    prior,
)
from diffusion.schedules import ContinuousCosineSchedule, CosineSchedule, LinearSchedule, Schedule

DETERMINISTIC = {name: sampler for name, (sampler, _) in VARIABLES.items()}
STOCHASTIC: dict[str, tuple[Sampler, str]] = {
    "ddpm_beta": (DDPMSampler(), "beta"),
    "ddpm_beta_tilde": (DDPMSampler(), "beta_tilde"),
    "ddim_half": (DDIMSampler(0.5), "beta"),
    "ddim_one": (DDIMSampler(1.0), "beta"),
    "dpmpp_2m_sde": (DPMSolverPP2MSDESampler(), "beta"),
}
# Tested for what they compute in test_stochastic.py.
LANGEVIN: dict[str, Sampler] = {
    "euler_maruyama": EulerMaruyamaSampler(),
    "predictor_corrector": PredictorCorrectorSampler(),
    "annealed_langevin": AnnealedLangevinSampler(),
    "churn": ChurnSampler(),
}
SAMPLERS = DETERMINISTIC | {name: sampler for name, (sampler, _) in STOCHASTIC.items()} | LANGEVIN
CALLS = {"heun": 2, "predictor_corrector": 2, "annealed_langevin": 6, "churn": 2}


def _tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _zeros() -> Tensor:
    return torch.zeros((), dtype=torch.float64)


# --- the loop --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_one_step_gives_the_denoised_prior(
    sampler: Sampler, schedule: Schedule, mixture: GaussianMixtureDenoiser
) -> None:
    x = prior(schedule, Noise(0, torch.arange(4)), (2,)).double()
    torch.testing.assert_close(sampler.sample(mixture, x, _tensor(1, 0)), mixture(x, _tensor(1)[0]), rtol=0, atol=0)


@pytest.mark.parametrize("schedule", ["cosine", "variance_exploding", "sub_vp"], indirect=True)
@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_the_loop_yields_every_state(sampler: Sampler, schedule: Schedule, mixture: GaussianMixtureDenoiser) -> None:
    noise = Noise(1, torch.arange(3))
    x = prior(schedule, noise, (2,)).double()
    times = TrailingGrid()(schedule, 5)
    states = list(sampler(mixture, x, times, noise=noise))
    if not isinstance(sampler, ChurnSampler):  # it asks at raised levels
        assert [state.t.item() for state in states] == times.tolist()
    assert states[0].x_t is x
    for state in states[:-1]:
        torch.testing.assert_close(state.x0, mixture(state.x_t, state.t))
    assert torch.equal(states[-1].x_t, states[-2].x0)  # the last step ends on D itself
    assert torch.equal(states[-1].x0, states[-1].x_t)
    assert torch.equal(states[-1].x_t, sampler.sample(mixture, x, times, noise=noise))


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_the_state_keeps_its_dtype(sampler: Sampler) -> None:
    schedule = LinearSchedule()
    denoiser = GaussianMixtureDenoiser(schedule, torch.zeros(1, 2), torch.eye(2)[None])
    noise = Noise(0, torch.arange(2))
    result = sampler.sample(denoiser, prior(schedule, noise, (2,)), TrailingGrid()(schedule, 4), noise=noise)
    assert result.dtype == torch.float32


@pytest.mark.parametrize("schedule", ["cosine", "variance_exploding", "sub_vp"], indirect=True)
@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_an_image_depends_on_its_index_alone(
    sampler: Sampler, schedule: Schedule, mixture: GaussianMixtureDenoiser
) -> None:
    times = TrailingGrid()(schedule, 6)

    def run(index: Tensor) -> Tensor:
        noise = Noise(7, index)
        return sampler.sample(mixture, prior(schedule, noise, (2,)).double(), times, noise=noise)

    index = torch.tensor([4, 0, 9])
    together = run(index)
    for b in range(3):
        torch.testing.assert_close(run(index[b : b + 1])[0], together[b], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("sampler", DETERMINISTIC.values(), ids=DETERMINISTIC)
def test_deterministic_samplers_need_and_use_no_noise(
    sampler: Sampler, schedule: Schedule, mixture: GaussianMixtureDenoiser
) -> None:
    assert not sampler.stochastic
    x = prior(schedule, Noise(0, torch.arange(3)), (2,)).double()
    times = TrailingGrid()(schedule, 4)
    with_noise = sampler.sample(mixture, x, times, noise=Noise(3, torch.arange(3)))
    assert torch.equal(sampler.sample(mixture, x, times), with_noise)


@pytest.mark.parametrize("name", STOCHASTIC | LANGEVIN)
def test_stochastic_samplers_say_that_they_need_noise(
    name: str, schedule: Schedule, mixture: GaussianMixtureDenoiser
) -> None:
    sampler = SAMPLERS[name]
    assert sampler.stochastic
    with pytest.raises(ValueError, match="needs noise"):
        sampler.sample(mixture, torch.zeros(1, 2, dtype=torch.float64), TrailingGrid()(schedule, 3))


def test_each_step_has_noise_of_its_own_and_none_is_the_priors() -> None:
    schedule, noise = LinearSchedule(), Noise(3, torch.arange(2))
    denoiser = GaussianMixtureDenoiser(schedule, _tensor(0)[None], _tensor(1)[None, None])
    times = TrailingGrid()(schedule, 4)
    states = list(DDPMSampler()(denoiser, prior(schedule, noise, (1,)).double(), times, noise=noise))
    used = [prior(schedule, noise, (1,)).double() / schedule(_tensor(1)[0])[1]]
    for before, after in pairwise(states[:-1]):
        mean, log_var, _ = denoiser.transition(before.x_t, before.t, after.t)
        used.append((after.x_t - mean) / (log_var / 2).exp())
    for step, eps in enumerate(used):
        torch.testing.assert_close(eps.float(), noise.normal((1,), step=step), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SAMPLERS)
def test_from_pure_noise_a_sampler_starts_exactly_or_is_refused(name: str) -> None:
    # Data that are one point: every step has the exact marginal, and x_1 is noise alone.
    sampler, x0 = SAMPLERS[name], _tensor(0.3, -0.7)
    schedule = CosineSchedule(50, zero_terminal_snr=True)
    denoiser = GaussianMixtureDenoiser(schedule, x0[None], torch.zeros(1, 2, 2, dtype=torch.float64), variance="beta")
    noise = Noise(0, torch.arange(3))
    x, times = prior(schedule, noise, (2,)).double(), TrailingGrid()(schedule, 5)
    if not sampler.from_pure_noise:
        with pytest.raises(ValueError, match="can neither begin at alpha = 0.*zero terminal SNR"):
            next(iter(sampler(denoiser, x, times, noise=noise)))
        return
    states = list(sampler(denoiser, x, times, noise=noise))
    assert all(state.x_t.isfinite().all() for state in states)
    torch.testing.assert_close(states[-1].x_t, x0.expand(3, 2))
    if not sampler.stochastic:
        alpha, sigma = schedule(times[3])
        torch.testing.assert_close(states[3].x_t, alpha * x0 + sigma * x, rtol=1e-9, atol=1e-9)
        with pytest.raises(ValueError, match="nor lead back from there"):
            sampler.sample(denoiser, x, times[:-1].flip(0))


def test_a_model_that_cannot_go_along_any_times_is_heard_through_its_wrapper_and_by_the_loop() -> None:
    class Whole(GaussianMixtureDenoiser):
        def check_times(self, times: Tensor) -> None:
            if len(times) != 51:
                raise ValueError("this model takes every step: leave out steps=")

    schedule = CosineSchedule(50)
    model = ClippedDenoiser(Whole(schedule, torch.zeros(1, 2).double(), torch.eye(2).double()[None]))
    x = torch.zeros(1, 2).double()
    DDIMSampler().sample(model, x, TrailingGrid()(schedule, 50))
    with pytest.raises(ValueError, match="takes every step"):
        DDIMSampler().sample(model, x, TrailingGrid()(schedule, 25))


@pytest.mark.parametrize("times", [[1, 0, 0.5], [1, 0.5, 0, 0.2, 0], [1, 0.5, 0.5, 0]])
def test_only_the_last_time_may_be_data_and_none_is_repeated(
    times: list[float], schedule: Schedule, mixture: GaussianMixtureDenoiser
) -> None:
    with pytest.raises(ValueError, match="times must differ from one to the next, and only the last may be 0"):
        DDIMSampler().check(mixture, _tensor(*times))


@pytest.mark.parametrize("eta", [-0.1, 1.1])
def test_ddim_refuses_an_eta_outside_the_unit_interval(eta: float) -> None:
    with pytest.raises(ValueError, match=r"eta must lie in \[0, 1\]"):
        DDIMSampler(eta)


def test_the_prior_is_noise_of_the_last_levels_size(schedule: Schedule) -> None:
    noise = Noise(2, torch.arange(3))
    sigma = schedule(_tensor(1)[0])[1].item()
    torch.testing.assert_close(prior(schedule, noise, (1, 4, 4)), sigma * noise.normal((1, 4, 4)))


# --- stochastic samplers, exactly -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ddpm_beta", "ddpm_beta_tilde", "ddim_half", "ddim_one"])
def test_gaussian_data_is_propagated_as_derived_by_conditioning(
    name: str, schedule: Schedule, times: Tensor, gaussian: GaussianMixtureDenoiser
) -> None:
    # Along eigenvectors of the data's covariance everything is scalar. (x_s, x_t) given x0 are jointly Gaussian with
    # covariance r sigma_s^2; DDIM keeps the share 1 - eta^2 of the conditional's variance on the old noise's direction.
    sampler, gaussian.variance = STOCHASTIC[name]
    basis, spread = gaussian.eigenvectors[0], gaussian.eigenvalues[0]
    m = basis.T @ gaussian.means[0]
    falling = times.flip(0)
    (alpha, sigma) = schedule(falling[0])
    mean, var = torch.zeros(2, dtype=torch.float64), sigma**2 * torch.ones(2, dtype=torch.float64)
    actual = list(propagate(sampler, gaussian, mean, torch.diag(var), falling))
    for (t, s), (actual_mean, actual_cov) in zip(pairwise(falling), actual, strict=True):
        (alpha, sigma), (alpha_s, sigma_s) = schedule(t), schedule(s)
        r = alpha / alpha_s
        conditional = sigma_s**2 - (r * sigma_s**2) ** 2 / sigma**2
        eta = 0.5 if name == "ddim_half" else 1.0
        direction = (sigma_s**2 - eta**2 * conditional).sqrt() / sigma  # how much of x_t - alpha x0 is kept
        step_var = sigma**2 - r**2 * sigma_s**2 if name == "ddpm_beta" else eta**2 * conditional
        gain = alpha * spread / (alpha**2 * spread + sigma**2)
        denoised_mean, slope = m + gain * (mean - alpha * m), alpha_s * gain + direction * (1 - alpha * gain)
        mean = alpha_s * denoised_mean + direction * (mean - alpha * denoised_mean)
        var = slope**2 * var + step_var
        torch.testing.assert_close(basis.T @ actual_mean, mean, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(basis.T @ actual_cov @ basis, torch.diag(var), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("sampler", "variance"),
    [(DDPMSampler(), "beta_tilde"), *((DDIMSampler(eta), "beta") for eta in (0.0, 0.3, 1.0))],
    ids=["ddpm_beta_tilde", "ddim_0", "ddim_0.3", "ddim_1"],
)
def test_data_that_is_one_point_keeps_its_exact_marginals(
    sampler: Sampler, variance: str, schedule: Schedule, times: Tensor
) -> None:
    # q(x_s) = int q(x_s | x_t, x0) q(x_t | x0): any number of steps is exact (DDIM, lemma 1).
    x0 = _tensor(0.8, -0.4)
    denoiser = GaussianMixtureDenoiser(schedule, x0[None], torch.zeros(1, 2, 2, dtype=torch.float64), variance=variance)
    falling = times.flip(0)
    alpha, sigma = schedule(falling)
    eye = torch.eye(2, dtype=torch.float64)
    states = list(propagate(sampler, denoiser, alpha[0] * x0, sigma[0] ** 2 * eye, falling))
    for i, (mean, cov) in enumerate(states, start=1):
        torch.testing.assert_close(mean, alpha[i] * x0, rtol=1e-8, atol=1e-9)
        torch.testing.assert_close(cov, sigma[i] ** 2 * eye, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("schedule_", [LinearSchedule(), CosineSchedule(), ContinuousCosineSchedule()])
def test_ddpm_with_beta_keeps_standard_normal_data_standard_normal(schedule_: Schedule) -> None:
    eye = torch.eye(2, dtype=torch.float64)
    denoiser = GaussianMixtureDenoiser(schedule_, torch.zeros(1, 2, dtype=torch.float64), eye[None], variance="beta")
    falling = torch.linspace(1, schedule_.t_min, 8, dtype=torch.float64)
    for mean, cov in propagate(DDPMSampler(), denoiser, torch.zeros(2, dtype=torch.float64), eye, falling):
        torch.testing.assert_close(mean, torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-12)
        torch.testing.assert_close(cov, eye, rtol=0, atol=1e-9)


def test_ddim_with_eta_one_is_ddpm_with_the_posteriors_variance(
    schedule: Schedule, times: Tensor, mixture: GaussianMixtureDenoiser
) -> None:
    mixture.variance = "beta_tilde"
    x, z = torch.randn(2, 5, 2, dtype=torch.float64)
    for s, t in pairwise(times):
        x_t = x * (schedule(t)[0] ** 2 + schedule(t)[1] ** 2).sqrt()
        ddpm = DDPMSampler().step(mixture, x_t, t, s, (), lambda: z)[0]
        ddim = DDIMSampler(1.0).step(mixture, x_t, t, s, (), lambda: z)[0]
        torch.testing.assert_close(ddim, ddpm, rtol=1e-7, atol=1e-9)


def test_dpmpp_2m_sde_is_the_posterior_at_the_extrapolated_denoised(
    schedule: Schedule, mixture: GaussianMixtureDenoiser
) -> None:
    # Given that D stays what it is, the reverse SDE leads to q(x_s | x_t, D) exactly; D is that of half of the step.
    r, t, s = _tensor(0.7, 0.6, 0.45)
    x_r, x_t, z = torch.randn(3, 5, 2, dtype=torch.float64)
    history = (Evaluation(r, x_r, mixture(x_r, r)),)
    before, now, after = (schedule.log_snr(time) for time in (r, t, s))
    line = (mixture(x_t, t) - history[0].x0) / (now - before)
    mean, variance = posterior(schedule, x_t, mixture(x_t, t) + line * (after - now) / 2, t, s)
    result, _ = DPMSolverPP2MSDESampler().step(mixture, x_t, t, s, history, lambda: z)
    torch.testing.assert_close(result, mean + variance.sqrt() * z, rtol=1e-9, atol=1e-9)
    first, _ = DPMSolverPP2MSDESampler().step(mixture, x_t, t, s, (), lambda: z)
    torch.testing.assert_close(first, DDIMSampler(1.0).step(mixture, x_t, t, s, (), lambda: z)[0])


def test_dpmpp_2m_sde_propagates_gaussian_data_as_derived(
    schedule: Schedule, gaussian: GaussianMixtureDenoiser
) -> None:
    # Along an eigenvector (x_t, x_r) -> (x_s, x_t) is a 2x2 matrix, with the posterior's coefficients at D' above.
    times = schedule.inverse(torch.linspace(-3, 4, 9, dtype=torch.float64))
    basis, spread = gaussian.eigenvectors[0], gaussian.eigenvalues[0]
    m = basis.T @ gaussian.means[0]
    mean, cov = marginal(gaussian, times[0])
    actual = list(propagate(DPMSolverPP2MSDESampler(), gaussian, mean, cov, times))
    alpha, sigma = schedule(times)
    for axis in range(2):
        gain = alpha * spread[axis] / (alpha**2 * spread[axis] + sigma**2)
        offset = m[axis] * (1 - gain * alpha)  # D = offset + gain x
        state = torch.full((2,), (basis.T @ mean)[axis].item(), dtype=torch.float64)
        joint = torch.full((2, 2), (basis.T @ cov @ basis)[axis, axis].item(), dtype=torch.float64)
        for i in range(8):
            ratio = alpha[i] / alpha[i + 1]
            added = sigma[i] ** 2 - ratio**2 * sigma[i + 1] ** 2
            on_x, on_x0 = ratio * sigma[i + 1] ** 2 / sigma[i] ** 2, alpha[i + 1] * added / sigma[i] ** 2
            share = 0.5 if i else 0.0  # even steps in log-SNR: D' = 3/2 D - 1/2 of the one before
            j = max(i - 1, 0)
            matrix = torch.stack(
                (on_x + on_x0 * (1 + share) * gain[i], -on_x0 * share * gain[j], torch.ones(()), torch.zeros(()))
            ).reshape(2, 2)
            constant = on_x0 * ((1 + share) * offset[i] - share * offset[j])
            state = matrix @ state + torch.stack((constant, torch.zeros_like(constant)))
            joint = matrix @ joint @ matrix.T
            joint[0, 0] += added * sigma[i + 1] ** 2 / sigma[i] ** 2
            torch.testing.assert_close((basis.T @ actual[i][0])[axis], state[0], rtol=1e-10, atol=1e-10)
            torch.testing.assert_close(
                (basis.T @ actual[i][1] @ basis)[axis, axis], joint[0, 0], rtol=1e-10, atol=1e-10
            )


@pytest.mark.parametrize("schedule", ["sub_vp", "variance_exploding"], indirect=True)
@pytest.mark.parametrize("name", STOCHASTIC)
def test_the_bias_of_mean_and_covariance_falls_at_the_stated_order(
    name: str, gaussian: GaussianMixtureDenoiser
) -> None:
    sampler, gaussian.variance = STOCHASTIC[name]
    assert sampler.order == {"dpmpp_2m_sde": 2}.get(name, 1)
    assert weak_order(lambda _: sampler, gaussian, "lambda") == pytest.approx(sampler.order, abs=0.2)


def test_ddim_with_eta_one_is_ddpm_on_the_whole_grid() -> None:
    schedule, noise = LinearSchedule(50), Noise(0, torch.arange(6))
    means, covariances = _tensor(-1, 1)[:, None], torch.full((2, 1, 1), 0.04, dtype=torch.float64)
    denoiser = GaussianMixtureDenoiser(schedule, means, covariances, variance="beta_tilde")
    times, x = TrailingGrid()(schedule, 50), prior(schedule, noise, (1,)).double()
    ddim = [state.x_t for state in DDIMSampler(1.0)(denoiser, x, times, noise=noise)]
    ddpm = [state.x_t for state in DDPMSampler()(denoiser, x, times, noise=noise)]
    torch.testing.assert_close(torch.stack(ddim), torch.stack(ddpm), rtol=0, atol=1e-9)


# --- deterministic samplers: order of convergence ---------------------------------------------------------------------


STATED = {"ddim": 1, "heun": 2, "dpmpp_2m": 2, "dpmpp_3m": 3, "unipc": 3, "ipndm": 4}


@pytest.mark.parametrize("schedule", ["variance_exploding", "sub_vp"], indirect=True)
@pytest.mark.parametrize("name", VARIABLES)
def test_the_measured_order_is_the_stated_one(name: str, gaussian: GaussianMixtureDenoiser) -> None:
    sampler, variable = VARIABLES[name]
    assert sampler.order == STATED[name]
    assert order(sampler, gaussian, variable) == pytest.approx(sampler.order, abs=0.2)


@pytest.mark.parametrize("sampler", DETERMINISTIC.values(), ids=DETERMINISTIC)
def test_many_steps_find_the_exact_end_of_the_ode(
    sampler: Sampler, schedule: Schedule, gaussian: GaussianMixtureDenoiser
) -> None:
    times = LogSNRGrid()(schedule, 80)
    x = prior(schedule, Noise(1, torch.arange(5)), (2,)).double()
    states = list(sampler(gaussian, x, times))
    expected = solution(gaussian, x, times[0], times[-2])
    torch.testing.assert_close(states[-2].x_t, expected, rtol=0, atol={1: 0.08}.get(sampler.order, 5e-3))


@pytest.mark.parametrize("sampler", DETERMINISTIC.values(), ids=DETERMINISTIC)
def test_a_point_is_reached_exactly_in_any_number_of_steps(sampler: Sampler, schedule: Schedule) -> None:
    # With D constant the ODE is a straight line in (sigma / alpha, x / alpha), and in exp(-lambda).
    x0 = _tensor(0.3, -0.7)
    denoiser = GaussianMixtureDenoiser(schedule, x0[None], torch.zeros(1, 2, 2, dtype=torch.float64))
    x = prior(schedule, Noise(1, torch.arange(3)), (2,)).double()
    times = TrailingGrid()(schedule, 4)
    eps = (x - schedule(times[0])[0] * x0) / schedule(times[0])[1]
    for state in list(sampler(denoiser, x, times))[:-1]:
        alpha, sigma = schedule(state.t)
        torch.testing.assert_close(state.x_t, alpha * x0 + sigma * eps, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(("name", "calls"), [(name, CALLS.get(name, 1)) for name in SAMPLERS])
def test_a_step_calls_the_denoiser_as_often_as_stated(
    name: str,
    calls: int,
    schedule: Schedule,
    mixture: GaussianMixtureDenoiser,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sampler, predict, count = SAMPLERS[name], mixture.predict, 0

    def counted(x_t: Tensor, t: Tensor, cond: Condition) -> Prediction:
        nonlocal count
        count += 1
        return predict(x_t, t, cond)

    monkeypatch.setattr(mixture, "predict", counted)
    x_t = torch.ones(1, 2, dtype=torch.float64)
    sampler.step(mixture, x_t, _tensor(0.6)[0], _tensor(0.55)[0], (), lambda: x_t)
    assert count == sampler.calls == calls
