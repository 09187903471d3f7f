"""The model of 2015: a head for each noising step, and the transitions that they give."""

import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from support.scripts import assert_refused, call
from torch import Tensor, nn

import evaluate
import sample
import train
from diffusion.denoisers import (
    ClippedDenoiser,
    Condition,
    EDMPreconditioner,
    EpsPreconditioner,
    GaussianMixtureDenoiser,
    NetworkDenoiser,
    Prediction,
    StepDenoiser,
)
from diffusion.forward import posterior
from diffusion.likelihood import bits, ode_log_density, prior_term, variational_bound
from diffusion.networks.heads import Heads
from diffusion.noise import Noise
from diffusion.objectives import DenoisingObjective, SimpleWeighting, UniformTimes, VLBObjective
from diffusion.samplers import DDIMSampler, DDPMSampler, HeunSampler, LogSNRGrid, TrailingGrid, prior
from diffusion.schedules import ContinuousCosineSchedule, LinearSchedule

STEPS = 40
HALF = "knows each of its 40 steps and nothing between or across them"


class Given(nn.Module):
    """F and h that a function of (x, i) gives."""

    def __init__(self, rule: object) -> None:
        super().__init__()
        self.rule, self.weight = rule, nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x: Tensor, c_noise: Tensor, cond: Condition) -> Tensor:
        return self.rule(x, c_noise.round().to(x) + 1)  # type: ignore[operator]


def _time(i: int) -> Tensor:
    return torch.tensor(i / STEPS, dtype=torch.float64)


def _random() -> StepDenoiser:
    """Heads with weights other than those that they begin with."""
    torch.manual_seed(0)
    network = Heads((2,), STEPS, width=16, out_channels=4).double()
    with torch.no_grad():
        network.out_weight.normal_(std=0.3)
        network.out_bias.normal_(std=0.3)
    return StepDenoiser(network, LinearSchedule(STEPS))


def test_each_head_answers_its_own_step_alone_whatever_else_is_in_the_batch() -> None:
    torch.manual_seed(0)
    network = Heads((2,), 5, width=8, out_channels=3)
    nn.init.normal_(network.out_weight)
    x, step = torch.randn(12, 2), torch.tensor([3, 0, 3, 1, 4, 3, 0, 0, 1, 3, 3, 4])
    together = network(x, step.float(), {})
    for row, i in enumerate(step):
        hidden = network.trunk(x[row]) @ network.hidden_weight[i] + network.hidden_bias[i, 0]
        alone = hidden.relu() @ network.out_weight[i] + network.out_bias[i, 0]
        torch.testing.assert_close(together[row], alone)
    together.sum().backward()
    used = network.hidden_weight.grad.flatten(1).abs().sum(1) > 0
    assert used.tolist() == [True, True, False, True, True]


def test_heads_refuse_what_they_were_not_made_for() -> None:
    for head in (4.0, 0.0, 1.4, 0.8):
        with pytest.raises(ValueError, match=f"of 3 heads, one a noising step, none is number {head:g}"):
            Heads((2,), 3)(torch.zeros(2, 2), torch.tensor([0.0, head - 1]), {})
    with pytest.raises(ValueError, match="heads need vectors"):
        Heads((1, 8, 8), 3)
    with pytest.raises(ValueError, match="heads and width must be at least 1, got heads=0"):
        Heads((2,), 0)
    with pytest.raises(ValueError, match="out_channels must be at least 1"):
        Heads((2,), 3, out_channels=0)


def test_heads_behind_a_preconditioner_go_along_the_schedules_steps_alone() -> None:
    schedule = LinearSchedule(40)
    with pytest.raises(ValueError, match="3 heads, one a noising step, and the schedule has"):
        NetworkDenoiser(Heads((2,), 3), schedule, EpsPreconditioner())
    with pytest.raises(ValueError, match="a head for each of 40 noising steps and none between"):
        NetworkDenoiser(Heads((2,), 40), schedule, EDMPreconditioner())
    model = NetworkDenoiser(Heads((2,), 40), schedule, EpsPreconditioner())
    DDIMSampler().check(model, TrailingGrid()(schedule, 7))
    with pytest.raises(ValueError, match="none between: it takes the schedule's own steps"):
        DDIMSampler().check(model, LogSNRGrid()(schedule, 7))


@pytest.mark.parametrize("i", [1, 2, 20, 40])
def test_the_step_has_the_networks_mean_and_variance_and_d_is_the_x0_that_gives_this_mean(i: int) -> None:
    model, t, s = _random(), _time(i), _time(i - 1)
    x_t = torch.randn(6, 2, dtype=torch.float64)
    raw, extra = model.network(x_t, torch.full((6,), i - 1.0), {}).chunk(2, dim=1)
    beta = model.schedule.betas[i - 1]
    mean, log_var, x0 = model.transition(x_t, t, s)
    torch.testing.assert_close(mean, (1 - beta).sqrt() * x_t + beta.sqrt() * raw)
    abar_t, abar_s = (1 - model.schedule.betas).cumprod(0)[i - 1], torch.tensor(1.0).double()
    if i > 1:
        abar_s = (1 - model.schedule.betas).cumprod(0)[i - 2]
    beta_tilde = (1 - abar_s) / (1 - abar_t) * beta
    torch.testing.assert_close(log_var.exp(), beta_tilde + (beta - beta_tilde) * extra.exp())
    torch.testing.assert_close(posterior(model.schedule, x_t, x0, t, s)[0], mean)
    torch.testing.assert_close(model(x_t, t), x0)
    prediction = model.predict(x_t, t, {})
    assert torch.equal(prediction.raw, raw)
    assert torch.equal(prediction.extra, extra)
    if i == 1:
        torch.testing.assert_close(x0, mean)


@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_the_variance_of_a_fine_schedule_is_as_exact_in_float32(zero_terminal_snr: bool) -> None:
    schedule = LinearSchedule(1000, zero_terminal_snr=zero_terminal_snr)
    model = StepDenoiser(Given(lambda x, i: torch.zeros(len(x), 4).to(x)), schedule)  # h = 0: the variance is beta
    step = torch.arange(1, 1001, dtype=torch.float32)
    prediction = Prediction(torch.zeros(1000, 2), extra=torch.full((1000, 2), 0.5))
    narrow = model.step(torch.zeros(1000, 2), step / 1000, (step - 1) / 1000, prediction)[1]
    beta, alpha_bar = schedule.betas, (1 - schedule.betas).cumprod(0)
    before = torch.cat((torch.ones(1), alpha_bar[:-1]))
    floor = beta * (1 - before) / (1 - alpha_bar)
    exact = floor + beta**2 * before / (1 - alpha_bar) * math.exp(0.5)
    torch.testing.assert_close(narrow[:, 0].double(), exact.log(), rtol=0, atol=2e-6)


def test_the_loss_is_the_divergence_worked_out_by_hand() -> None:
    model, i = _random(), 7
    x0 = torch.tensor([[0.3, -0.8]], dtype=torch.float64)
    noise = Noise(3, torch.arange(1))
    # One sample at step 7 of an objective that draws all steps alike.
    noise.uniform = lambda *_, **__: torch.tensor([(i - 0.5) / STEPS], dtype=torch.float64)  # type: ignore[method-assign]
    out = VLBObjective(STEPS, eight_bit=False, history=0)(model, {"x": x0}, noise)
    betas = model.schedule.betas
    abar = (1 - betas).cumprod(0)
    x_t = abar[i - 1].sqrt() * x0 + (1 - abar[i - 1]).sqrt() * noise.normal((2,), draw=1).double()
    # q(x_s | x_t, x0) as the product of two Gaussians: of what x0 says of x_s, and what x_t does.
    precision = 1 / (1 - abar[i - 2]) + (1 - betas[i - 1]) / betas[i - 1]
    q_mean = (abar[i - 2].sqrt() * x0 / (1 - abar[i - 2]) + (1 - betas[i - 1]).sqrt() * x_t / betas[i - 1]) / precision
    mean, log_var, _ = model.transition(x_t, _time(i), _time(i - 1))
    q, p = torch.distributions.Normal(q_mean, precision**-0.5), torch.distributions.Normal(mean, (log_var / 2).exp())
    term = torch.distributions.kl_divergence(q, p).mean()
    torch.testing.assert_close(out["loss"][0], bits(STEPS * term + prior_term(model.schedule, x0)[0]))


def test_with_the_best_means_and_variances_of_gaussian_data_the_bound_is_tight() -> None:
    schedule = LinearSchedule(STEPS)
    m, v = torch.tensor([0.4, -0.7], dtype=torch.float64), torch.tensor([0.3, 0.05], dtype=torch.float64)
    exact = GaussianMixtureDenoiser(schedule, m[None], v.diag()[None])

    def best(x: Tensor, i: Tensor) -> Tensor:
        t = i.double() / STEPS
        beta = schedule.betas[int(i[0]) - 1]
        alpha, sigma = (c[:, None] for c in schedule(t))
        mean, _ = posterior(schedule, x, exact(x, t), t, t - 1 / STEPS)
        left = v * sigma**2 / (alpha**2 * v + sigma**2)  # Var[x0 | x_t]
        # beta_tilde + c^2 Var[x0 | x_t], and (beta - beta_tilde) is c^2 sigma_t^2
        return torch.cat(((mean - (1 - beta).sqrt() * x) / beta.sqrt(), (left / sigma**2).log().expand_as(x)), dim=1)

    model = StepDenoiser(Given(best), schedule)
    x0 = m + v.sqrt() * Noise(5, torch.arange(4000)).normal((2,)).double()
    terms = variational_bound(model, x0, TrailingGrid()(schedule, STEPS), Noise(6, torch.arange(4000)), eight_bit=False)
    nll = -exact.log_prob(x0, torch.zeros((), dtype=torch.float64)) / 2
    gap = terms.sum(1) - nll
    assert abs(gap.mean()) < 4 * gap.std() / 4000**0.5
    assert gap.std() / 4000**0.5 < 0.02  # so that a term that is wrong by a few hundredths shows


def test_a_network_of_zeros_is_exact_for_a_standard_normal() -> None:
    model = StepDenoiser(Heads((2,), STEPS, width=4, out_channels=4).double(), LinearSchedule(STEPS))
    t, s = _time(9), _time(8)
    x_t = torch.randn(3, 2, dtype=torch.float64)
    _, log_var, x0 = model.transition(x_t, t, s)
    alpha, _ = model.schedule(t)
    torch.testing.assert_close(x0, alpha * x_t)
    torch.testing.assert_close(log_var.exp(), model.schedule.betas[8].expand(3, 2))


def test_all_steps_sample_and_invert_and_others_are_refused_in_one_line() -> None:
    model, noise = _random(), Noise(0, torch.arange(4))
    x, full = prior(model.schedule, noise, (2,)).double(), TrailingGrid()(model.schedule, STEPS)
    with torch.no_grad():
        for sampler in (DDPMSampler(), DDIMSampler(), HeunSampler()):
            assert sampler.sample(model, x, full, noise=noise).isfinite().all()
        x_1 = DDIMSampler().sample(model, x, full[:-1].flip(0))
        assert x_1.isfinite().all()
        clipped = ClippedDenoiser(model)
        _, log_var, x0 = clipped.transition(3 * x, _time(5), _time(4))
        assert x0.abs().max() == 1
        torch.testing.assert_close(log_var, model.transition(3 * x, _time(5), _time(4))[1])
        for times in (TrailingGrid()(model.schedule, 20), LogSNRGrid()(model.schedule, STEPS)):
            for denoiser in (model, clipped):
                with pytest.raises(ValueError, match=HALF):
                    DDPMSampler().sample(denoiser, x, times, noise=noise)
            with pytest.raises(ValueError, match=HALF):
                variational_bound(model, x, times, noise, eight_bit=False)
        with pytest.raises(ValueError, match=HALF):
            model.transition(x, _time(4), _time(2))
    with pytest.raises(ValueError, match=HALF):
        ode_log_density(model, x, noise)
    with pytest.raises(ValueError, match="this schedule is continuous"):
        StepDenoiser(Heads((2,), 3, out_channels=4), ContinuousCosineSchedule())
    with pytest.raises(ValueError, match="needs a network with 4 outputs, this has 2"):
        StepDenoiser(Heads((2,), STEPS), LinearSchedule(STEPS))(x.float(), _time(1))
    simple = DenoisingObjective(UniformTimes(), SimpleWeighting())
    with pytest.raises(ValueError, match="is a loss of a RegressionDenoiser, and this model is a StepDenoiser"):
        simple(model, {"x": x}, noise)


def test_the_experiment_trains_samples_and_refuses_other_steps_before_anything_slow(tmp_path: Path) -> None:
    tiny = ("experiment=swissroll", "dataset.source.n=500", "batch_size=50", "trainer.max_steps=4", "val_every=4")
    done = call(train, tmp_path, *tiny, "log_every=1")
    assert done.code == 0, done.err
    assert "Heads with 0.0" not in done.out  # 0.70 M: forty heads
    both = ("ckpt=last", "n=40", "show=both")
    for out, frames, size in (("roll.png", 4, (4 * 328 - 8, 2 * 320 + 24)), ("roll.gif", 3, (320, 2 * 320 + 24))):
        assert call(sample, tmp_path, *both, f"out={out}", f"frames={frames}").code == 0
        with Image.open(tmp_path / out) as picture:
            assert picture.size == size
            assert getattr(picture, "n_frames", 1) == (frames if out.endswith("gif") else 1)
    assert_refused(call(sample, tmp_path, "ckpt=last", "steps=10"), HALF)
    assert_refused(call(evaluate, tmp_path, "ckpt=last", "n=4", "likelihood=ode"), HALF)
    assert_refused(call(sample, tmp_path, *both, "out=roll.npz"), "out=roll.npz: show=both is a picture: choose")
    assert_refused(call(sample, tmp_path, "ckpt=last", "n=60", "show=both"), "the test split has 50")
    assert not (tmp_path / "roll.npz").exists()
    assert_refused(call(train, tmp_path, *tiny, "steps=10"), HALF)
    assert_refused(call(train, tmp_path, *tiny, "objective=simple"), "this would do: objective=vlb")
    assert_refused(call(train, tmp_path, *tiny, "schedule=vp", "timesteps=null"), "there is a head for each")
    assert [path.name for path in (tmp_path / "lightning_logs/swissroll").iterdir()] == ["version_0"]
