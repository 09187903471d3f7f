"""Guidance against exact answers: a mixture's components are its classes, and everything has a closed form. Float64."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

import cli
from diffusion.build import build
from diffusion.denoisers import (
    ClippedDenoiser,
    Condition,
    Conditioned,
    Denoiser,
    EpsPreconditioner,
    GaussianMixtureDenoiser,
    NetworkDenoiser,
    Prediction,
)
from diffusion.forward import posterior
from diffusion.guidance import ClassifierFreeGuidance, EnergyGuidance, Inpainting, MeanShiftGuidance
from diffusion.likelihood import ode_log_density, variational_bound
from diffusion.models import LabelLogProb, NoisyClassifier
from diffusion.networks.mlp import MLP
from diffusion.noise import Noise
from diffusion.samplers import AdaptiveSampler, RePaintSampler, TrailingGrid, UniformGrid, prior
from diffusion.schedules import LinearSchedule, Schedule, VPSchedule

SAMPLERS = cli.choices_of("sampler")


def component(mixture: GaussianMixtureDenoiser, k: int) -> GaussianMixtureDenoiser:
    """The exact denoiser of one of the mixture's Gaussians."""
    basis = mixture.eigenvectors[k]
    covariance = basis @ torch.diag(mixture.eigenvalues[k]) @ basis.T
    return GaussianMixtureDenoiser(mixture.schedule, mixture.means[k : k + 1], covariance[None])


class ByLabel(Denoiser):
    """The exact denoiser of the component that cond["label"] names; of the whole mixture where it names none."""

    num_classes = 3

    def __init__(self, mixture: GaussianMixtureDenoiser) -> None:
        super().__init__(mixture.schedule)
        self.all = mixture
        self.each = torch.nn.ModuleList(component(mixture, k) for k in range(3))
        self.asked: list[int] = []  # the batch sizes

    def predict(self, x_t: Tensor, t: Tensor, cond: Condition) -> Prediction:
        self.asked.append(len(x_t))
        answers = torch.stack([*(d(x_t, t) for d in self.each), self.all(x_t, t)])
        return Prediction(answers[cond["label"], torch.arange(len(x_t))])


def exact(mixture: GaussianMixtureDenoiser, k: int) -> Callable[[Tensor, Tensor, Condition], Tensor]:
    """log p(component k | x_t)."""
    return lambda x_t, t, cond: mixture._components(x_t, t)[2].log_softmax(-1)[:, k]


def points(schedule: Schedule, t: Tensor, n: int = 6) -> Tensor:
    alpha, sigma = schedule(t)
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, n, 2, generator=generator, dtype=torch.float64)
    return alpha * x0 + sigma * eps


def label(k: int, n: int = 6) -> Condition:
    return {"label": torch.full((n,), k)}


def sampler(name: str) -> Any:
    """That of the choice; with few corrections, each of which is alike."""
    config = yaml.safe_load((cli.CONFIGS / "sampler" / f"{name}.yaml").read_text())
    return build(config | {"corrections": 3} if "corrections" in config else config)


def test_the_exact_classifier_at_scale_one_gives_the_exact_conditional_denoiser(
    mixture: GaussianMixtureDenoiser, times: Tensor
) -> None:
    for k in range(3):
        guided, expected = EnergyGuidance(mixture, exact(mixture, k)), component(mixture, k)
        for t in times:
            x_t = points(mixture.schedule, t)
            torch.testing.assert_close(guided(x_t, t), expected(x_t, t), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("scale", [-0.5, 0.0, 2.5])
def test_classifier_free_guidance_has_the_score_of_the_tilted_density(
    scale: float, mixture: GaussianMixtureDenoiser, times: Tensor
) -> None:
    guided, conditioned = ClassifierFreeGuidance(ByLabel(mixture), scale), component(mixture, 1)
    by_energy = EnergyGuidance(mixture, exact(mixture, 1), scale)
    for t in times:
        alpha, sigma = mixture.schedule(t)
        x_t = points(mixture.schedule, t).requires_grad_()
        tilted = (1 - scale) * mixture.log_prob(x_t, t) + scale * conditioned.log_prob(x_t, t)
        (score,) = torch.autograd.grad(tilted.sum(), x_t)
        answer = guided(x_t, t, label(1))
        torch.testing.assert_close((alpha * answer - x_t) / sigma**2, score, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(answer, by_energy(x_t, t), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("schedule", ["linear"], indirect=True)
def test_guidance_one_is_the_conditional_model_to_the_bit_and_at_its_cost(mixture: GaussianMixtureDenoiser) -> None:
    model, t = ByLabel(mixture), torch.tensor(0.3, dtype=torch.float64)
    x_t = points(mixture.schedule, t)
    plain = model(x_t, t, label(2))
    model.asked.clear()
    assert torch.equal(ClassifierFreeGuidance(model, 1.0)(x_t, t, label(2)), plain)
    assert model.asked == [6]
    ClassifierFreeGuidance(model, 1.5)(x_t, t, label(2))
    assert model.asked == [6, 12]  # both halves in one call
    assert torch.equal(EnergyGuidance(mixture, exact(mixture, 0), 0.0)(x_t, t), mixture(x_t, t))


@pytest.mark.parametrize("schedule", ["linear", "sub_vp"], indirect=True)
def test_outside_its_interval_guidance_is_off_and_costs_nothing(mixture: GaussianMixtureDenoiser) -> None:
    model = ByLabel(mixture)
    t = mixture.schedule.inverse(-2 * torch.tensor([0.1, 0.5, 1.0, 3.0, 20.0], dtype=torch.float64).log())
    limited = ClassifierFreeGuidance(model, 3.0, interval=[0.3, 4.0])
    always = ClassifierFreeGuidance(model, 3.0)
    x_t = points(mixture.schedule, torch.tensor(0.5, dtype=torch.float64), 5)
    inside = torch.tensor([False, True, True, True, False])[:, None]
    expected = torch.where(inside, always(x_t, t, label(0, 5)), model(x_t, t, label(0, 5)))
    torch.testing.assert_close(limited(x_t, t, label(0, 5)), expected, rtol=1e-12, atol=1e-12)
    assert (expected - model(x_t, t, label(0, 5))).abs().max() > 0.01
    model.asked.clear()
    for level in t:
        limited(x_t, level, label(0, 5))
    assert model.asked == [5, 10, 10, 10, 5]


@pytest.mark.parametrize("schedule", ["vp"], indirect=True)
def test_an_interval_needs_a_level_of_the_sampler_and_its_ends_count(mixture: GaussianMixtureDenoiser) -> None:
    times = TrailingGrid()(mixture.schedule, 5)
    levels = torch.exp(-mixture.schedule.log_snr(times[times > 0]) / 2)
    low, high = levels.min().item(), levels.max().item()
    for interval in ([high, math.inf], [0.0, low]):
        ClassifierFreeGuidance(ByLabel(mixture), 2.0, interval).check_times(times)
    between = [levels.sort().values[1].item() * 1.01, levels.sort().values[2].item() * 0.99]
    for interval in ([1.01 * high, math.inf], [0.0, 0.99 * low], between):
        with pytest.raises(ValueError, match="has no noise level of the sampler"):
            ClassifierFreeGuidance(ByLabel(mixture), 2.0, interval).check_times(times)
    adaptive = AdaptiveSampler()  # which steps as it likes
    adaptive.check(ClassifierFreeGuidance(ByLabel(mixture), 2.0, between), times)


@pytest.mark.parametrize("schedule", ["linear"], indirect=True)
def test_rescaling_gives_each_sample_the_conditional_answers_deviation(mixture: GaussianMixtureDenoiser) -> None:
    model, t = ByLabel(mixture), torch.tensor(0.3, dtype=torch.float64)
    x_t = points(mixture.schedule, t)
    plain, conditioned = ClassifierFreeGuidance(model, 4.0)(x_t, t, label(0)), model(x_t, t, label(0))
    full = ClassifierFreeGuidance(model, 4.0, rescale=1.0)(x_t, t, label(0))
    torch.testing.assert_close(full.std(1), conditioned.std(1))
    torch.testing.assert_close(full / plain, (conditioned.std(1) / plain.std(1))[:, None].expand(-1, 2))
    half = ClassifierFreeGuidance(model, 4.0, rescale=0.5)(x_t, t, label(0))
    torch.testing.assert_close(half, (full + plain) / 2)

    class Faint(ByLabel):
        def predict(self, x_t: Tensor, t: Tensor, cond: Condition) -> Prediction:
            return super().predict(x_t, t, cond).map(lambda value: 1e-3 * value)

    faint = ClassifierFreeGuidance(Faint(mixture), 4.0, rescale=1.0)(x_t, t, label(0))
    torch.testing.assert_close(faint, 1e-3 * full)


@pytest.mark.parametrize("schedule", ["vp"], indirect=True)
@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_takes_guided_denoisers(name: str, mixture: GaussianMixtureDenoiser) -> None:
    # Guided by the exact classifier, or by labels, each is the same path as of the component's own denoiser.
    noise = Noise(0, torch.arange(6))
    grid = UniformGrid() if name == "langevin" else TrailingGrid()
    x, times = prior(mixture.schedule, noise, (2,)).double(), grid(mixture.schedule, 6)
    expected = sampler(name).sample(component(mixture, 2), x, times, noise=noise)
    with torch.no_grad():
        by_energy = sampler(name).sample(EnergyGuidance(mixture, exact(mixture, 2)), x, times, noise=noise)
    torch.testing.assert_close(by_energy, expected, rtol=1e-5, atol=1e-5)
    clipped = ClippedDenoiser(ClassifierFreeGuidance(ByLabel(mixture), 1 + 1e-12), -50.0, 50.0)
    by_label = sampler(name).sample(Conditioned(clipped, label(2)), x, times, noise)
    torch.testing.assert_close(by_label, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("schedule", ["vp", "sub_vp"], indirect=True)
def test_guided_densities_are_exact(mixture: GaussianMixtureDenoiser) -> None:
    x = points(mixture.schedule, torch.tensor(0.02, dtype=torch.float64), 3)

    def density(denoiser: Denoiser, cond: Condition | None = None) -> Tensor:
        x_1, change = ode_log_density(Conditioned(denoiser, cond or {}), x, steps=6, probe="exact")
        return torch.cat((x_1, change[:, None]), 1)

    by_energy = density(EnergyGuidance(mixture, exact(mixture, 0)))
    torch.testing.assert_close(by_energy, density(component(mixture, 0)), rtol=1e-6, atol=1e-6)
    tilted = density(EnergyGuidance(mixture, exact(mixture, 0), 1.7))
    free = density(ClassifierFreeGuidance(ByLabel(mixture), 1.7), label(0, 3))
    torch.testing.assert_close(free, tilted, rtol=1e-6, atol=1e-6)
    times = TrailingGrid()(mixture.schedule, 5)
    bounds = [
        variational_bound(d, x, times, Noise(0, torch.arange(3)), eight_bit=False)
        for d in (EnergyGuidance(mixture, exact(mixture, 0)), component(mixture, 0))
    ]
    torch.testing.assert_close(*bounds, rtol=1e-6, atol=1e-6)


def test_a_learned_variance_stays_the_conditional_models() -> None:
    torch.manual_seed(0)
    network = MLP((2,), width=8, num_classes=3, out_channels=4)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model = NetworkDenoiser(network.double(), LinearSchedule(100), EpsPreconditioner(), "learned")
    t, s = torch.tensor(0.5, dtype=torch.float64), torch.tensor(0.4, dtype=torch.float64)
    x_t = points(model.schedule, t)
    guided = ClippedDenoiser(ClassifierFreeGuidance(model, 3.0), -9.0, 9.0)
    mean, log_var, x0 = guided.transition(x_t, t, s, label(1))
    _, expected, conditioned = model.transition(x_t, t, s, label(1))
    unconditioned = model(x_t, t, label(-1))
    torch.testing.assert_close(log_var, expected, rtol=1e-9, atol=1e-9)
    assert (log_var - model.transition(x_t, t, s, label(-1))[1]).abs().max() > 1e-4
    torch.testing.assert_close(x0, (unconditioned + 3 * (conditioned - unconditioned)).clamp(-9, 9))
    torch.testing.assert_close(mean, posterior(model.schedule, x_t, x0, t, s)[0])


@pytest.mark.parametrize("schedule", ["linear", "variance_exploding", "sub_vp"], indirect=True)
def test_the_mean_shift_of_ddpm_is_the_guided_step_up_to_the_ratio_of_alphas(mixture: GaussianMixtureDenoiser) -> None:
    t, s = mixture.schedule.inverse(torch.tensor([-1.0, 1.0], dtype=torch.float64))
    x_t, (alpha_t, alpha_s) = points(mixture.schedule, t), (mixture.schedule(v)[0] for v in (t, s))
    mean = mixture.transition(x_t, t, s)[0]
    shifted, _, x0 = MeanShiftGuidance(mixture, exact(mixture, 1), 2.0).transition(x_t, t, s)
    guided = EnergyGuidance(mixture, exact(mixture, 1), 2.0).transition(x_t, t, s)[0]
    torch.testing.assert_close((shifted - mean) * alpha_s, (guided - mean) * alpha_t, rtol=1e-6, atol=1e-9)
    assert torch.equal(x0, mixture(x_t, t))


def test_a_shift_of_the_step_is_refused_by_samplers_that_take_none(mixture: GaussianMixtureDenoiser) -> None:
    guided = ClippedDenoiser(MeanShiftGuidance(mixture, exact(mixture, 1)))
    times = UniformGrid()(mixture.schedule, 4)
    for name in SAMPLERS:
        sampler = build(yaml.safe_load((cli.CONFIGS / f"sampler/{name}.yaml").read_text()))
        if name == "ddpm":
            sampler.check(guided, times)
            RePaintSampler(sampler, 2).check(guided, times)
        else:
            with pytest.raises(ValueError, match=r"moves the mean of a DDPM step|no call|schedule|steps"):
                sampler.check(guided, times)


def test_a_constant_answer_is_not_rescaled(mixture: GaussianMixtureDenoiser) -> None:
    class Constant(ByLabel):
        def predict(self, x_t: Tensor, t: Tensor, cond: Condition) -> Prediction:
            return Prediction(cond["label"][:, None].to(x_t).expand(-1, 2))

    x_t = torch.randn(3, 2, dtype=torch.float64)
    cond = {"label": torch.tensor([0, 1, 2])}
    guided = ClassifierFreeGuidance(Constant(mixture), 2.0, rescale=0.7)(x_t, torch.tensor(0.5), cond)
    # D is the label, and -1 without one: -1 + 2 (label + 1).
    torch.testing.assert_close(guided, torch.tensor([[1.0], [3.0], [5.0]]).double().expand(-1, 2))

    class Cancelling(ByLabel):
        def predict(self, x_t: Tensor, t: Tensor, cond: Condition) -> Prediction:
            return Prediction(torch.where(cond["label"][:, None] < 0, 2 * x_t - 1, x_t))  # x + (x - (2 x - 1)) = 1

    x_t = torch.tensor([[1.0, 2.0], [3.0, 5.0], [-4.0, 8.0]], requires_grad=True)
    guided = ClassifierFreeGuidance(Cancelling(mixture), 2.0, rescale=0.7)(x_t, torch.tensor(0.5), cond)
    (slope,) = torch.autograd.grad(guided.sum(), x_t)
    assert torch.equal(guided.detach(), torch.ones(3, 2))
    assert torch.equal(slope, torch.zeros(3, 2))


def test_a_linear_energy_of_x0_moves_a_gaussians_mean_by_its_covariance(
    gaussian: GaussianMixtureDenoiser, times: Tensor
) -> None:
    # p(x0) e^(a x0) is N(m + C a, C): "make it brighter", exactly.
    a = torch.tensor([0.7, -1.1], dtype=torch.float64)
    basis = gaussian.eigenvectors[0]
    covariance = basis @ torch.diag(gaussian.eigenvalues[0]) @ basis.T
    expected = GaussianMixtureDenoiser(gaussian.schedule, gaussian.means + a @ covariance, covariance[None])
    guided = EnergyGuidance(gaussian, lambda x0, t, cond: x0 @ a, of="x0")
    for t in times:
        x_t = points(gaussian.schedule, t)
        torch.testing.assert_close(guided(x_t, t), expected(x_t, t), rtol=1e-7, atol=1e-7)
        assert not guided(x_t, t).requires_grad


class ExactNetwork(torch.nn.Module):
    """What a perfect network says of a mixture: it sees x scaled to variance-preserving noise, and the log-SNR."""

    classes = 3

    def __init__(self, mixture: GaussianMixtureDenoiser) -> None:
        super().__init__()
        self.mixture = mixture
        self.weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, x: Tensor, c_noise: Tensor, cond: Condition) -> Tensor:
        log_snr = c_noise.double() / -125
        preserving = VPSchedule()
        copy = GaussianMixtureDenoiser(preserving, self.mixture.means, torch.zeros(3, 2, 2, dtype=torch.float64))
        copy.load_state_dict(self.mixture.state_dict())
        return copy._components(x, preserving.inverse(log_snr))[2]


@pytest.mark.parametrize("theirs", [LinearSchedule(), VPSchedule()], ids=["linear", "vp"])
def test_a_classifier_of_another_schedule_is_met_at_equal_log_snr(
    theirs: Schedule, mixture: GaussianMixtureDenoiser
) -> None:
    classifier = NoisyClassifier(ExactNetwork(mixture), theirs)
    guided = EnergyGuidance(mixture, LabelLogProb(classifier, mixture.schedule))
    for log_snr in (-3.0, 0.0, 4.0):
        t = mixture.schedule.inverse(torch.tensor(log_snr, dtype=torch.float64))
        x_t = points(mixture.schedule, t)
        expected = component(mixture, 1)(x_t, t)
        torch.testing.assert_close(guided(x_t, t, label(1)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("schedule", ["variance_exploding"], indirect=True)
def test_a_classifier_says_nothing_of_noise_levels_that_it_never_saw(mixture: GaussianMixtureDenoiser) -> None:
    classifier = NoisyClassifier(ExactNetwork(mixture), LinearSchedule())  # up to a log-SNR of 9.2, from -10.1 on
    guided = EnergyGuidance(mixture, LabelLogProb(classifier, mixture.schedule))
    t = mixture.schedule.inverse(torch.tensor([11.0, 8.0], dtype=torch.float64))
    x_t = points(mixture.schedule, t[0], 2)
    moved = (guided(x_t, t, label(1, 2)) - mixture(x_t, t)).abs().amax(1)
    assert moved[0] == 0
    assert moved[1] > 0


@pytest.mark.parametrize("schedule", ["vp"], indirect=True)
@pytest.mark.parametrize("name", SAMPLERS)
def test_known_values_come_back_exactly_from_every_sampler(name: str, mixture: GaussianMixtureDenoiser) -> None:
    mask = torch.tensor([0.0, 1.0])
    noise = Noise(0, torch.arange(8))
    grid = UniformGrid() if name == "langevin" else TrailingGrid()
    x, times = prior(mixture.schedule, noise, (2,)), grid(mixture.schedule, 8)
    for known in (0.3, -0.7):
        denoiser = Inpainting(mixture, torch.tensor([known, 99.0]), mask)
        out = sampler(name).sample(ClippedDenoiser(denoiser, -9.0, 9.0), x, times, noise=noise)
        assert torch.equal(out[:, 0], torch.full((8,), known))
        assert out[:, 1].isfinite().all() and (out[:, 1] != 99).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda d: ClassifierFreeGuidance(d, float("nan")), "guidance must be a finite number"),
        (lambda d: ClassifierFreeGuidance(d, 2.0, [3.0, 1.0]), "guidance_interval must be two rising levels"),
        (lambda d: ClassifierFreeGuidance(d, 2.0, rescale=1.5), "guidance_rescale must lie in"),
        (lambda d: EnergyGuidance(d, lambda x, t, cond: x, float("inf")), "guidance must be a finite number"),
        (lambda d: EnergyGuidance(d, lambda x, t, cond: x, of="eps"), "of must be x_t or x0"),
        (lambda d: ClassifierFreeGuidance(d, 2.0)(torch.zeros(1, 2), torch.tensor(0.5)), "needs a condition"),
    ],
)
@pytest.mark.parametrize("schedule", ["linear"], indirect=True)
def test_guidance_that_cannot_be_is_refused(
    make: Callable[[Denoiser], object], message: str, mixture: GaussianMixtureDenoiser
) -> None:
    with pytest.raises(ValueError, match=message):
        make(mixture)


@pytest.mark.parametrize("schedule", ["vp"], indirect=True)
def test_the_scale_has_the_digits_of_the_samples(mixture: GaussianMixtureDenoiser) -> None:
    x_t, t = torch.tensor([[0.3, -0.4]], dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64)
    guided = ClassifierFreeGuidance(ByLabel(mixture), 1.3)(x_t, t, label(1, 1))
    weak, strong = mixture(x_t, t), component(mixture, 1)(x_t, t)
    torch.testing.assert_close(guided, weak + 1.3 * (strong - weak), rtol=0, atol=1e-14)


@pytest.mark.parametrize("schedule", ["vp"], indirect=True)
def test_a_classifier_is_refused_on_a_schedule_that_ends_without_signal(mixture: GaussianMixtureDenoiser) -> None:
    with pytest.raises(ValueError, match="undefined at t = 1 on a schedule with zero terminal SNR"):
        NoisyClassifier(ExactNetwork(mixture), LinearSchedule(zero_terminal_snr=True))
