"""A network behind the denoiser of a fitted mixture: exact on such data, EDM before it is fitted."""

import pytest
import torch
from torch import Tensor, nn

from diffusion.denoisers import EDMPreconditioner, GaussianMixtureDenoiser, NetworkDenoiser, ResidualDenoiser
from diffusion.denoisers.fitted import _LEVELS, LinearGuess, MixturePrior, clusters
from diffusion.networks.unet import UNet
from diffusion.noise import Noise
from diffusion.objectives import ConditionDropout, DenoisingObjective, LognormalTimes, SimpleWeighting
from diffusion.schedules import (
    CosineSchedule,
    FlowSchedule,
    Schedule,
    VarianceExplodingSchedule,
    VPSchedule,
    expand,
    float64,
)

D = 6


class Half(nn.Module):
    """Answers with a fixed function of the first half of its channels."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor, dtype=torch.float64))

    def forward(self, x: Tensor, c_noise: Tensor, cond: dict[str, Tensor]) -> Tensor:
        return self.factor * torch.tanh(x[:, :D])


@pytest.fixture
def data() -> Tensor:
    """Correlated numbers away from zero."""
    generator = torch.Generator().manual_seed(1)
    mix = torch.randn(D, D, generator=generator, dtype=torch.float64)
    return 0.3 + torch.randn(2000, D, generator=generator, dtype=torch.float64) @ mix


@pytest.fixture
def islands(data: Tensor) -> Tensor:
    """Three clusters, far apart, of 1000, 500 and 500 points."""
    centres = 30 * torch.eye(D, dtype=torch.float64)[torch.arange(len(data)).clamp(min=500) % 4 % 3]
    return data + centres


def residual(
    schedule: Schedule,
    data: Tensor,
    factor: float = 0.0,
    clusters: int = 1,
    components: int = D,
    labels: Tensor | None = None,
) -> ResidualDenoiser:
    network = Half(factor)
    network.num_classes = 0 if labels is None else int(labels.max()) + 1
    denoiser = ResidualDenoiser(network, schedule, list(data.shape[1:]), clusters, components).double()
    denoiser.prepare(data, {"label": torch.zeros(len(data), dtype=torch.int64) if labels is None else labels})
    return denoiser


def whole(prior: MixturePrior, schedule: Schedule, row: int = -1) -> GaussianMixtureDenoiser:
    """The same mixture, or that of a label, written out in all dimensions."""
    outside = torch.eye(D, dtype=torch.float64) - prior.basis @ prior.basis.T
    inside = torch.einsum("dk,ikl,il,iml,em->ide", prior.basis, prior.axes, prior.variances, prior.axes, prior.basis)
    means = prior.mean + prior.means @ prior.basis.T
    return GaussianMixtureDenoiser(schedule, means, inside + prior.rest * outside, prior.log_weights[row].exp())


@pytest.mark.parametrize("schedule", [VarianceExplodingSchedule(), VPSchedule(), FlowSchedule()])
def test_one_cluster_is_the_exact_denoiser_of_the_datas_gaussian(schedule: Schedule, data: Tensor) -> None:
    exact = GaussianMixtureDenoiser(schedule, data.mean(0)[None], data.T.cov(correction=0)[None])
    t = torch.tensor([schedule.t_min, 0.2, 0.7, 1.0], dtype=torch.float64)
    x_t = data[:4] + schedule(t)[1][:, None]
    torch.testing.assert_close(residual(schedule, data)(x_t, t), exact(x_t, t), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("components", [D, 4])
def test_several_clusters_are_the_exact_denoiser_of_their_mixture(islands: Tensor, components: int) -> None:
    schedule = VPSchedule()
    denoiser = residual(schedule, islands, clusters=3, components=components)
    t = torch.linspace(0.05, 1, 20, dtype=torch.float64)
    x_t = schedule(t)[0][:, None] * islands[:20] + schedule(t)[1][:, None]
    torch.testing.assert_close(denoiser(x_t, t), whole(denoiser.prior, schedule)(x_t, t), rtol=1e-6, atol=1e-6)


def test_fitting_finds_clusters_their_shares_and_their_means(islands: Tensor) -> None:
    prior = residual(VPSchedule(), islands, clusters=3).prior
    nearest = islands.argmax(1)  # the coordinate along which an island lies
    means = prior.mean + prior.means @ prior.basis.T
    for i in range(3):
        found = means.argmax(1) == i
        torch.testing.assert_close(prior.log_weights[-1, found].exp().item(), (nearest == i).double().mean().item())
        torch.testing.assert_close(means[found][0], islands[nearest == i].mean(0))


def test_a_label_chooses_the_shares_of_its_class_and_none_those_of_all(islands: Tensor) -> None:
    schedule, nearest = VPSchedule(), islands.argmax(1)
    labels = (nearest == 2).long()  # class 0 is two of the islands, class 1 the third
    denoiser = residual(schedule, islands, clusters=3, labels=labels)
    t = torch.full((30,), 0.9, dtype=torch.float64)
    x_t = schedule(t)[1][:, None] * islands[:30] / 30
    for label in (0, 1, -1):
        found = denoiser(x_t, t, {"label": torch.full((30,), label)})
        torch.testing.assert_close(found, whole(denoiser.prior, schedule, label)(x_t, t), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(denoiser(x_t, t, {"label": torch.full((30,), -1)}), denoiser(x_t, t))
    far = torch.ones((), dtype=torch.float64)  # where nothing is seen, D is the mean of what is possible
    pure = denoiser(torch.zeros(1, D, dtype=torch.float64), far, {"label": torch.ones(1, dtype=torch.int64)})
    torch.testing.assert_close(pure[0], islands[labels == 1].mean(0), rtol=0, atol=0.5)


def test_classes_have_clusters_of_their_own_though_they_lie_in_one_another(data: Tensor) -> None:
    labels = torch.arange(len(data)) % 2
    shares = residual(VPSchedule(), data, clusters=4, labels=labels).prior.log_weights[:2].exp()
    assert (shares.min(0).values < 0.01).all()
    assert (shares > 0).all()  # none is impossible in a class


def test_the_target_makes_it_exact_and_has_unit_variance(islands: Tensor) -> None:
    schedule = VPSchedule()
    denoiser = residual(schedule, islands, clusters=3)
    eps = torch.randn(islands.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for level in (schedule.t_min, 0.01, 0.3, 0.6):
        t = torch.full((len(islands),), level, dtype=torch.float64)
        alpha, sigma = schedule(t)
        prediction = denoiser.predict(alpha[:, None] * islands + sigma[:, None] * eps, t, {})
        target, c_out = denoiser.target(islands, eps, t, prediction)
        torch.testing.assert_close(prediction.x0 + c_out[:, None] * target, islands, rtol=0, atol=1e-8)
        assert target.square().mean().item() == pytest.approx(1, abs=0.1)


def test_the_measured_error_of_one_gaussian_is_the_trace_of_the_posterior_covariance(data: Tensor) -> None:
    prior = residual(VPSchedule(), data).prior
    variances = torch.linalg.eigvalsh(data.T.cov(correction=0))
    one = torch.ones(1, 1, dtype=torch.float64)
    for level in (0.01, 0.3, 1.7, 20.0):
        exact = (variances * level**2 / (variances + level**2)).mean().sqrt().item()
        assert prior.error(one, level * one).item() == pytest.approx(exact, rel=0.05)


def test_what_the_network_sees_has_unit_variance_at_every_level(data: Tensor) -> None:
    denoiser, seen = residual(VPSchedule(), data), []
    denoiser.network.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    generator = torch.Generator().manual_seed(3)
    for level in (1e-3, 0.3, 1.0):
        t = torch.tensor(level, dtype=torch.float64)
        alpha, sigma = denoiser.schedule(t)
        denoiser(alpha * data + sigma * torch.randn(data.shape, generator=generator, dtype=torch.float64), t)
        assert seen[-1][:, :D].square().mean().item() == pytest.approx(1, abs=0.05)
        assert seen[-1][:, D:].square().mean().item() <= 1.05


def test_before_it_is_fitted_it_is_edm_with_data_of_unit_variance() -> None:
    schedule, x_t = VarianceExplodingSchedule(), torch.linspace(-3, 3, 5 * D, dtype=torch.float64).view(5, D)
    t = torch.linspace(0.05, 1, 5, dtype=torch.float64)
    edm = NetworkDenoiser(Half(0.7), schedule, EDMPreconditioner(1.0))
    ours = ResidualDenoiser(Half(0.7), schedule, [D], 3).double()
    torch.testing.assert_close(ours(x_t, t), edm(x_t, t), rtol=2e-2, atol=1e-3)  # its error is interpolated
    torch.testing.assert_close(ours.c_noise(t), edm.precond.c_noise(schedule, t))


def test_fewer_components_keep_the_total_variance(data: Tensor) -> None:
    prior = residual(VPSchedule(), data, components=2).prior
    variances = torch.linalg.eigvalsh(data.T.cov(correction=0))
    torch.testing.assert_close(prior.variances[0], variances[-2:])
    torch.testing.assert_close(prior.rest, variances[:-2].mean())
    torch.testing.assert_close(prior.total, variances.mean())


def test_fewer_data_than_components_or_clusters_still_give_a_denoiser(data: Tensor) -> None:
    denoiser = residual(VPSchedule(), data[:3], clusters=5)
    basis = denoiser.prior.basis
    torch.testing.assert_close(basis.T @ basis, torch.eye(D, dtype=torch.float64), rtol=0, atol=1e-10)
    assert denoiser(data[:9], torch.tensor(0.5, dtype=torch.float64)).isfinite().all()


def test_few_data_do_not_make_it_sure_of_others() -> None:
    everyone = torch.randn(60, 40, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    prior = MixturePrior(40, 40, 1).double()
    prior.fit(everyone[:30], torch.zeros(30, dtype=torch.int64))
    one, eps = torch.ones(1, 1, dtype=torch.float64), torch.randn(30, 40, dtype=torch.float64)
    error = (prior(everyone[30:] + 0.1 * eps, one, 0.1 * one) - everyone[30:]).square().mean()
    assert error < 2 * prior.error(one, 0.1 * one) ** 2


def test_data_that_are_all_the_same_leave_something_to_divide_by() -> None:
    prior = MixturePrior(D, D, 1)
    prior.fit(torch.full((4, D), 0.5), torch.zeros(4, dtype=torch.int64))
    # Four data do not prove that others vary by less than 1/4 a dimension: the error is at least that of N(0, 1/4).
    level2 = _LEVELS.exp().square()
    least = (level2 / 4 / (level2 + 1 / 4)).log().to(prior.log_errors)
    assert (prior.log_errors >= least - 1e-6).all()
    torch.testing.assert_close(prior.log_errors[_LEVELS > 0], least[_LEVELS > 0])


def test_fitting_leaves_torchs_generator_alone_and_repeats_itself(islands: Tensor) -> None:
    one, other = MixturePrior(D, 3, 2).double(), MixturePrior(D, 3, 2).double()
    state, labels = torch.get_rng_state(), torch.zeros(len(islands), dtype=torch.int64)
    one.fit(islands, labels)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    other.fit(islands, labels)
    for a, b in zip(one.buffers(), other.buffers(), strict=True):
        assert torch.equal(a, b)


def test_an_empty_cluster_takes_the_row_farthest_from_its_mean() -> None:
    z = torch.tensor([[0.0], [0.0], [0.0], [9.0]])  # two of the three rows that clusters begin from are the same
    assert clusters(z, 3).unique().numel() == 3


def test_the_objective_is_the_weighted_error_of_the_denoiser(data: Tensor) -> None:
    schedule, index = VarianceExplodingSchedule(), torch.arange(50)
    denoiser = residual(schedule, data, factor=0.4)
    objective = DenoisingObjective(LognormalTimes(), SimpleWeighting())
    out = objective(denoiser, {"x": data[:50], "serial": index}, Noise(0, index))
    t = schedule.inverse(out["log_snr"])
    alpha, sigma = schedule(float64(t))
    x_t = data[:50] + sigma[:, None] * Noise(0, index).normal((D,), draw=1)
    error = (denoiser(x_t, t) - data[:50]).square().mean(1) / denoiser.prior.error(alpha, sigma) ** 2
    torch.testing.assert_close(out["loss"], error, rtol=1e-4, atol=1e-6)


def test_images_pass_a_network_with_twice_the_channels() -> None:
    network = UNet((2, 8, 8), (8, 8), attention=(), in_channels=4)
    denoiser = ResidualDenoiser(network, VPSchedule(), [2, 8, 8], clusters=2, components=16)
    x = torch.rand(20, 2, 8, 8) * 2 - 1
    denoiser.prepare(x, {"label": torch.zeros(20, dtype=torch.int64)})
    assert denoiser(x, torch.tensor(0.5)).shape == x.shape


class Told(nn.Module):
    """Told an image, says nothing."""

    condition_channels = 2

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x: Tensor, c_noise: Tensor, cond: dict[str, Tensor]) -> Tensor:
        return self.factor * x[:, :1]


@pytest.fixture
def conditioned(data: Tensor) -> Tensor:
    """An image beside each of the data as conditions are: values, here six, and a channel of ones."""
    generator = torch.Generator().manual_seed(6)
    values = data @ torch.randn(D, D, generator=generator, dtype=torch.float64) + torch.randn(
        len(data), D, generator=generator, dtype=torch.float64
    )
    values *= 100  # so that the ridge is small beside their variance
    return torch.stack((values, torch.ones_like(values)), dim=1).view(-1, 2, 2, 3)


def test_it_is_exact_where_image_and_data_are_gaussian_together(data: Tensor, conditioned: Tensor) -> None:
    schedule, label = VPSchedule(), torch.zeros(len(data), dtype=torch.int64)
    denoiser = ResidualDenoiser(Told(), schedule, [1, 2, 3], clusters=1, components=D).double()
    denoiser.prepare(data.view(-1, 1, 2, 3), {"label": label, "image": conditioned})
    c = conditioned[:, 0].flatten(1)
    joint = torch.cat((data, c), dim=1).T.cov(correction=0)
    xx, xc, cc = joint[:D, :D], joint[:D, D:], joint[D:, D:]
    for level in (schedule.t_min, 0.2, 0.7, 1.0):
        t = torch.tensor(level, dtype=torch.float64)
        alpha, sigma = schedule(t)
        x_t = alpha * data[:5] + sigma
        # The mean of x0 given x_t and c, all three Gaussian together.
        noised = alpha**2 * xx + sigma**2 * torch.eye(D).double()
        seen = torch.cat((torch.cat((noised, alpha * xc), 1), torch.cat((alpha * xc.T, cc), 1)))
        off = torch.cat((x_t - alpha * data.mean(0), c[:5] - c.mean(0)), dim=1)
        exact = data.mean(0) + off @ torch.linalg.solve(seen, torch.cat((alpha * xx, xc), 1).T)
        found = denoiser(x_t.view(5, 1, 2, 3), t, {"image": conditioned[:5]})
        torch.testing.assert_close(found.flatten(1), exact, rtol=1e-5, atol=1e-5)
        # What the image says lowers the error, most where x_t says little, and that is what targets are scaled by.
        ratio = denoiser.prior.error(alpha, sigma) / residual(schedule, data).prior.error(alpha, sigma)
        assert ratio < (0.5 if level > 0.5 else 1.001)
        x0, eps, batch_t = data[:500].view(-1, 1, 2, 3), torch.ones(500, 1, 2, 3).double(), t.expand(500)
        prediction = denoiser.predict(alpha * x0 + sigma * eps, batch_t, {"image": conditioned[:500]})
        target, c_out = denoiser.target(x0, eps, batch_t, prediction)
        torch.testing.assert_close(prediction.x0 + expand(c_out, x0) * target, x0, rtol=1e-9, atol=1e-9)


def test_a_network_that_is_given_images_sees_the_data_themselves_at_unit_variance(
    data: Tensor, conditioned: Tensor
) -> None:
    denoiser, seen = ResidualDenoiser(Told(), VPSchedule(), [1, 2, 3]).double(), []
    denoiser.prepare(data.view(-1, 1, 2, 3), {"label": torch.zeros(len(data), dtype=torch.int64), "image": conditioned})
    denoiser.network.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    t = torch.tensor(VPSchedule().t_min, dtype=torch.float64)
    denoiser(data.view(-1, 1, 2, 3), t, {"image": conditioned})
    whitened = ((data - data.mean(0)) / (data - data.mean(0)).square().mean().sqrt()).view(-1, 1, 2, 3)
    for channel in (seen[0][:, :1], seen[0][:, 1:]):  # there P is nearly x0
        torch.testing.assert_close(channel, whitened, rtol=0, atol=0.05)


def test_what_images_say_of_few_data_is_not_believed(data: Tensor, conditioned: Tensor) -> None:
    denoiser = ResidualDenoiser(Told(), VPSchedule(), [1, 2, 3]).double()
    denoiser.prepare(data[:3].view(-1, 1, 2, 3), {"label": torch.zeros(3, dtype=torch.int64), "image": conditioned[:3]})
    assert denoiser.guess is not None
    torch.testing.assert_close(
        denoiser.guess(conditioned[5:6].flatten(1))[0], data[:3].mean(0)
    )  # no component is known
    assert denoiser(data[:9].view(-1, 1, 2, 3), torch.tensor(0.5).double(), {"image": conditioned[:9]}).isfinite().all()


def test_a_component_that_hardly_varied_is_hardly_believed(data: Tensor) -> None:
    guess = LinearGuess(2, D, 2).double()
    said = torch.stack((data[:, 0], 1e-3 * data[:, 1]), dim=1)
    guess.fit(said, data)
    usual, off = said.mean(0), torch.tensor([0.0, 1.0], dtype=torch.float64)  # hundreds of its standard deviations
    assert (guess((usual + off)[None]) - guess(usual[None])).abs().max() < 10 * data.std(0).max()


def test_an_image_that_is_counted_on_cannot_be_kept_from_it() -> None:
    denoiser = ResidualDenoiser(Told(), VarianceExplodingSchedule(), [1, 2, 3])
    objective = DenoisingObjective(LognormalTimes(), SimpleWeighting())
    objective.check(denoiser)
    with pytest.raises(ValueError, match="always needs its image"):
        ConditionDropout(objective, 0.1).check(denoiser)


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"variance": "learned"}, "learns no variance"), ({"components": 0}, "components"), ({"clusters": 0}, "clusters")],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ResidualDenoiser(Half(0.0), VPSchedule(), [D], **settings)  # type: ignore[arg-type]


def test_one_training_example_is_refused_before_anything_is_fitted() -> None:
    with pytest.raises(ValueError, match="at least two"):
        MixturePrior(D, 2, 1).fit(torch.zeros(1, D), torch.zeros(1, dtype=torch.int64))


def test_a_schedule_that_begins_without_any_data_is_refused() -> None:
    with pytest.raises(ValueError, match="zero terminal SNR"):
        ResidualDenoiser(Half(0.0), CosineSchedule(20, zero_terminal_snr=True), [D])


@pytest.mark.parametrize("kind", ["alike", "mirrored", "black"])
@pytest.mark.parametrize("n", [2, 3])
def test_a_few_data_do_not_make_the_loss_of_others_explode(n: int, kind: str) -> None:
    # A mixture of two or three images is sure of them; an error of 1e-6 in c_out made losses of 1e9 of any others.
    prior = MixturePrior(16, k=16, count=4)
    kinds = {"alike": torch.full((n, 16), 0.3), "black": -torch.ones(n, 16), "mirrored": torch.eye(16)[[0, 1, 0][:n]]}
    data = kinds[kind]
    prior.fit(data, torch.zeros(n).long())
    other = -data[:1].flip(1)
    noise = Noise(0, torch.arange(1))
    for level in (1e-2, 0.1, 1.0, 10.0):
        sigma = torch.full((1, 1), level, dtype=torch.float64)
        one = torch.ones_like(sigma)
        found = prior(other + level * noise.normal((16,)), one, sigma)
        assert ((found - other) / prior.error(one, sigma).float()).square().mean() < 50
