"""Objectives that train a variance: the bound that they estimate, what they leave alone, what they remember."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffusion.denoisers import Condition, EpsPreconditioner, NetworkDenoiser, VPreconditioner
from diffusion.likelihood import bits, bound_term, prior_term
from diffusion.noise import Noise
from diffusion.objectives import DenoisingObjective, HybridObjective, SimpleWeighting, UniformTimes, VLBObjective, bound
from diffusion.schedules import ContinuousCosineSchedule, CosineSchedule

STEPS = 12


class Given(Noise):
    """Noise that is chosen instead of drawn."""

    def __init__(self, u: Tensor, eps: Tensor) -> None:
        super().__init__(0, torch.arange(len(u)))
        self.u, self.eps = u, eps

    def uniform(self, shape: Any = (), step: int = 0, draw: int = 0) -> Tensor:
        return self.u

    def normal(self, shape: Any, step: int = 0, draw: int = 0) -> Tensor:
        return self.eps


class Affine(nn.Module):
    """F = a x + b, and one number everywhere in the second half of the channels."""

    def __init__(self, a: float = 0.4, b: float = 0.1, extra: float | None = 0.2) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.tensor([a, b], dtype=torch.float64))
        self.extra = None if extra is None else nn.Parameter(torch.tensor(extra, dtype=torch.float64))

    def forward(self, x: Tensor, c_noise: Tensor, cond: Condition) -> Tensor:
        out = self.mean[0] * x + self.mean[1]
        return out if self.extra is None else torch.cat((out, self.extra.expand_as(x)), dim=1)


def _learned(extra: float = 0.2) -> NetworkDenoiser:
    return NetworkDenoiser(Affine(extra=extra), CosineSchedule(STEPS), VPreconditioner(), "learned")


def _fixed(variance: str = "beta") -> NetworkDenoiser:
    return NetworkDenoiser(Affine(extra=None), CosineSchedule(STEPS), VPreconditioner(), variance)


def _simple() -> DenoisingObjective:
    return DenoisingObjective(UniformTimes(), SimpleWeighting())


def _batch(rows: int, seed: int = 0) -> tuple[dict[str, Tensor], Tensor]:
    """The same x0 (4,) in every row, and its noise; a grey level each, so that it may be pixels too."""
    generator = torch.Generator().manual_seed(seed)
    x0 = torch.randint(0, 256, (1, 4), generator=generator).double() / 127.5 - 1
    return {"x": x0.expand(rows, 4)}, torch.randn(1, 4, generator=generator, dtype=torch.float64).expand(rows, 4)


def _terms(model: NetworkDenoiser, x0: Tensor, eps: Tensor, eight_bit: bool) -> Tensor:
    """The terms of the steps to i = 0, 1, ..., one after the other, in bits per dimension."""
    terms = []
    for i in range(1, STEPS + 1):
        t, s = (torch.tensor(j / STEPS, dtype=torch.float64) for j in (i, i - 1))
        alpha, sigma = model.schedule(t)
        x_t = alpha * x0[:1] + sigma * eps[:1]
        mean, log_var, _ = model.transition(x_t, t, s)
        terms.append(bits(bound_term(model, x0[:1], x_t, t, s, mean, log_var, eight_bit)))
    return torch.cat(terms)


def _midpoints(n: int) -> Tensor:
    return (torch.arange(n, dtype=torch.float64) + 0.5) / n


@pytest.mark.parametrize("eight_bit", [False, True])
@pytest.mark.parametrize("model", [_learned(), _fixed("beta"), _fixed("beta_tilde")])
def test_the_bound_over_all_steps_is_the_sum_of_its_terms(model: NetworkDenoiser, eight_bit: bool) -> None:
    batch, eps = _batch(STEPS)
    out = VLBObjective(STEPS, eight_bit, history=0)(model, batch, Given(_midpoints(STEPS), eps))
    terms = _terms(model, batch["x"], eps, eight_bit)
    expected = terms.sum() + bits(prior_term(model.schedule, batch["x"]))[0]
    torch.testing.assert_close(out["loss"].mean(), expected)
    assert (out["log_snr"].diff() < 0).all()


def test_steps_are_drawn_by_the_size_of_their_terms_and_the_estimate_stays_unbiased() -> None:
    model, objective = _learned(), VLBObjective(STEPS, eight_bit=False, history=2)
    batch, eps = _batch(6 * STEPS)
    even = objective(model, batch, Given(_midpoints(6 * STEPS), eps))["loss"]
    terms = _terms(model, batch["x"], eps, eight_bit=False)
    assert (objective.counts == 6).all()
    torch.testing.assert_close(objective.losses, terms[:, None].expand(-1, 2).detach().float())
    probabilities = objective.probabilities()
    torch.testing.assert_close(probabilities.sum().item(), 1.0)
    torch.testing.assert_close(
        probabilities, 0.999 * terms.abs() / terms.abs().sum() + 0.001 / STEPS, rtol=1e-5, atol=1e-9
    )
    rows = 2400
    batch, eps = _batch(rows)
    weighted = objective(model, batch, Given(_midpoints(rows), eps))["loss"]
    torch.testing.assert_close(weighted.mean(), even.mean(), rtol=1e-3, atol=0)
    assert weighted.std() < 0.1 * even.std()


def test_all_steps_are_as_likely_until_each_has_a_full_history_and_in_validation() -> None:
    model, objective = _learned(), VLBObjective(STEPS, eight_bit=False, history=2)
    batch, eps = _batch(STEPS)
    even = torch.full((STEPS,), 1 / STEPS, dtype=torch.float64)
    for _ in range(2):
        assert torch.equal(objective.probabilities(), even)
        objective(model, batch, Given(_midpoints(STEPS), eps))
    assert not torch.allclose(objective.probabilities(), even)
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    objective.eval()
    assert torch.equal(objective.probabilities(), even)
    objective(model, batch, Given(_midpoints(STEPS), eps))
    assert all(torch.equal(before[name], value) for name, value in objective.state_dict().items())


def test_the_history_keeps_the_last_terms_of_each_step_in_turn() -> None:
    objective = VLBObjective(3, history=2)
    objective.remember(torch.tensor([0, 2, 2, 2]), torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert objective.counts.tolist() == [1, 0, 3]
    assert objective.losses[0].tolist() == [1, 0]
    assert sorted(objective.losses[2].tolist()) == [3, 4]
    objective.remember(torch.tensor([2, 0]), torch.tensor([5.0, 6.0]))
    assert objective.losses[0].tolist() == [1, 6]
    assert sorted(objective.losses[2].tolist()) == [4, 5]


def test_terms_of_one_batch_take_the_places_of_their_own_step() -> None:
    objective = VLBObjective(3, history=3)
    objective.remember(torch.tensor([1, 0, 2, 1, 2]), torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]))
    assert objective.losses.tolist() == [[2, 0, 0], [1, 4, 0], [3, 5, 0]]


def test_the_history_goes_on_from_a_checkpoint() -> None:
    first, second = VLBObjective(3, history=2), VLBObjective(3, history=2)
    first.remember(torch.tensor([0, 1, 1]), torch.tensor([1.0, 2.0, 3.0]))
    second.load_state_dict(first.state_dict())
    for objective in (first, second):
        objective.remember(torch.tensor([0, 1, 2, 2]), torch.tensor([4.0, 5.0, 6.0, 7.0]))
    assert torch.equal(first.probabilities(), second.probabilities())
    assert torch.equal(first.losses, second.losses)


def test_the_hybrid_adds_the_bound_to_the_simple_loss() -> None:
    model, (batch, eps) = _learned(), _batch(STEPS)
    noise = Given(_midpoints(STEPS), eps)
    plain = NetworkDenoiser(Affine(extra=None), model.schedule, VPreconditioner())
    simple = _simple()(plain, batch, noise)["loss"]
    hybrid = HybridObjective(SimpleWeighting(), vlb_weight=0.25, eight_bit=False)(model, batch, noise)["loss"]
    torch.testing.assert_close(hybrid, simple + 0.25 * STEPS * _terms(model, batch["x"], eps, eight_bit=False))


@pytest.mark.parametrize("eight_bit", [False, True])
def test_the_hybrids_bound_leaves_the_mean_alone(eight_bit: bool) -> None:
    model, (batch, eps) = _learned(), _batch(STEPS)
    noise = Given(_midpoints(STEPS), eps)
    plain = NetworkDenoiser(Affine(extra=None), model.schedule, VPreconditioner())
    (simple,) = torch.autograd.grad(_simple()(plain, batch, noise)["loss"].sum(), [plain.network.mean])
    loss = HybridObjective(SimpleWeighting(), eight_bit=eight_bit)(model, batch, noise)["loss"].sum()
    hybrid, extra = torch.autograd.grad(loss, [model.network.mean, model.network.extra])
    torch.testing.assert_close(hybrid, simple)
    assert extra.abs() > 1e-6
    bound = VLBObjective(STEPS, eight_bit)(model, batch, noise)["loss"].sum()
    (slope,) = torch.autograd.grad(bound, [model.network.mean])
    assert slope.abs().max() > 1e-3  # the bound alone does train it


def test_on_a_standard_normal_the_hybrid_learns_the_variance_beta() -> None:
    # v = 0 is exact there, the reverse step's variance is beta, and the loss is least where the output is 1.
    rows = 20_000
    batch = {"x": Noise(1, torch.arange(rows)).normal((2,)).double()}
    for extra, low, high in ((0.0, -1.0, -3e-4), (1.0, -3e-5, 3e-5), (1.5, 1e-4, 1.0)):
        model = NetworkDenoiser(Affine(0, 0, extra), CosineSchedule(STEPS), VPreconditioner(), "learned")
        objective = HybridObjective(SimpleWeighting(), eight_bit=False)
        loss = objective(model, batch, Noise(0, torch.arange(rows)))["loss"].mean()
        (slope,) = torch.autograd.grad(loss, [model.network.extra])
        assert low < slope.item() < high


def test_of_one_noising_step_the_bound_is_the_decoder_and_the_prior() -> None:
    model = NetworkDenoiser(Affine(extra=None), CosineSchedule(1), EpsPreconditioner())
    batch, eps = _batch(4)
    loss = VLBObjective(1, eight_bit=False)(model, batch, Given(_midpoints(4), eps))["loss"]
    x0, t = batch["x"], torch.ones(4, dtype=torch.float64)
    x_1 = model.schedule(t)[0][0] * x0 + model.schedule(t)[1][0] * eps
    mean, log_var, _ = model.transition(x_1, t, 0 * t)
    decoder = -torch.distributions.Normal(mean, (log_var / 2).exp()).log_prob(x0).flatten(1).mean(1)
    torch.testing.assert_close(loss, bits(decoder + prior_term(model.schedule, x0)).to(loss))


def test_objectives_and_models_that_do_not_fit_are_refused() -> None:
    batch, eps = _batch(2)
    noise = Given(_midpoints(2), eps)
    with pytest.raises(ValueError, match="does not train the variance"):
        _simple()(_learned(), batch, noise)
    with pytest.raises(ValueError, match="has no learned variance"):
        HybridObjective(SimpleWeighting())(_fixed(), batch, noise)
    continuous = NetworkDenoiser(Affine(), ContinuousCosineSchedule(), EpsPreconditioner(), "learned")
    with pytest.raises(ValueError, match="this schedule is continuous"):
        HybridObjective(SimpleWeighting())(continuous, batch, noise)
    with pytest.raises(ValueError, match="this schedule is continuous"):
        VLBObjective(None)
    with pytest.raises(ValueError, match="history must be from 0 to 1000"):
        VLBObjective(3, history=-1)
    with pytest.raises(ValueError, match="vlb_weight must be positive"):
        HybridObjective(SimpleWeighting(), vlb_weight=0.0)
    with pytest.raises(ValueError, match=f"the bound is for 3 timesteps, and the schedule has {STEPS}"):
        VLBObjective(3)(_fixed(), batch, noise)


def test_losses_of_all_ranks_are_taken_in_the_order_of_the_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    def gathered(parts: list[Tensor], own: Tensor) -> None:
        for rank, part in enumerate(parts):
            part.copy_(own + 10 * rank)

    for name, value in {"is_initialized": True, "get_world_size": 2}.items():
        monkeypatch.setattr(torch.distributed, name, lambda value=value: value)
    monkeypatch.setattr(torch.distributed, "all_gather", gathered)
    assert bound._of_all_ranks(torch.tensor([0, 1, 2])).tolist() == [0, 10, 1, 11, 2, 12]
