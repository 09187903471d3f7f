"""Objectives: targets, weights and times in closed form, and the population loss's minimiser by quadrature. Float64."""

import math
from collections.abc import Callable
from statistics import NormalDist

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from diffusion.denoisers import (
    Condition,
    EDMPreconditioner,
    EpsPreconditioner,
    NetworkDenoiser,
    VPreconditioner,
    X0Preconditioner,
)
from diffusion.noise import Noise
from diffusion.objectives import (
    DISTANCES,
    NOISE,
    TIME,
    DenoisingObjective,
    LikelihoodWeighting,
    LognormalTimes,
    LogSNRTimes,
    MinSNRWeighting,
    SimpleWeighting,
    Times,
    UniformTimes,
    Weighting,
)
from diffusion.schedules import CosineSchedule, LinearSchedule, Schedule, VarianceExplodingSchedule, VPSchedule

PRECONDITIONERS = {
    "eps": EpsPreconditioner(),
    "x0": X0Preconditioner(),
    "v": VPreconditioner(),
    "edm": EDMPreconditioner(0.7),
}


class FixedTimes(Times):
    """The same t for every sample, or one for each."""

    def __init__(self, t: Tensor) -> None:
        self.t = t

    def __call__(self, schedule: Schedule, u: Tensor) -> Tensor:
        return self.t.expand(len(u))


class GivenNoise(Noise):
    """Noise that is chosen instead of drawn."""

    def __init__(self, eps: Tensor) -> None:
        super().__init__(0, torch.arange(len(eps)))
        self.eps = eps

    def normal(self, shape: object, step: int = 0, draw: int = 0) -> Tensor:
        return self.eps


class ImpulseWeighting(Weighting):
    """A weight that no classical loss has."""

    def __call__(self, schedule: Schedule, t: Tensor, c_out2: Tensor) -> Tensor:
        return torch.exp(-(schedule.log_snr(t) ** 2)) * c_out2


class Linear(nn.Module):
    """`F = a x + b` for scalars."""

    def __init__(self, a: float = 0.0, b: float = 0.0) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(a, dtype=torch.float64))
        self.b = nn.Parameter(torch.tensor(b, dtype=torch.float64))

    def forward(self, x: Tensor, c_noise: Tensor, cond: Condition) -> Tensor:
        return self.a * x + self.b


class Stored(nn.Module):
    """Returns what it was given at the start."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros((), dtype=output.dtype))
        self.output = output
        self.cond: Condition = {}

    def forward(self, x: Tensor, c_noise: Tensor, cond: Condition) -> Tensor:
        self.cond = cond
        return self.output


def _definition(name: str, x0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The training target of each parameterization, as its paper states it."""
    if name == "eps":
        return eps
    if name == "x0":
        return x0
    if name == "v":
        return alpha * eps - sigma * x0
    level, y = sigma / alpha, x0 + sigma / alpha * eps  # EDM eq. 8, sigma_data = 0.7
    c_skip, c_out = 0.49 / (level**2 + 0.49), level * 0.7 / (level**2 + 0.49).sqrt()
    return (x0 - c_skip * y) / c_out


def _midpoints(n: int) -> Tensor:
    return (torch.arange(n, dtype=torch.float64) + 0.5) / n


@pytest.mark.parametrize("name", PRECONDITIONERS)
def test_the_raw_target_is_the_papers(name: str, schedule: Schedule, times: Tensor) -> None:
    x0, eps = torch.randn(2, 9, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    target = _definition(name, x0, eps, *(c[:, None] for c in schedule(times)))
    offset = torch.linspace(-2, 2, 9, dtype=torch.float64)
    model = NetworkDenoiser(Stored(target + offset[:, None]), schedule, PRECONDITIONERS[name])
    objective = DenoisingObjective(FixedTimes(times), SimpleWeighting())
    result = objective(model, {"x": x0}, GivenNoise(eps))
    torch.testing.assert_close(result["loss"], offset**2, rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(result["log_snr"], schedule.log_snr(times))


@pytest.mark.parametrize("weighting", [MinSNRWeighting(5.0), ImpulseWeighting()])
@pytest.mark.parametrize("name", PRECONDITIONERS)
def test_a_weight_on_the_denoised_is_that_weight_times_c_out_squared(
    name: str, weighting: Weighting, schedule: Schedule, times: Tensor
) -> None:
    # loss == w(log_snr) ||x0 - D||^2 for an arbitrary network, with D computed by the denoiser itself.
    x0, eps, raw = torch.randn(3, 9, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    model = NetworkDenoiser(Stored(raw), schedule, PRECONDITIONERS[name])
    loss = DenoisingObjective(FixedTimes(times), weighting)(model, {"x": x0}, GivenNoise(eps))["loss"]
    alpha, sigma = (c[:, None] for c in schedule(times))
    w = weighting(schedule, times, torch.ones_like(times))
    expected = w * ((x0 - model(alpha * x0 + sigma * eps, times)) ** 2).mean(1)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_on_the_raw_output_is_the_papers_table(gamma: float) -> None:
    schedule = LinearSchedule()
    t = torch.arange(1, 1001, 37, dtype=torch.float64) / 1000
    alpha, sigma = schedule(t)
    snr = alpha**2 / sigma**2
    clipped = torch.minimum(snr, torch.full_like(snr, gamma))
    table = {"eps": clipped / snr, "x0": clipped, "v": clipped / (snr + 1)}
    assert (snr > gamma).any()
    assert (snr < gamma).any()
    for name, expected in table.items():
        c_out = PRECONDITIONERS[name](alpha, sigma).c_out
        result = MinSNRWeighting(gamma)(schedule, t, c_out**2)
        torch.testing.assert_close(result, expected, rtol=1e-9, atol=0)


def test_min_snr_weighs_the_denoised_alike_in_every_parameterization(schedule: Schedule, times: Tensor) -> None:
    alpha, sigma = schedule(times)
    for precond in PRECONDITIONERS.values():
        c_out2 = precond(alpha, sigma).c_out ** 2
        implied = MinSNRWeighting()(schedule, times, c_out2) / c_out2
        torch.testing.assert_close(implied, (alpha**2 / sigma**2).clamp(max=5), rtol=1e-9, atol=0)


@pytest.mark.parametrize("schedule", ["vp", "sub_vp", "variance_exploding", "flow"], indirect=True)
@pytest.mark.parametrize("name", PRECONDITIONERS)
def test_likelihood_weighting_over_its_times_density_is_g_squared_on_the_scores_error(
    name: str, schedule: Schedule, times: Tensor
) -> None:
    # The error of the score is that of D times alpha / sigma^2; g^2 = d sigma^2 / dt - 2 f sigma^2 by differences.
    t, h = times[1:-1], 1e-6
    alpha, sigma = schedule(t)
    (alpha_above, sigma_above), (alpha_below, sigma_below) = schedule(t + h), schedule(t - h)
    f = (alpha_above.log() - alpha_below.log()) / (2 * h)
    g2 = (sigma_above**2 - sigma_below**2) / (2 * h) - 2 * f * sigma**2
    start, end = schedule.log_snr(torch.tensor([schedule.t_min, 1.0], dtype=torch.float64))
    u = (schedule.log_snr(t) - start) / (end - start)
    drawn = LogSNRTimes()
    torch.testing.assert_close(drawn(schedule, u), t, rtol=1e-9, atol=0)
    density = 1e-6 / (drawn(schedule, u + 5e-7) - drawn(schedule, u - 5e-7))
    c_out2 = PRECONDITIONERS[name](alpha, sigma).c_out ** 2
    weight = LikelihoodWeighting()(schedule, t, c_out2)
    torch.testing.assert_close(weight * density, g2 * (alpha / sigma**2) ** 2 * c_out2, rtol=1e-5, atol=0)


def test_likelihoods_expected_loss_is_the_integral_over_t_and_simples_times_a_constant_on_ve() -> None:
    def expected(times: Times, weighting: Weighting, schedule: Schedule, n: int) -> tuple[float, Tensor]:
        # F = 0 and x0 = 1, eps = 2: the error of v's target, (2 alpha - sigma)^2, varies with t.
        model = NetworkDenoiser(Linear(), schedule, VPreconditioner())
        t = times(schedule, _midpoints(n))
        batch, noise = {"x": torch.ones(n, 1, dtype=torch.float64)}, GivenNoise(torch.full((n, 1), 2.0).double())
        loss = DenoisingObjective(FixedTimes(t), SimpleWeighting())(model, batch, noise)["loss"]
        weight = weighting(schedule, t, VPreconditioner()(*schedule(t)).c_out ** 2)
        return (weight * loss).mean().item(), weight

    class Integrand(Weighting):
        def __call__(self, schedule: Schedule, t: Tensor, c_out2: Tensor) -> Tensor:
            alpha, sigma = schedule(t)
            return (1 - schedule.t_min) * schedule.rates(t)[1] * (alpha / sigma**2) ** 2 * c_out2

    vp = VPSchedule()
    by_u, weight = expected(LogSNRTimes(), LikelihoodWeighting(), vp, 20000)
    by_t, heavy = expected(UniformTimes(), Integrand(), vp, 500_000)
    assert by_u == pytest.approx(by_t, rel=2e-2)
    assert weight.max() / weight.mean() < 10 < 1000 < heavy.max() / heavy.mean()
    ve = VarianceExplodingSchedule()
    u = _midpoints(9)
    torch.testing.assert_close(LogSNRTimes()(ve, u), UniformTimes()(ve, u))
    c_out2 = EpsPreconditioner()(*ve(u)).c_out ** 2
    constant = LikelihoodWeighting()(ve, u, c_out2)
    torch.testing.assert_close(constant, constant[0].expand(9))


def test_what_never_trains_the_start_is_refused_with_zero_terminal_snr() -> None:
    model = NetworkDenoiser(Stored(torch.zeros(1)), CosineSchedule(20, zero_terminal_snr=True), VPreconditioner())
    for objective in (
        DenoisingObjective(UniformTimes(), MinSNRWeighting()),
        DenoisingObjective(LognormalTimes(), SimpleWeighting()),
    ):
        with pytest.raises(ValueError, match="never trains t = 1 "):
            objective.check(model)
    DenoisingObjective(UniformTimes(), SimpleWeighting()).check(model)


def test_likelihood_weighting_is_refused_where_time_is_discrete() -> None:
    model = NetworkDenoiser(Stored(torch.zeros(1)), LinearSchedule(), EpsPreconditioner())
    with pytest.raises(ValueError, match=r"likelihood weighting is for continuous time"):
        DenoisingObjective(LogSNRTimes(), LikelihoodWeighting()).check(model)
    with pytest.raises(ValueError, match="must be used together"):
        DenoisingObjective(UniformTimes(), LikelihoodWeighting())


def test_edms_weighting_is_one_on_the_raw_output() -> None:
    schedule = VarianceExplodingSchedule()
    t = torch.linspace(0.01, 1, 20, dtype=torch.float64)
    alpha, sigma = schedule(t)
    lambda_ = (sigma**2 + 0.49) / (sigma * 0.7) ** 2  # table 1, "loss weighting"
    c_out = PRECONDITIONERS["edm"](alpha, sigma).c_out
    torch.testing.assert_close(lambda_ * c_out**2, SimpleWeighting()(schedule, t, c_out**2))


@pytest.mark.parametrize("timesteps", [1, 2, 7, 1000])
def test_uniform_times_give_every_step_the_same_share(timesteps: int) -> None:
    t = UniformTimes()(CosineSchedule(timesteps), _midpoints(timesteps * 4))
    steps, counts = (t * timesteps).unique(return_counts=True)
    torch.testing.assert_close(steps, torch.arange(1, timesteps + 1, dtype=torch.float64))
    assert (counts == 4).all()


@pytest.mark.parametrize("times", [UniformTimes(), LognormalTimes()])
def test_extreme_uniforms_stay_in_range(times: Times, schedule: Schedule) -> None:
    t = times(schedule, torch.tensor([2.0**-33, 1 - 2.0**-33], dtype=torch.float64))
    assert ((t >= schedule.t_min) & (t <= 1)).all()
    if schedule.timesteps is not None:
        torch.testing.assert_close(t * schedule.timesteps, (t * schedule.timesteps).round(), rtol=0, atol=1e-9)


def test_continuous_uniform_times_fill_the_range() -> None:
    schedule = VarianceExplodingSchedule()
    t = UniformTimes()(schedule, torch.tensor([1e-15, 0.5, 1 - 1e-15], dtype=torch.float64))
    assert t.tolist() == pytest.approx([schedule.t_min, (1 + schedule.t_min) / 2, 1], abs=1e-12)


def test_lognormal_times_have_the_quantiles_of_a_lognormal() -> None:
    schedule = VarianceExplodingSchedule()
    u = _midpoints(1001)
    log_sigma = schedule(LognormalTimes(-1.2, 1.2)(schedule, u))[1].log()
    expected = torch.tensor([NormalDist(-1.2, 1.2).inv_cdf(v) for v in u.tolist()], dtype=torch.float64)
    torch.testing.assert_close(log_sigma, expected, rtol=0, atol=1e-9)
    assert log_sigma.mean().item() == pytest.approx(-1.2, abs=1e-9)
    assert log_sigma.std().item() == pytest.approx(1.2, rel=0.005)


@pytest.mark.parametrize("highest", [0.0, -1.0])
def test_no_level_that_is_not_above_zero_is_the_highest(highest: float) -> None:
    with pytest.raises(ValueError, match=f"highest must be a level above 0, got {highest:g}"):
        LognormalTimes(highest=highest)


def test_lognormal_levels_beyond_the_schedule_become_its_ends() -> None:
    t = LognormalTimes(0.0, 3.0)(VarianceExplodingSchedule(0.5, 2.0), torch.tensor([0.01, 0.99], dtype=torch.float64))
    assert t.tolist() == pytest.approx([VarianceExplodingSchedule.t_min, 1])


def test_lognormal_times_take_the_nearest_step_of_a_table() -> None:
    schedule = LinearSchedule()
    u = _midpoints(101)
    t = LognormalTimes(-1.2, 1.2)(schedule, u)
    exact = schedule.inverse(-2 * torch.tensor([NormalDist(-1.2, 1.2).inv_cdf(v) for v in u.tolist()]).double())
    torch.testing.assert_close(t * 1000, (t * 1000).round(), rtol=0, atol=1e-9)
    assert (t - exact).abs().max() <= 0.5 / 1000 + 1e-9


@pytest.mark.parametrize("distance", DISTANCES)
def test_distances_act_on_the_raw_outputs_scale(distance: str) -> None:
    error = torch.tensor([[0.0, 0.5], [1.0, -1.0], [-3.0, 0.1]], dtype=torch.float64)
    by_hand = {
        "l2": [0.125, 1.0, (9 + 0.01) / 2],
        "l1": [0.25, 1.0, 1.55],
        "huber": [0.0625, 0.5, (2.5 + 0.005) / 2],
    }
    eps = torch.randn(3, 2, dtype=torch.float64)
    model = NetworkDenoiser(Stored(eps + error), LinearSchedule(), EpsPreconditioner())
    objective = DenoisingObjective(FixedTimes(torch.tensor(0.9).double()), SimpleWeighting(), distance)
    loss = objective(model, {"x": torch.zeros(3, 2, dtype=torch.float64)}, GivenNoise(eps))["loss"]
    assert loss.tolist() == pytest.approx(by_hand[distance], rel=1e-9)


def test_the_drawn_times_and_noise_are_the_samples_own() -> None:
    schedule = LinearSchedule()
    x0 = torch.randn(4, 1, 3, 3, dtype=torch.float64)
    noise = Noise(5, torch.tensor([8, 1, 900, 4]), stream=2)
    model = NetworkDenoiser(Linear(0.3, 0.1), schedule, VPreconditioner())
    objective = DenoisingObjective(UniformTimes(), MinSNRWeighting())
    together = objective(model, {"x": x0}, noise)
    t = UniformTimes()(schedule, noise.uniform(draw=TIME))
    given = GivenNoise(noise.normal((1, 3, 3), draw=NOISE).double())
    explicit = DenoisingObjective(FixedTimes(t), MinSNRWeighting())(model, {"x": x0}, given)
    assert torch.equal(together["loss"], explicit["loss"])
    for b in range(4):
        alone = objective(model, {"x": x0[b : b + 1]}, Noise(5, noise.index[b : b + 1], stream=2))
        assert torch.equal(alone["log_snr"][0], together["log_snr"][b])
        torch.testing.assert_close(alone["loss"][0], together["loss"][b], rtol=1e-12, atol=0)


def test_the_rest_of_the_batch_conditions_the_model() -> None:
    network = Stored(torch.zeros(2, 2))
    model = NetworkDenoiser(network, LinearSchedule(), EpsPreconditioner())
    label = torch.tensor([3, 4])
    batch = {"x": torch.zeros(2, 2), "label": label, "serial": torch.arange(2)}
    result = DenoisingObjective(UniformTimes(), SimpleWeighting())(model, batch, Noise(0, torch.arange(2)))
    assert network.cond.keys() == {"label"}
    assert network.cond["label"] is label
    assert result["loss"].shape == result["log_snr"].shape == (2,)
    assert result["loss"].dtype == torch.float32


def _gauss_hermite(n: int) -> tuple[Tensor, Tensor]:
    nodes, weights = np.polynomial.hermite_e.hermegauss(n)
    return torch.from_numpy(nodes), torch.from_numpy(weights / math.sqrt(2 * math.pi))


@pytest.mark.parametrize("name", PRECONDITIONERS)
def test_the_loss_on_gaussian_data_is_least_at_the_exact_denoiser(name: str, schedule: Schedule, times: Tensor) -> None:
    # x0 ~ N(m, s^2) and eps ~ N(0, 1) as quadrature nodes: the loss is the population's, and its gradient exact.
    m, s = 0.4, 0.6
    nodes, weights = _gauss_hermite(8)
    grid, weight = torch.cartesian_prod(nodes, nodes), torch.cartesian_prod(weights, weights).prod(1)
    x0, eps = m + s * grid[:, :1], grid[:, 1:]
    for t in times[[2, 4, 6]]:
        alpha, sigma = schedule(t)
        c_skip, c_out, c_in = PRECONDITIONERS[name](alpha, sigma)
        gain = alpha * s**2 / (alpha**2 * s**2 + sigma**2)  # D = m + gain (x_t - alpha m)
        network = Linear(((gain - c_skip) / (c_out * c_in)).item(), ((m - gain * alpha * m) / c_out).item())
        model = NetworkDenoiser(network, schedule, PRECONDITIONERS[name])
        objective = DenoisingObjective(FixedTimes(t), SimpleWeighting())
        loss = (weight * objective(model, {"x": x0}, GivenNoise(eps))["loss"]).sum()
        scale = (weight * objective(model, {"x": x0 + 1}, GivenNoise(eps))["loss"]).sum()
        for gradient in torch.autograd.grad(loss, list(network.parameters())):
            assert abs(gradient.item()) < 1e-9 * max(1, scale.item())
        # The least value is the posterior variance of x0, s^2 sigma^2 / (alpha^2 s^2 + sigma^2), over c_out^2.
        variance = s**2 * sigma**2 / (alpha**2 * s**2 + sigma**2)
        torch.testing.assert_close(loss.detach(), variance / c_out**2, rtol=1e-7, atol=0)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: DenoisingObjective(UniformTimes(), SimpleWeighting(), "l3"), "l2, l1, huber, got 'l3'"),
        (lambda: MinSNRWeighting(0.0), "gamma must be positive"),
        (lambda: LognormalTimes(p_std=0.0), "p_std must be positive"),
    ],
)
def test_bad_settings_are_refused(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
