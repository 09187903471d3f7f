"""Denoisers: one model in every parameterization, the posterior, and the exact denoiser against quadrature. Float64."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from support.solutions import states_at
from torch import Tensor, nn

from diffusion.denoisers import (
    ClippedDenoiser,
    Condition,
    Denoiser,
    EDMPreconditioner,
    EpsPreconditioner,
    FlowPreconditioner,
    GaussianMixtureDenoiser,
    NetworkDenoiser,
    Preconditioner,
    Prediction,
    ScorePreconditioner,
    VPreconditioner,
    X0Preconditioner,
)
from diffusion.forward import posterior
from diffusion.samplers import (
    DDIMSampler,
)
from diffusion.schedules import (
    CosineSchedule,
    DiscreteSchedule,
    LinearSchedule,
    Schedule,
    VarianceExplodingSchedule,
)


class FixedNetwork(nn.Module):
    """Returns one stored output and remembers what it was asked."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros((), dtype=output.dtype))
        self.output = output
        self.asked: tuple[Tensor, Tensor, Condition]

    def forward(self, x: Tensor, c_noise: Tensor, cond: Condition) -> Tensor:
        self.asked = x, c_noise, cond
        return self.output


class ConstantDenoiser(Denoiser):
    """Answers with one x0 whatever it sees."""

    def __init__(self, schedule: Schedule, x0: Tensor, variance: str = "beta") -> None:
        super().__init__(schedule, variance)
        self.x0 = x0

    def predict(self, x_t: Tensor, t: Tensor, cond: Condition) -> Prediction:
        return Prediction(self.x0, raw=x_t)


PRECONDITIONERS: dict[str, Preconditioner] = {
    "eps": EpsPreconditioner(),
    "x0": X0Preconditioner(),
    "v": VPreconditioner(),
    "score": ScorePreconditioner(),
    "flow": FlowPreconditioner(),
    "edm": EDMPreconditioner(0.7),
}


def _raw(name: str, x_t: Tensor, x0: Tensor, alpha: Tensor, sigma: Tensor, sigma_data: float = 0.7) -> Tensor:
    """What a network of that kind outputs where its denoiser is x0, by the definition of each kind."""
    eps = (x_t - alpha * x0) / sigma
    if name == "eps":
        return eps
    if name == "x0":
        return x0
    if name == "v":
        return alpha * eps - sigma * x0
    if name == "score":
        return sigma * (alpha * x0 - x_t) / sigma**2
    if name == "flow":
        return eps - x0
    level, total = sigma / alpha, ((sigma / alpha) ** 2 + sigma_data**2).sqrt()  # EDM, table 1, at x_t / alpha
    return (x0 - sigma_data**2 / total**2 * (x_t / alpha)) / (level * sigma_data / total)


@pytest.mark.parametrize(("name", "precond"), PRECONDITIONERS.items())
def test_one_model_in_every_parameterization_is_one_denoiser(
    name: str, precond: Preconditioner, schedule: Schedule, times: Tensor, mixture: GaussianMixtureDenoiser
) -> None:
    x_t = states_at(schedule, times)
    x0 = mixture(x_t, times)
    alpha, sigma = (c[:, None] for c in schedule(times))
    denoiser = NetworkDenoiser(FixedNetwork(_raw(name, x_t, x0, alpha, sigma)), schedule, precond)
    torch.testing.assert_close(denoiser(x_t, times), x0, rtol=0, atol=1e-9)


def test_the_network_sees_the_scaled_state_the_noise_level_and_the_condition() -> None:
    schedule = LinearSchedule()
    network = FixedNetwork(torch.zeros(3, 2, dtype=torch.float64))
    label, x_t = torch.tensor([1, 2, 3]), torch.ones(3, 2, dtype=torch.float64)
    t = torch.tensor([0.001, 0.5, 1.0], dtype=torch.float64)
    raw = NetworkDenoiser(network, schedule, EpsPreconditioner()).predict(x_t, t, {"label": label}).raw
    x, c_noise, cond = network.asked
    torch.testing.assert_close(x, x_t, rtol=0, atol=1e-12)  # c_in is 1 where variance is preserved
    assert c_noise.tolist() == pytest.approx([0, 499, 999], abs=1e-4)
    assert cond["label"] is label
    assert raw is network.output


def test_a_scalar_time_is_that_of_every_row() -> None:
    network = FixedNetwork(torch.randn(3, 1, 4, 4))
    denoiser = NetworkDenoiser(network, LinearSchedule(), VPreconditioner())
    x_t, t = torch.randn(3, 1, 4, 4), torch.tensor(0.3)
    torch.testing.assert_close(denoiser(x_t, t), denoiser(x_t, t.expand(3)))
    assert network.asked[1].shape == (3,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_state_keeps_its_dtype_and_the_network_gets_its_own(dtype: torch.dtype) -> None:
    network = FixedNetwork(torch.zeros(2, 2, dtype=torch.float32))
    denoiser = NetworkDenoiser(network, LinearSchedule(), EDMPreconditioner())
    assert denoiser(torch.ones(2, 2, dtype=dtype), torch.tensor(0.5, dtype=torch.float64)).dtype == dtype
    assert network.asked[0].dtype == network.asked[1].dtype == torch.float32


@pytest.mark.parametrize("sigma_data", [0.5, 1.3])
def test_edm_is_the_papers_table_where_alpha_is_one(sigma_data: float) -> None:
    sigma = torch.tensor([0.002, 0.1, 1.0, 80.0], dtype=torch.float64)
    c_skip, c_out, c_in = EDMPreconditioner(sigma_data)(torch.ones_like(sigma), sigma)
    for i, s in enumerate(sigma.tolist()):
        assert c_skip[i].item() == pytest.approx(sigma_data**2 / (s**2 + sigma_data**2), rel=1e-12)
        assert c_out[i].item() == pytest.approx(s * sigma_data / math.sqrt(s**2 + sigma_data**2), rel=1e-12)
        assert c_in[i].item() == pytest.approx(1 / math.sqrt(s**2 + sigma_data**2), rel=1e-12)


def test_edm_tells_the_network_a_quarter_of_log_sigma_times_1000() -> None:
    t = torch.tensor([0.1, 0.6, 1.0], dtype=torch.float64)
    schedule = VarianceExplodingSchedule()
    torch.testing.assert_close(EDMPreconditioner().c_noise(schedule, t), 250 * schedule(t)[1].log())


def test_edm_inputs_and_targets_have_unit_variance(schedule: Schedule, times: Tensor) -> None:
    alpha, sigma = schedule(times)
    c_skip, c_out, c_in = EDMPreconditioner(0.6)(alpha, sigma)
    one = torch.ones_like(alpha)
    torch.testing.assert_close(c_in**2 * (alpha**2 * 0.36 + sigma**2), one, rtol=1e-9, atol=0)
    target = (1 - c_skip * alpha) ** 2 * 0.36 + (c_skip * sigma) ** 2
    torch.testing.assert_close(target / c_out**2, one, rtol=1e-6, atol=0)


@pytest.mark.parametrize("precond", [precond for name, precond in PRECONDITIONERS.items() if name != "edm"])
def test_inputs_have_unit_variance_for_data_of_unit_variance(
    precond: Preconditioner, schedule: Schedule, times: Tensor
) -> None:
    alpha, sigma = schedule(times)
    variance = precond(alpha, sigma).c_in ** 2 * (alpha**2 + sigma**2)
    torch.testing.assert_close(variance, torch.ones_like(alpha), rtol=1e-12, atol=0)


@pytest.mark.parametrize("sigma_data", [0.0, -1.0])
def test_edm_refuses_a_deviation_that_is_not_positive(sigma_data: float) -> None:
    with pytest.raises(ValueError, match="sigma_data must be positive"):
        EDMPreconditioner(sigma_data)


@pytest.mark.parametrize("name", PRECONDITIONERS)
def test_parameterizations_that_say_nothing_of_the_data_in_pure_noise_are_refused(name: str) -> None:
    schedule, precond = CosineSchedule(20, zero_terminal_snr=True), PRECONDITIONERS[name]
    network = nn.Linear(2, 2)
    if name in ("eps", "score", "edm"):
        with pytest.raises(ValueError, match=r"Preconditioner says nothing of the data at t = 1.*zero terminal SNR"):
            NetworkDenoiser(network, schedule, precond)
    else:
        NetworkDenoiser(network, schedule, precond)


def test_unknown_variances_are_refused_with_the_choices() -> None:
    with pytest.raises(ValueError, match="beta, beta_tilde or learned, got 'gamma'"):
        ConstantDenoiser(LinearSchedule(), torch.zeros(1), variance="gamma")


def _pairs(schedule: Schedule, times: Tensor) -> list[tuple[Tensor, Tensor]]:
    return [(times[i], times[j]) for i in range(1, len(times)) for j in (0, i - 1)]


def test_the_posterior_is_the_product_of_two_gaussians(schedule: Schedule, times: Tensor) -> None:
    # Bayes: q(x_s | x_t, x0) ~ N(x_s; alpha_s x0, sigma_s^2) N(x_t; r x_s, b), multiplied as precisions.
    x_t, x0 = torch.tensor([[1.3], [-0.4]], dtype=torch.float64), torch.tensor([[0.2], [0.9]], dtype=torch.float64)
    for t, s in _pairs(schedule, times):
        (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t), schedule(s)
        r = alpha_t / alpha_s
        b = sigma_t**2 - r**2 * sigma_s**2
        precision = 1 / sigma_s**2 + r**2 / b
        expected = (alpha_s * x0 / sigma_s**2 + r * x_t / b) / precision
        mean, variance = posterior(schedule, x_t, x0, t, s)
        torch.testing.assert_close(mean, expected, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(variance, 1 / precision, rtol=1e-9, atol=0)


def test_the_posterior_is_the_maximum_and_the_curvature_of_the_joint_density() -> None:
    # The same by brute force: one noising step of DDPM, densities on a fine grid.
    schedule = LinearSchedule(100)
    t, s, x_t, x0 = 0.31, 0.30, 0.8, -0.5
    beta = schedule.betas[30].item()
    alpha_bar_s = schedule.betas[:30].neg().add(1).prod().item()
    x = np.linspace(-6, 6, 200001)
    log_joint = -((x - math.sqrt(alpha_bar_s) * x0) ** 2) / (2 * (1 - alpha_bar_s))
    log_joint -= (x_t - math.sqrt(1 - beta) * x) ** 2 / (2 * beta)
    weights = np.exp(log_joint - log_joint.max())
    weights /= weights.sum()
    mean, variance = posterior(
        schedule,
        torch.tensor([[x_t]], dtype=torch.float64),
        torch.tensor([[x0]], dtype=torch.float64),
        torch.tensor(t, dtype=torch.float64),
        torch.tensor(s, dtype=torch.float64),
    )
    assert mean.item() == pytest.approx((weights * x).sum(), abs=1e-8)
    assert variance.item() == pytest.approx((weights * x**2).sum() - (weights * x).sum() ** 2, rel=1e-6)


def test_the_posterior_takes_one_time_for_each_row(schedule: Schedule, times: Tensor) -> None:
    x_t, x0 = torch.randn(8, 3, 2, dtype=torch.float64), torch.randn(8, 3, 2, dtype=torch.float64)
    mean, variance = posterior(schedule, x_t, x0, times[1:], times[:-1])
    for b in range(8):
        mean_b, variance_b = posterior(schedule, x_t[b : b + 1], x0[b : b + 1], times[b + 1], times[b])
        torch.testing.assert_close(mean[b], mean_b[0], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(variance[b], variance_b, rtol=1e-12, atol=0)


def test_the_step_variance_beta_is_beta_and_beta_tilde_is_smaller() -> None:
    schedule = LinearSchedule()
    x = torch.zeros(1, 1, dtype=torch.float64)
    alpha_bar = (1 - schedule.betas).cumprod(0)
    for i in (2, 3, 500, 1000):
        t, s = (torch.tensor(j / 1000, dtype=torch.float64) for j in (i, i - 1))
        beta = schedule.betas[i - 1]
        _, log_beta, x0 = ConstantDenoiser(schedule, x, "beta").transition(x, t, s)
        _, log_beta_tilde, _ = ConstantDenoiser(schedule, x, "beta_tilde").transition(x, t, s)
        torch.testing.assert_close(log_beta.exp(), beta, rtol=1e-9, atol=0)
        expected = (1 - alpha_bar[i - 2]) / (1 - alpha_bar[i - 1]) * beta
        torch.testing.assert_close(log_beta_tilde.exp(), expected, rtol=1e-9, atol=0)
        assert x0 is x


@pytest.mark.parametrize("variance", ["beta", "beta_tilde"])
def test_the_transitions_mean_is_the_posteriors_at_the_denoised(
    variance: str, schedule: Schedule, times: Tensor, mixture: GaussianMixtureDenoiser
) -> None:
    mixture.variance = variance
    x_t = states_at(schedule, times[5], rows=4)
    mean, _, x0 = mixture.transition(x_t, times[5], times[3])
    torch.testing.assert_close(x0, mixture(x_t, times[5]))
    torch.testing.assert_close(mean, posterior(schedule, x_t, x0, times[5], times[3])[0])


@pytest.mark.parametrize("variance", ["beta", "beta_tilde"])
def test_the_step_to_the_data_ends_on_the_denoised(
    variance: str, schedule: Schedule, times: Tensor, mixture: GaussianMixtureDenoiser
) -> None:
    mixture.variance = variance
    zero, x_t = torch.zeros((), dtype=torch.float64), states_at(schedule, times)
    for t in times:
        mean, log_var, x0 = mixture.transition(x_t, t, zero)
        torch.testing.assert_close(mean, x0)
        assert log_var.isfinite()


@pytest.mark.parametrize("kind", [LinearSchedule, CosineSchedule])
def test_the_last_steps_variance_is_beta_1_or_that_of_the_step_before(kind: type[DiscreteSchedule]) -> None:
    schedule, x = kind(1000), torch.zeros(1, 1, dtype=torch.float64)
    t, s = (torch.tensor(i / 1000, dtype=torch.float64) for i in (1, 0))
    beta_1, beta_2 = schedule.betas[:2]
    _, log_beta, _ = ConstantDenoiser(schedule, x, "beta").transition(x, t, s)
    torch.testing.assert_close(log_beta.exp(), beta_1, rtol=1e-9, atol=0)
    _, log_beta_tilde, _ = ConstantDenoiser(schedule, x, "beta_tilde").transition(x, t, s)
    second = beta_2 * beta_1 / (1 - (1 - beta_1) * (1 - beta_2))  # row 1 of improved-diffusion's table
    torch.testing.assert_close(log_beta_tilde.exp(), second, rtol=1e-9, atol=0)
    _, log_only, _ = ConstantDenoiser(schedule, x, "beta_tilde").transition(x, t / t, s)  # a grid of one step
    torch.testing.assert_close(log_only, schedule(t / t)[1].square().log())


def test_times_and_ends_may_differ_between_rows(schedule: Schedule, times: Tensor) -> None:
    x_t = states_at(schedule, times)
    s = torch.cat((torch.zeros(1, dtype=torch.float64), times[:-1]))
    for variance in ("beta", "beta_tilde"):
        denoiser = ConstantDenoiser(schedule, torch.full_like(x_t, 0.3), variance)
        mean, log_var, _ = denoiser.transition(x_t, times, s)
        assert log_var.shape == (9, 1)
        for b in range(9):
            mean_b, log_var_b, _ = denoiser.transition(x_t, times[b], s[b])
            torch.testing.assert_close(mean[b], mean_b[b], rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(log_var[b, 0], log_var_b, rtol=1e-12, atol=1e-12)


def test_a_learned_variance_runs_from_beta_tilde_to_beta_in_the_logarithm(schedule: Schedule, times: Tensor) -> None:
    x_t = states_at(schedule, times)
    s = torch.cat((torch.zeros(1, dtype=torch.float64), times[:-1]))
    bounds = [ConstantDenoiser(schedule, x_t, v).transition(x_t, times, s)[1] for v in ("beta_tilde", "beta")]
    for extra, frac in ((-1.0, 0.0), (0.0, 0.5), (0.5, 0.75), (1.0, 1.0)):
        out = torch.cat((x_t, torch.full_like(x_t, extra)), dim=1)
        learned = NetworkDenoiser(FixedNetwork(out), schedule, X0Preconditioner(), "learned")
        mean, log_var, x0 = learned.transition(x_t, times, s)
        assert torch.equal(x0, x_t)  # the first half is F
        expected = frac * bounds[1] + (1 - frac) * bounds[0]
        torch.testing.assert_close(log_var, expected.expand_as(x_t), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(mean, ConstantDenoiser(schedule, x_t).transition(x_t, times, s)[0])


def test_a_learned_variance_needs_twice_the_channels() -> None:
    schedule, x_t, t = LinearSchedule(), torch.zeros(3, 2), torch.tensor(0.5)
    learned = NetworkDenoiser(FixedNetwork(torch.zeros(3, 3)), schedule, EpsPreconditioner(), "learned")
    with pytest.raises(ValueError, match="needs 4 output channels, and the network has 3"):
        learned(x_t, t)
    with pytest.raises(ValueError, match="needs a denoiser with further outputs"):
        ConstantDenoiser(schedule, x_t, "learned").transition(x_t, t, t / 2)


def test_clipping_clamps_the_denoised_and_keeps_the_rest() -> None:
    x0 = torch.tensor([[-3.0, -0.5, 0.0, 0.99, 1.5]])
    clipped = ClippedDenoiser(ConstantDenoiser(LinearSchedule(), x0, "beta_tilde"))
    x_t = torch.ones(1, 5)
    prediction = clipped.predict(x_t, torch.tensor(0.5), {})
    assert prediction.x0.tolist() == torch.tensor([[-1.0, -0.5, 0.0, 0.99, 1.0]]).tolist()
    assert prediction.raw is x_t
    assert clipped.variance == "beta_tilde"
    narrow = ClippedDenoiser(ConstantDenoiser(LinearSchedule(), x0), low=-0.2, high=0.1)
    assert narrow(x_t, torch.tensor(0.5)).aminmax() == (torch.tensor(-0.2), torch.tensor(0.1))


def test_a_step_after_clipping_uses_the_clipped_denoised() -> None:
    schedule, x_t = LinearSchedule(), torch.full((1, 1), 0.7, dtype=torch.float64)
    t, s = (torch.tensor(v, dtype=torch.float64) for v in (0.5, 0.4))
    outside = ConstantDenoiser(schedule, torch.full((1, 1), 5.0, dtype=torch.float64))
    edge = ConstantDenoiser(schedule, torch.ones(1, 1, dtype=torch.float64))
    for clipped, exact in zip(ClippedDenoiser(outside).transition(x_t, t, s), edge.transition(x_t, t, s), strict=True):
        torch.testing.assert_close(clipped, exact)


def test_samplers_derive_eps_from_the_clipped_denoised() -> None:
    schedule, wide = LinearSchedule(), partial(torch.tensor, dtype=torch.float64)
    inner = GaussianMixtureDenoiser(schedule, wide([[4.0]]), wide([[[0.0]]]))  # answers 4 everywhere
    x_t, t, s = wide([[1.5]]), wide(0.5), wide(0.3)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t), schedule(s)
    result = DDIMSampler().step(ClippedDenoiser(inner), x_t, t, s, (), lambda: torch.zeros_like(x_t))[0]
    torch.testing.assert_close(result, alpha_s * 1 + sigma_s * (x_t - alpha_t * 1) / sigma_t)


def test_a_denoiser_without_a_network_takes_no_condition(mixture: GaussianMixtureDenoiser) -> None:
    assert (mixture.num_classes, mixture.embedding, mixture.condition_channels) == (0, 0, 0)
