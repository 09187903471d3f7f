"""Identities between whole parts: posteriors, trajectories, grids, rates and schedules. Float64."""

import numpy as np
import pytest
import torch
from conftest import SCHEDULES
from support.solutions import DETERMINISTIC
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from diffusion.denoisers import (
    Condition,
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
from diffusion.noise import Noise
from diffusion.samplers import (
    ChurnSampler,
    DDIMSampler,
    DDPMSampler,
    DPMSolverPP2MSampler,
    EulerMaruyamaSampler,
    HeunSampler,
    LogSNRGrid,
    PredictorCorrectorSampler,
    Sampler,
    TrailingGrid,
    UniformGrid,
    UniPCSampler,
    prior,
)
from diffusion.schedules import CosineSchedule, DiscreteSchedule, LinearSchedule, Schedule

PRECONDITIONERS: dict[str, Preconditioner] = {
    "eps": EpsPreconditioner(),
    "x0": X0Preconditioner(),
    "v": VPreconditioner(),
    "score": ScorePreconditioner(),
    "flow": FlowPreconditioner(),
    "edm": EDMPreconditioner(0.7),
}


def test_the_posterior_of_a_mixture_is_bayes_rule_in_any_dimension(schedule: Schedule, times: Tensor) -> None:
    # log p(x0 | x_t) + log p(x_t) = log p(x0) + log N(x_t; alpha x0, sigma^2 I), at points in five dimensions.
    generator = torch.Generator().manual_seed(0)
    means, factors = (torch.randn(*size, generator=generator, dtype=torch.float64) for size in ((3, 5), (3, 5, 5)))
    covariances = factors @ factors.mT / 5 + 0.1 * torch.eye(5, dtype=torch.float64)
    denoiser = GaussianMixtureDenoiser(schedule, means, covariances, torch.tensor([0.5, 0.2, 0.3]).double())
    x0, eps = torch.randn(2, 4, 5, generator=generator, dtype=torch.float64)
    for t in times[[2, 4, 6]]:
        alpha, sigma = schedule(t)
        x_t = alpha * x0 + sigma * eps
        near = x0 + 0.1 * sigma / alpha
        weights, posterior_means, posterior_covariances = denoiser.posterior(x_t, t)
        components = MultivariateNormal(posterior_means, posterior_covariances).log_prob(near[:, None])
        known = (weights.log() + components).logsumexp(1) + denoiser.log_prob(x_t, t)
        before = MultivariateNormal(means, covariances).log_prob(near[:, None]) + denoiser.log_weights
        noising = torch.distributions.Normal(alpha * near, sigma).log_prob(x_t).sum(1)
        torch.testing.assert_close(known, before.logsumexp(1) + noising, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close((weights[..., None] * posterior_means).sum(1), denoiser(x_t, t))


class Exact(NetworkDenoiser):
    """A network of one kind that knows a mixture, and is given the time to the last digit."""

    def __init__(self, mixture: GaussianMixtureDenoiser, name: str) -> None:
        super().__init__(nn.Linear(1, 1).double(), mixture.schedule, PRECONDITIONERS[name])
        self.mixture, self.name = mixture, name

    def predict(self, x_t: Tensor, t: Tensor, cond: Condition) -> Prediction:
        self.network.forward = lambda scaled, *_: self.raw(scaled, t)  # type: ignore[method-assign]
        return super().predict(x_t, t, cond)

    def raw(self, scaled: Tensor, t: Tensor) -> Tensor:
        """What each kind of network says, by the definition of each, for c_in x_t."""
        alpha, sigma = self.schedule(t)
        spread = 0.49 if self.name == "edm" else 1.0
        x_t = scaled * (alpha**2 * spread + sigma**2).sqrt()
        x0 = self.mixture(x_t, t)
        eps = (x_t - alpha * x0) / sigma
        level = sigma / alpha
        return {
            "eps": eps,
            "x0": x0,
            "v": alpha * eps - sigma * x0,
            "score": sigma * (alpha * x0 - x_t) / sigma**2,
            "flow": eps - x0,
            "edm": (x0 - 0.49 / (level**2 + 0.49) * x_t / alpha) / (level * 0.7 / (level**2 + 0.49).sqrt()),
        }[self.name]


@pytest.mark.parametrize("schedule", ["vp", "sub_vp", "variance_exploding", "flow"], indirect=True)
@pytest.mark.parametrize("sampler", [HeunSampler(), DPMSolverPP2MSampler(), DDPMSampler()])
def test_one_model_in_every_form_gives_one_trajectory(
    sampler: Sampler, schedule: Schedule, mixture: GaussianMixtureDenoiser
) -> None:
    noise, times = Noise(0, torch.arange(4)), LogSNRGrid()(schedule, 10)
    x = prior(schedule, noise, (2,)).double()
    expected = torch.stack([state.x_t for state in sampler(mixture, x, times, noise=noise)])
    for name in PRECONDITIONERS:
        states = torch.stack([state.x_t for state in sampler(Exact(mixture, name), x, times, noise=noise)])
        torch.testing.assert_close(states, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("kind", [LinearSchedule, CosineSchedule])
@pytest.mark.parametrize(
    "sampler", [DDPMSampler(), DDIMSampler(0.5), HeunSampler(), DPMSolverPP2MSampler(), UniPCSampler()]
)
def test_a_strided_grid_is_all_of_the_table_respaced_to_it(sampler: Sampler, kind: type[LinearSchedule]) -> None:
    # Respacing (Nichol & Dhariwal 2021, eq. 19): the betas that lead from one of the kept alpha_bar to the next.
    whole, steps = kind(100), 10
    kept = whole(TrailingGrid()(whole, steps)[:-1].flip(0))[0] ** 2
    respaced = DiscreteSchedule(1 - kept / torch.cat((torch.ones(1).double(), kept[:-1])))
    means, spread = torch.tensor([[1.0, -0.5], [-1.2, 0.3]]).double(), 0.1 * torch.eye(2).double().expand(2, 2, 2)
    noise, states = Noise(0, torch.arange(4)), []
    x = prior(whole, noise, (2,)).double()
    for schedule in (whole, respaced):
        denoiser = GaussianMixtureDenoiser(schedule, means, spread)
        times = TrailingGrid()(schedule, steps)
        states.append(torch.stack([state.x_t for state in sampler(denoiser, x, times, noise=noise)]))
    torch.testing.assert_close(states[0], states[1], rtol=1e-9, atol=1e-9)


def test_integrated_rates_give_back_the_schedule(schedule: Schedule) -> None:
    # log alpha is the integral of f, and sigma^2 / alpha^2 that of g^2 / alpha^2, by Gauss's rule in panels that end on
    # the rows of a table.
    nodes, weights = (torch.from_numpy(part) for part in np.polynomial.legendre.leggauss(4))
    edges = torch.linspace(0.05, 0.95, 1801, dtype=torch.float64)
    width = edges.diff()[:, None]
    t = edges[:-1, None] + width * (nodes + 1) / 2
    f, g2 = schedule.rates(t)
    alpha, sigma = schedule(edges)
    grown = (width / 2 * weights * f).sum(1).cumsum(0)
    torch.testing.assert_close(grown, (alpha[1:] / alpha[0]).log(), rtol=1e-6, atol=1e-9)
    alpha_inside = alpha[0] * torch.cat((torch.zeros(1).double(), grown)).exp()
    # From edge to edge alpha^-2 falls out of f too, but for the way inside a panel, taken from the schedule.
    added = (width / 2 * weights * g2 / schedule(t)[0] ** 2).sum(1).cumsum(0)
    ratio = (sigma[0] / alpha[0]) ** 2 + added
    torch.testing.assert_close(ratio.sqrt() * alpha_inside[1:], sigma[1:], rtol=1e-6, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cosine", "variance_exploding", "vp", "sub_vp"])
@pytest.mark.parametrize(
    ("sampler", "steps"),
    [
        (DDPMSampler(), 400),
        (DDIMSampler(1.0), 400),
        (EulerMaruyamaSampler(), 1000),
        (PredictorCorrectorSampler(), 600),
        (ChurnSampler(0.05), 100),
        *((deterministic, 100) for deterministic, _ in DETERMINISTIC.values() if deterministic.order > 1),
    ],
)
def test_samples_of_a_mixture_have_its_moments_and_shares(
    sampler: Sampler, steps: int, name: str, request: pytest.FixtureRequest
) -> None:
    schedule = SCHEDULES[name]()
    means = torch.tensor([[1.0, -0.5], [-1.2, 0.3], [0.1, 0.9]], dtype=torch.float64)
    factors = 0.3 * torch.eye(2, dtype=torch.float64).expand(3, 2, 2)
    weights = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
    denoiser = GaussianMixtureDenoiser(schedule, means, factors @ factors.mT, weights)
    n = 4000
    noise = Noise(0, torch.arange(n))
    grid = UniformGrid() if isinstance(sampler, EulerMaruyamaSampler | PredictorCorrectorSampler) else LogSNRGrid()
    x = sampler.sample(denoiser, prior(schedule, noise, (2,)).double(), grid(schedule, steps), noise=noise)
    # Four standard errors, and a bias that is that of so many steps.
    mean = weights @ means
    cov = 0.09 * torch.eye(2) + torch.einsum("k,kd,ke->de", weights, means - mean, means - mean)
    torch.testing.assert_close(x.mean(0), mean, rtol=0, atol=4 * (cov.diag().max() / n).sqrt().item() + 0.01)
    torch.testing.assert_close(x.T.cov(), cov, rtol=0.04, atol=0.04)
    near = ((x[:, None] - means) ** 2).sum(2).argmin(1).bincount(minlength=3) / n
    truth = torch.cat([m + 0.3 * torch.randn(20_000, 2, dtype=torch.float64) for m in means])
    own = ((truth[:, None] - means) ** 2).sum(2).argmin(1).reshape(3, -1)
    shares = sum(w * row.bincount(minlength=3) / 20_000 for w, row in zip(weights, own, strict=True))
    torch.testing.assert_close(near.double(), shares, rtol=0, atol=4 * (0.25 / n) ** 0.5 + 0.01)
