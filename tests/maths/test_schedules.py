"""Schedules: coefficients against closed forms written out here a second time, in numpy's float64."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffusion.schedules import (
    ContinuousCosineSchedule,
    CosineSchedule,
    DiscreteSchedule,
    FlowSchedule,
    GeometricSchedule,
    LinearSchedule,
    QuadraticSchedule,
    Schedule,
    SigmoidSchedule,
    SubVPSchedule,
    VarianceExplodingSchedule,
    VPSchedule,
    expand,
)

Betas = NDArray[np.float64]


def _linear(n: int) -> Betas:
    return np.array([1000 / n * (1e-4 + (0.02 - 1e-4) * i / (n - 1)) for i in range(n)])


def _quadratic(n: int) -> Betas:
    return np.array([1000 / n * (0.01 + (math.sqrt(0.02) - 0.01) * i / (n - 1)) ** 2 for i in range(n)])


def _sigmoid(n: int) -> Betas:
    return np.array([1000 / n * (1e-4 + (0.02 - 1e-4) / (1 + math.exp(6 - 12 * i / (n - 1)))) for i in range(n)])


def _cosine(n: int) -> Betas:
    def alpha_bar(u: float) -> float:
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2 / math.cos(0.008 / 1.008 * math.pi / 2) ** 2

    return np.array([min(1 - alpha_bar((i + 1) / n) / alpha_bar(i / n), 0.999) for i in range(n)])


TABLES: list[tuple[type[DiscreteSchedule], Callable[[int], Betas]]] = [
    (LinearSchedule, _linear),
    (QuadraticSchedule, _quadratic),
    (SigmoidSchedule, _sigmoid),
    (CosineSchedule, _cosine),
]


@pytest.mark.parametrize("timesteps", [21, 50, 1000])
@pytest.mark.parametrize(("kind", "betas"), TABLES)
def test_discrete_tables_equal_the_closed_forms(
    kind: Callable[[int], DiscreteSchedule], betas: Callable[[int], Betas], timesteps: int
) -> None:
    schedule = kind(timesteps)
    expected = betas(timesteps)
    np.testing.assert_allclose(schedule.betas.numpy(), expected, rtol=1e-11)
    alpha, sigma = schedule(torch.arange(1, timesteps + 1, dtype=torch.float64) / timesteps)
    alpha_bar = np.cumprod(1 - expected)
    np.testing.assert_allclose(alpha.numpy() ** 2, alpha_bar, rtol=1e-8)
    np.testing.assert_allclose(sigma.numpy() ** 2, 1 - alpha_bar, rtol=1e-8)
    assert schedule.timesteps == timesteps
    assert schedule.t_min == 1 / timesteps


def test_row_zero_is_one_noising_step_and_the_last_row_is_t_equal_one() -> None:
    schedule = LinearSchedule()
    one = torch.tensor([0.001, 0.002, 1.0], dtype=torch.float64)
    first, second, last = (schedule(one)[1] ** 2).tolist()
    assert first == pytest.approx(1e-4, rel=1e-12)
    assert second == pytest.approx(1 - (1 - 1e-4) * (1 - 1e-4 - 0.0199 / 999), rel=1e-12)
    assert 1 - last == pytest.approx(4.0358e-5, rel=1e-4)  # DDPM's alpha_bar_T, also published as sqrt = 0.00635


def test_the_network_is_told_i_minus_one() -> None:
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    torch.testing.assert_close(LinearSchedule().c_noise(t), torch.arange(1000, dtype=torch.float64), atol=1e-9, rtol=0)
    assert ContinuousCosineSchedule().c_noise(torch.tensor(0.25)).item() == 250


@pytest.mark.parametrize("kind", [LinearSchedule, QuadraticSchedule, SigmoidSchedule])
def test_scaled_betas_end_at_nearly_the_same_noise_for_any_timesteps(kind: Callable[[int], DiscreteSchedule]) -> None:
    total = [kind(n).betas.sum().item() for n in (100, 1000, 4000)]
    assert total == pytest.approx([total[1]] * 3, rel=0.01)  # 1000 times the mean of beta, whatever T


@pytest.mark.parametrize("timesteps", [1, 2, 5, 19, 20])
@pytest.mark.parametrize("kind", [LinearSchedule, QuadraticSchedule, SigmoidSchedule])
def test_too_few_timesteps_for_scaled_betas_are_refused(
    kind: Callable[[int], DiscreteSchedule], timesteps: int
) -> None:
    with pytest.raises(ValueError, match=rf"timesteps={timesteps} is too few.*below 1.*use more timesteps") as error:
        kind(timesteps)
    assert "\n" not in str(error.value)


def test_a_largest_beta_just_below_one_is_taken() -> None:
    assert LinearSchedule(1000, beta_end=0.9995).betas[-1] == 0.9995
    assert LinearSchedule(500, beta_end=0.49975).betas[-1].item() == pytest.approx(0.9995, rel=1e-12)


@pytest.mark.parametrize("kind", [LinearSchedule, QuadraticSchedule, SigmoidSchedule, CosineSchedule])
@pytest.mark.parametrize("timesteps", [0, -5])
def test_no_timesteps_are_refused(kind: Callable[[int], DiscreteSchedule], timesteps: int) -> None:
    with pytest.raises(ValueError, match=f"timesteps must be from 1 to a million, got {timesteps}"):
        kind(timesteps)


@pytest.mark.parametrize("beta", [0.0, 1.0, -0.1, 1.5, math.nan])
def test_betas_outside_the_open_interval_are_refused(beta: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        DiscreteSchedule(torch.tensor([0.1, beta]))


@pytest.mark.parametrize("timesteps", [1, 2, 20, 1000])
def test_cosine_caps_its_last_beta(timesteps: int) -> None:
    betas = CosineSchedule(timesteps).betas
    assert betas[-1] == 0.999
    assert (betas[:-1] < 0.999).all()


def test_time_zero_is_data(schedule: Schedule) -> None:
    t = torch.tensor([0.0, 1.0], dtype=torch.float64)
    alpha, sigma = schedule(t)
    assert (alpha[0], sigma[0]) == (1, 0)
    assert schedule.log_snr(t)[0] == math.inf
    assert alpha.isfinite().all()
    assert (alpha[1] > 0) & (sigma[1] > 0)


def test_log_snr_is_that_of_alpha_and_sigma_and_falls(schedule: Schedule) -> None:
    t = torch.linspace(schedule.t_min, 1, 1234, dtype=torch.float64)
    alpha, sigma = schedule(t)
    torch.testing.assert_close(schedule.log_snr(t), 2 * (alpha.log() - sigma.log()), rtol=1e-9, atol=1e-9)
    assert (schedule.log_snr(t).diff() < 0).all()


def test_inverse_undoes_log_snr(schedule: Schedule) -> None:
    t = torch.linspace(schedule.t_min, 1, 777, dtype=torch.float64)
    torch.testing.assert_close(schedule.inverse(schedule.log_snr(t)), t, rtol=0, atol=1e-9)


def test_inverse_clamps_to_the_ends(schedule: Schedule) -> None:
    t = schedule.inverse(torch.tensor([math.inf, 1e4, -1e4, -math.inf], dtype=torch.float64))
    assert t.tolist() == pytest.approx([schedule.t_min, schedule.t_min, 1, 1], abs=1e-12)


def test_a_schedule_of_one_step_works() -> None:
    schedule = CosineSchedule(1)
    one = torch.ones((), dtype=torch.float64)
    assert (schedule(one)[0] ** 2).item() == pytest.approx(0.001, rel=1e-9)
    assert schedule.inverse(schedule.log_snr(one)) == 1


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_results_have_the_shape_and_dtype_of_t(schedule: Schedule, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    t = torch.full(shape, 0.5, dtype=dtype)
    for result in (*schedule(t), schedule.log_snr(t), schedule.inverse(schedule.log_snr(t)), *schedule.rates(t)):
        assert result.shape == shape
        assert result.dtype == dtype


@pytest.mark.parametrize("timesteps", [50, 1000, 4000])
def test_float32_times_hit_the_rows_of_the_table(timesteps: int) -> None:
    schedule = LinearSchedule(timesteps)
    i = torch.arange(1, timesteps + 1)
    single, double = schedule((i / timesteps).float()), schedule(i.double() / timesteps)
    for approximate, exact in zip(single, double, strict=True):
        torch.testing.assert_close(approximate.double(), exact, rtol=2e-4, atol=0)
    assert (schedule.c_noise((i / timesteps).float()).round() == i - 1).all()


@pytest.mark.parametrize("timesteps", [50, 1000])
@pytest.mark.parametrize(("kind", "betas"), TABLES)
def test_zero_terminal_snr_is_the_papers_algorithm(
    kind: Callable[..., DiscreteSchedule], betas: Callable[[int], Betas], timesteps: int
) -> None:
    schedule = kind(timesteps, zero_terminal_snr=True)
    root = np.sqrt(np.cumprod(1 - betas(timesteps)))
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    t = torch.arange(1, timesteps + 1, dtype=torch.float64) / timesteps
    alpha, sigma = schedule(t)
    np.testing.assert_allclose(alpha.numpy(), root, rtol=1e-8, atol=0)
    assert (alpha[-1], sigma[-1], schedule.log_snr(t)[-1]) == (0, 1, -math.inf)
    np.testing.assert_allclose(schedule.betas[0], betas(timesteps)[0], rtol=1e-9)
    np.testing.assert_allclose((1 - schedule.betas).cumprod(0), root**2, rtol=1e-8, atol=1e-30)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_terminal_snr_is_reached_along_a_line_and_its_rates_are_infinite_there(dtype: torch.dtype) -> None:
    schedule = CosineSchedule(100, zero_terminal_snr=True)
    t = torch.tensor([0.99, 0.9925, 0.995, 0.9975, 1.0], dtype=dtype)
    alpha, sigma = schedule(t)
    ratio = (alpha / sigma).double()
    torch.testing.assert_close(ratio / ratio[0], torch.linspace(1, 0, 5).double(), rtol=0, atol=1e-4)
    torch.testing.assert_close(schedule.inverse(schedule.log_snr(t)), t, rtol=0, atol=1e-6)
    assert schedule.inverse(torch.tensor(-math.inf)) == 1
    f, g2 = schedule.rates(t)
    assert f[:-1].isfinite().all() and g2[:-1].isfinite().all()
    assert (f[-1], g2[-1]) == (-math.inf, math.inf)


def test_zero_terminal_snr_needs_two_steps() -> None:
    with pytest.raises(ValueError, match="zero_terminal_snr needs timesteps of at least 2"):
        CosineSchedule(1, zero_terminal_snr=True)
    end = torch.ones((), dtype=torch.float64)
    assert CosineSchedule(2, zero_terminal_snr=True).log_snr(end) == -math.inf


def test_geometric_levels_are_the_papers() -> None:
    schedule = GeometricSchedule(10, 0.02, 2.0)
    alpha, sigma = schedule(torch.arange(1, 11, dtype=torch.float64) / 10)
    assert (alpha == 1).all()
    assert sigma.tolist() == pytest.approx([0.02 * 100 ** (i / 9) for i in range(10)], rel=1e-12)
    with pytest.raises(ValueError, match="timesteps must be from 2 to a million, got 1"):
        GeometricSchedule(1)
    with pytest.raises(ValueError, match="timesteps must be from 2 to a million, got 1000001"):
        GeometricSchedule(1_000_001)


def test_between_rows_log_snr_is_linear_in_t() -> None:
    schedule = CosineSchedule(10)
    at = schedule.log_snr(torch.tensor([0.3, 0.325, 0.4], dtype=torch.float64))
    assert at[1].item() == pytest.approx((0.75 * at[0] + 0.25 * at[2]).item(), rel=1e-12)


def _inside(schedule: Schedule) -> Tensor:
    """Times away from the ends and from the corners of a table that is interpolated."""
    t = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    return t if schedule.timesteps is None else t + 0.5 / schedule.timesteps


def test_rates_are_the_derivatives_of_the_marginals(schedule: Schedule) -> None:
    t, h = _inside(schedule), 1e-6
    alpha, sigma = schedule(t)
    f, g2 = schedule.rates(t)
    (alpha_above, sigma_above), (alpha_below, sigma_below) = schedule(t + h), schedule(t - h)
    torch.testing.assert_close(f, (alpha_above - alpha_below) / (2 * h) / alpha, rtol=1e-5, atol=1e-8)
    sigma2_dot = (sigma_above**2 - sigma_below**2) / (2 * h)
    torch.testing.assert_close(g2, sigma2_dot - 2 * f * sigma**2, rtol=1e-5, atol=1e-8)
    assert (g2 > 0).all()


def test_a_fine_table_has_the_rate_beta_of_its_sde() -> None:
    # dx = -beta/2 x dt + sqrt(beta) dw with beta(t) = 0.1 + 19.9 t (Song et al. 2021, eq. 32) is DDPM's limit.
    t = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    f, g2 = LinearSchedule(20000).rates(t)
    torch.testing.assert_close(f, -(0.1 + 19.9 * t) / 2, rtol=2e-3, atol=0)
    torch.testing.assert_close(g2, 0.1 + 19.9 * t, rtol=2e-3, atol=0)


@pytest.mark.parametrize("log_snr_min", [-10.0, -15.0, -20.0])
def test_continuous_cosine_ends_where_it_is_told_and_keeps_some_signal(log_snr_min: float) -> None:
    schedule = ContinuousCosineSchedule(log_snr_min=log_snr_min)
    one = torch.ones((), dtype=torch.float64)
    assert schedule.log_snr(one).item() == pytest.approx(log_snr_min, rel=1e-9)
    assert schedule(one)[0].item() == pytest.approx(math.exp(log_snr_min / 2), rel=1e-3)
    assert schedule(one.float())[0] > 0


def test_continuous_cosine_is_the_limit_of_the_discrete_one() -> None:
    t = torch.linspace(0.05, 0.9, 18, dtype=torch.float64)
    # The discrete one divides by alpha_bar(0) = cos^2 of the offset's angle, so that alpha is 1 at the start.
    angle = math.pi / 2 * 0.008 / 1.008
    alpha = CosineSchedule(4000)(t)[0] * math.cos(angle)
    torch.testing.assert_close(alpha, ContinuousCosineSchedule(log_snr_min=-40)(t)[0], rtol=2e-3, atol=0)


def test_continuous_cosine_preserves_variance() -> None:
    alpha, sigma = ContinuousCosineSchedule()(torch.linspace(1e-5, 1, 50, dtype=torch.float64))
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones(50, dtype=torch.float64), rtol=0, atol=1e-14)


@pytest.mark.parametrize(("offset", "log_snr_min"), [(0.0, -15.0), (-0.1, -15.0), (0.008, 20.0)])
def test_continuous_cosine_refuses_an_empty_range(offset: float, log_snr_min: float) -> None:
    with pytest.raises(ValueError, match="offset"):
        ContinuousCosineSchedule(offset, log_snr_min)


def test_variance_exploding_is_geometric_between_its_bounds() -> None:
    schedule = VarianceExplodingSchedule(0.01, 50.0)
    t = torch.tensor([1e-12, 0.25, 0.5, 1.0], dtype=torch.float64)
    alpha, sigma = schedule(t)
    assert (alpha == 1).all()
    assert sigma.tolist() == pytest.approx([0.01, 0.01 * 5000**0.25, math.sqrt(0.5), 50.0], rel=1e-9)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-1.0, 1.0), (2.0, 1.0), (1.0, 1.0)])
def test_variance_exploding_refuses_an_empty_range(low: float, high: float) -> None:
    with pytest.raises(ValueError, match="0 < sigma_min < sigma_max"):
        VarianceExplodingSchedule(low, high)


def _closed_forms(t: Tensor) -> dict[str, tuple[Schedule, Tensor, Tensor, Tensor, Tensor]]:
    """(schedule, alpha, sigma, f, g^2) as the papers give them (Song et al. 2021, eq. 9 to 12, 29 and 32)."""
    beta = 0.1 + 19.9 * t
    integral = 0.1 * t + 19.9 * t**2 / 2
    decay, c = (-integral).exp(), 0.999
    step = math.log(50 / 0.01)
    sigma = 0.01 * (step * t).exp()
    return {
        "vp": (VPSchedule(), decay.sqrt(), (1 - decay).sqrt(), -beta / 2, beta),
        "sub_vp": (SubVPSchedule(), decay.sqrt(), 1 - decay, -beta / 2, beta * (1 - decay**2)),
        "ve": (VarianceExplodingSchedule(0.01, 50.0), torch.ones_like(t), sigma, 0 * t, 2 * step * sigma**2),
        # From dx/dt = eps - x0 in the time c t: f = -c / (1 - c t), g^2 = 2 c^2 t / (1 - c t).
        "flow": (FlowSchedule(), 1 - c * t, c * t, -c / (1 - c * t), 2 * c**2 * t / (1 - c * t)),
    }


@pytest.mark.parametrize("name", ["vp", "sub_vp", "ve", "flow"])
def test_the_sdes_have_the_papers_coefficients_and_rates(name: str) -> None:
    t = torch.linspace(0.01, 1, 100, dtype=torch.float64)
    schedule, *expected = _closed_forms(t)[name]
    for actual, closed in zip((*schedule(t), *schedule.rates(t)), expected, strict=True):
        torch.testing.assert_close(actual, closed, rtol=1e-9, atol=1e-12)


def test_vp_is_the_limit_of_the_linear_schedule() -> None:
    t = torch.linspace(0.1, 1, 10, dtype=torch.float64)
    torch.testing.assert_close(LinearSchedule(20000).log_snr(t), VPSchedule().log_snr(t), rtol=0, atol=0.02)


@pytest.mark.parametrize("kind", [VPSchedule, SubVPSchedule, FlowSchedule])
def test_inverses_keep_relative_precision_at_the_smallest_times(kind: Callable[[], Schedule]) -> None:
    schedule = kind()
    t = schedule.t_min * torch.linspace(1, 30, 30, dtype=torch.float64)
    torch.testing.assert_close(schedule.inverse(schedule.log_snr(t)), t, rtol=1e-10, atol=0)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-1.0, 1.0), (2.0, 1.0)])
@pytest.mark.parametrize("kind", [VPSchedule, SubVPSchedule])
def test_rates_of_noise_that_are_not_positive_or_fall_are_refused(
    kind: Callable[[float, float], Schedule], low: float, high: float
) -> None:
    with pytest.raises(ValueError, match="0 < beta_min <= beta_max"):
        kind(low, high)


@pytest.mark.parametrize("end", [0.0, 1.0, 1.5])
def test_flow_refuses_an_end_without_data_or_without_noise(end: float) -> None:
    with pytest.raises(ValueError, match="end must lie strictly between 0 and 1"):
        FlowSchedule(end)


def test_expand_lines_a_coefficient_up_with_the_batch() -> None:
    x = torch.ones(2, 3, 4, 4)
    assert expand(torch.tensor([1.0, 2.0]), x).shape == (2, 1, 1, 1)
    assert expand(torch.tensor(3.0), x).shape == ()


@pytest.mark.parametrize("max_beta", [0.0, 1.0])
def test_the_largest_beta_of_the_cosine_schedule_lies_strictly_between_zero_and_one(max_beta: float) -> None:
    with pytest.raises(ValueError, match="max_beta must lie strictly between 0 and 1"):
        CosineSchedule(max_beta=max_beta)
