"""Distribution matching distillation: two scores of noised samples, known for Gaussians. Float64."""

import math
from typing import Any

import pytest
import torch
from support.solutions import marginal
from torch import Tensor, nn

from diffusion.denoisers import (
    Condition,
    EDMPreconditioner,
    EpsPreconditioner,
    GaussianMixtureDenoiser,
    NetworkDenoiser,
    VPreconditioner,
    X0Preconditioner,
)
from diffusion.forward import noised
from diffusion.noise import GENERATOR, Noise
from diffusion.objectives import DenoisingObjective, LognormalTimes, MatchingObjective, SimpleWeighting, optimizer_of
from diffusion.optimizers import AdamW
from diffusion.samplers import ConsistencySampler, Grid, KarrasGrid, LevelsGrid, begun
from diffusion.schedules import CosineSchedule, VarianceExplodingSchedule, VPSchedule, time_of

TIMES = LognormalTimes(-0.5, 0.8)
SCHEDULE = VarianceExplodingSchedule(0.002, 80.0)


class Spread(nn.Module):
    """`F = -v / (s sqrt(s^2 + v^2)) ...`: with EDM's coefficients of sigma_data s, what makes D the posterior mean of
    N(0, std^2) at every level v; `std` is learned. At the level `call` alone it is the generator `x0 = gain x_t`."""

    ends = ("unused",)

    def __init__(self, std: float, call: float | None = None) -> None:
        super().__init__()
        self.std = nn.Parameter(torch.tensor(std, dtype=torch.float64))
        self.call, self.unused, self.drop = call, nn.Identity(), nn.Dropout(0.5)

    def forward(self, x: Tensor, c_noise: Tensor, cond: Condition) -> Tensor:
        v = (c_noise / 250).exp()[:, None]
        shrink = self.std.abs() / v if self.call is not None else self.std**2 / (self.std**2 + v**2)
        # D = c_skip x_t + c_out F with x = c_in x_t, of sigma_data 1.
        c_skip, c_out, c_in = 1 / (1 + v**2), v * (1 + v**2).rsqrt(), (1 + v**2).rsqrt()
        return self.drop((shrink - c_skip) / (c_out * c_in)) * x


def denoiser(std: float, call: float | None = None) -> NetworkDenoiser:
    return NetworkDenoiser(Spread(std, call), SCHEDULE, EDMPreconditioner(1.0))


def batch(count: int, size: int = 2, serial: int = 10**6) -> dict[str, Tensor]:
    return {"x": torch.zeros(count, size, dtype=torch.float64), "serial": torch.full((count,), serial)}


def objective_of(model: NetworkDenoiser, grid: Grid | None = None, **settings: Any) -> MatchingObjective:
    objective = MatchingObjective(TIMES, grid or LevelsGrid(), **settings)
    objective.begin(model)
    return objective


def test_the_difference_of_posterior_means_is_that_of_the_scores(gaussian: GaussianMixtureDenoiser) -> None:
    """`grad log p(x_t) - grad log q(x_t) = alpha (D_p - D_q) / sigma^2`, which the loss follows."""
    schedule = gaussian.schedule
    covariance = marginal(gaussian, torch.zeros((), dtype=torch.float64))[1]
    other = GaussianMixtureDenoiser(schedule, gaussian.means + 0.3, 1.7 * covariance[None])
    x = torch.tensor([[0.4, -1.1], [2.0, 0.3]], dtype=torch.float64)
    for t in (torch.tensor(t, dtype=torch.float64) for t in (0.2, 0.7)):
        alpha, sigma = schedule(t)
        scores = []
        for model in (gaussian, other):
            mean, cov = marginal(model, t)
            scores.append(-torch.linalg.solve(cov, (x - mean).T).T)
        means = gaussian(x, t) - other(x, t)
        torch.testing.assert_close(alpha * means / sigma**2, scores[0] - scores[1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("begins", [0.2, 2.5])
def test_a_linear_generator_and_its_critic_arrive_at_the_datas_distribution(begins: float) -> None:
    """From noise at sigma 80 the generator `x = a x_t / 80` draws N(0, a^2). The teacher is that of N(0, 0.8^2)."""
    teacher = denoiser(0.8)
    objective = objective_of(teacher, warmup_images=0)
    model = NetworkDenoiser(Spread(begins, call=80.0), SCHEDULE, EDMPreconditioner(1.0)).eval()
    optimizer = torch.optim.Adam(
        [
            {"params": model.parameters(), "lr": 0.02},
            {"params": objective.critic.parameters(), "lr": 0.1},  # type: ignore[union-attr]
        ],
        betas=(0.0, 0.99),
    )
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, 300)
    for step in range(300):
        optimizer.zero_grad()
        noise = Noise(0, torch.arange(256) + 256 * step)
        objective(model, batch(256, 16), noise)["loss"].mean().backward()
        optimizer.step()
        decay.step()
    stds = [abs(network.std.item()) for network in (model.network, objective.critic, objective.teacher)]  # type: ignore
    assert stds == pytest.approx([0.8, 0.8, 0.8], rel=0.03)
    assert stds[2] == 0.8  # the teacher stays


def losses(model: NetworkDenoiser, objective: MatchingObjective, serial: int = 10**6) -> dict[str, Tensor]:
    found: dict[str, Tensor] = objective(model, batch(64, serial=serial), Noise(3, torch.arange(64)))
    return found


def test_the_generators_gradient_is_the_normalised_gap_and_the_critics_that_of_denoising() -> None:
    objective = objective_of(denoiser(0.8))
    with torch.no_grad():
        objective.critic.std.fill_(1.1)  # type: ignore[union-attr]
    model = denoiser(0.5, call=80.0).eval()
    x = model(*objective.states(model, noise := Noise(3, torch.arange(64)), (2,), {}), {})
    losses(model, objective)["loss"].mean().backward()
    t, eps = TIMES(SCHEDULE, noise.uniform(draw=0)), noise.normal((2,), draw=1).double()
    x_t = noised(SCHEDULE, x.detach(), t, eps)
    v2 = (-SCHEDULE.log_snr(t)).exp()[:, None]
    known, believed = (std**2 / (std**2 + v2) * x_t for std in (0.8, 1.1))
    gap = (believed - known) / (x.detach() - known).abs().mean(1, keepdim=True)
    (expected,) = torch.autograd.grad((x * gap).mean(), [model.network.std])
    torch.testing.assert_close(model.network.std.grad, expected)
    critic = denoiser(1.1).eval()
    given = {"x": x.detach(), "serial": torch.zeros(64, dtype=torch.int64)}
    loss = DenoisingObjective(TIMES, SimpleWeighting())(critic, given, noise)["loss"]
    loss.mean().backward()
    torch.testing.assert_close(objective.critic.std.grad, critic.network.std.grad)  # type: ignore[union-attr]
    torch.testing.assert_close(losses(model, objective)["critic"], loss.detach())
    assert objective.teacher.std.grad is None  # type: ignore[union-attr]


def test_in_the_warm_up_the_critic_learns_and_the_generator_stays() -> None:
    model = denoiser(0.5, call=80.0).eval()
    objective = objective_of(denoiser(0.8), warmup_images=100)
    with torch.no_grad():
        objective.critic.std.fill_(1.1)  # type: ignore[union-attr]
    losses(model, objective, serial=99)["loss"].mean().backward()
    assert model.network.std.grad == 0
    assert objective.critic.std.grad != 0  # type: ignore[union-attr]
    losses(model, objective, serial=100)["loss"].mean().backward()
    assert model.network.std.grad != 0


@pytest.mark.parametrize("grid", [LevelsGrid(), LevelsGrid([5.0, 0.7]), KarrasGrid()], ids=["", "levels", "karras"])
def test_it_trains_on_the_states_of_the_sampler_in_equal_shares(grid: Grid) -> None:
    model = denoiser(0.5).eval()
    objective = objective_of(model, grid, steps=3)
    noise = Noise(3, torch.arange(3000), stream=1)
    own = Noise(3, noise.index, GENERATOR + 1)
    times = grid(SCHEDULE, 3)
    x_t, t = objective.states(model, noise, (2,), {})
    states = list(ConsistencySampler()(model, begun(model, own, (2,)), times, own))
    for time, state in zip(times[:-1], states, strict=False):
        here = t == time
        torch.testing.assert_close(x_t[here].double(), state.x_t[here].double())
        assert 900 < here.sum() < 1100


def test_teacher_and_critic_are_the_model_as_it_begins_and_drop_nothing() -> None:
    model = denoiser(0.8)
    objective = objective_of(model).train()
    with torch.no_grad():
        model.network.std.fill_(0.3)
    assert (objective.teacher.std, objective.critic.std) == (0.8, 0.8)  # type: ignore[union-attr]
    assert not (objective.teacher.training or objective.critic.training)  # type: ignore[union-attr]
    objective.begin(model)
    assert (objective.teacher.std, objective.critic.std) == (0.3, 0.3)  # type: ignore[union-attr]


def test_the_generators_learning_rate_is_a_share_of_the_critics() -> None:
    model = denoiser(0.8)
    objective = objective_of(model, pace=0.7)
    groups = optimizer_of(AdamW(lr=0.01), model, objective, fused=False).param_groups
    assert [group["lr"] for group in groups] == [pytest.approx(0.007), 0.01]
    assert [group["params"] for group in groups] == [[model.network.std], [objective.critic.std]]  # type: ignore


@pytest.mark.parametrize("start_level", [0.5, 3.0])
def test_the_first_call_is_at_the_level_where_sampling_begins(start_level: float) -> None:
    class WithPrior(NetworkDenoiser):
        has_prior = True

        def draw_prior(self, noise: Noise, shape: tuple[int, ...], cond: Condition | None = None) -> Tensor:
            return torch.full((len(noise.index), *shape), 7.0)

    model = WithPrior(Spread(0.8), SCHEDULE, EDMPreconditioner(1.0)).eval()
    x_t, t = objective_of(model, start_level=start_level).states(model, Noise(0, torch.arange(500)), (2,), {})
    assert t.unique() == time_of(SCHEDULE, start_level)
    assert x_t.mean().item() == pytest.approx(7, abs=0.4)
    assert x_t.std().item() == pytest.approx(start_level, rel=0.1)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: NetworkDenoiser(Spread(1.0), VPSchedule(), EpsPreconditioner()), "multiplies the network's error by"),
        (
            lambda: NetworkDenoiser(Spread(1.0), VPSchedule(), VPreconditioner(), variance="learned"),
            "does not train the variance",
        ),
        (
            lambda: NetworkDenoiser(Spread(1.0), CosineSchedule(zero_terminal_snr=True), VPreconditioner()),
            "zero terminal SNR",
        ),
    ],
)
def test_a_model_that_cannot_become_one_is_refused(model: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MatchingObjective(TIMES, LevelsGrid()).check(model())


def test_a_model_of_the_data_itself_can_become_one() -> None:
    MatchingObjective(TIMES, LevelsGrid()).check(NetworkDenoiser(Spread(1.0), VPSchedule(), X0Preconditioner()))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"grid": "karras"}, "grid must be a time grid"),
        ({"steps": 0}, "steps must be from 1 to 100"),
        ({"steps": 101}, "steps must be from 1 to 100"),
        ({"pace": 0.0}, "pace must be positive"),
        ({"pace": math.nan}, "pace must be positive"),
        ({"warmup_images": -1}, "warmup_images must be at least 0"),
        ({"start_level": 0.0}, "start_level must be a level above 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MatchingObjective(TIMES, **{"grid": LevelsGrid()} | settings)
