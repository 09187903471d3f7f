"""The autoencoder's bound against exact answers: on a linear Gaussian model everything has a closed form. Float64."""

import math

import pytest
import torch
from torch import Tensor, nn

from diffusion.denoisers import GaussianMixtureDenoiser, NetworkDenoiser, X0Preconditioner
from diffusion.likelihood import HALF_BIN, gaussian_kl
from diffusion.models import Autoencoder, Codec, ELBOObjective, LatentObjective, PriorDenoiser, decoded, reparameterized
from diffusion.networks.autoencoder import AutoencoderNetwork
from diffusion.networks.mlp import MLP
from diffusion.noise import PREVIEW, Noise
from diffusion.objectives import DenoisingObjective, SimpleWeighting, UniformTimes
from diffusion.optimizers import AdamW
from diffusion.samplers import DDPMSampler, LogSNRGrid, prior
from diffusion.schedules import LinearSchedule, Schedule


class PPCA(nn.Module):
    """Probabilistic principal components, `x = W z + m + v^(1/2) eps`, at the maximum of the likelihood of some data
    (Tipping & Bishop 1999, eqs. 7 and 8), with its exact posterior `N(M^-1 W^T (x - m), v M^-1)`, M = W^T W + v I."""

    def __init__(self, data: Tensor, latents: int) -> None:
        super().__init__()
        values, vectors = torch.linalg.eigh(data.T.cov(correction=0))
        variance = values[:-latents].mean()
        self.m, self.w = data.mean(0), vectors[:, -latents:] * (values[-latents:] - variance).sqrt()
        self.log_var = nn.Parameter(variance.log())
        self.shape, self.latent_shape = (data.shape[1],), (latents,)

    def encode(self, x: Tensor) -> Tensor:
        v = self.log_var.exp()
        inverse = 1 / (self.w.square().sum(0) + v)  # of M, which is diagonal: W's columns are orthogonal
        mean = (x - self.m) @ self.w * inverse
        return torch.cat((mean, (v * inverse).log().expand_as(mean)), dim=1)

    def decode(self, z: Tensor) -> Tensor:
        return z @ self.w.T + self.m

    def log_prob(self, x: Tensor) -> Tensor:
        covariance = self.w @ self.w.T + self.log_var.exp() * torch.eye(len(self.m), dtype=x.dtype)
        return torch.distributions.MultivariateNormal(self.m, covariance).log_prob(x)


@pytest.fixture(scope="module")
def data() -> Tensor:
    """300 correlated points in five dimensions."""
    generator = torch.Generator().manual_seed(0)
    factor = torch.randn(5, 5, generator=generator, dtype=torch.float64)
    return torch.randn(300, 5, generator=generator, dtype=torch.float64) @ factor + 1


def bound(network: PPCA, x: Tensor, samples: int, repeats: int = 1, beta: float = 1.0) -> dict[str, Tensor]:
    """The objective's terms in nats for each of x, (repeats, B), with different noise in each repetition."""
    batch = {"x": x.repeat(repeats, 1)}
    noise = Noise(0, torch.arange(len(batch["x"])))
    with torch.no_grad():
        out = ELBOObjective(samples, beta, eight_bit=False)(Autoencoder(network), batch, noise)
    return {name: (5 * math.log(2) * value).unflatten(0, (repeats, len(x))) for name, value in out.items()}


@pytest.mark.parametrize("samples", [1, 7])
def test_the_bound_is_the_likelihood_where_the_posterior_is_exact(data: Tensor, samples: int) -> None:
    network = PPCA(data, 2)
    nats = bound(network, data, samples, repeats=200)["elbo_bpd"]
    error = nats.mean(1).std() / math.sqrt(len(nats))
    torch.testing.assert_close(nats.mean(), -network.log_prob(data).mean(), rtol=0, atol=4 * error.item())
    assert error < 0.02
    # Each point's bound is tight, not their mean alone.
    gaps = nats.mean(0) + network.log_prob(data)
    assert (gaps.abs() < 5 * nats.std(0) / math.sqrt(len(nats))).all()


def test_with_another_posterior_the_bound_falls_short_by_their_divergence(data: Tensor) -> None:
    network = PPCA(data, 2)
    exact = network.encode
    network.encode = lambda x: exact(x) + torch.tensor([0.3, 0.0, 0.0, -0.5], dtype=x.dtype)  # type: ignore[method-assign]
    moved, true = network.encode(data).chunk(2, 1), exact(data).chunk(2, 1)
    gap = gaussian_kl(*moved, *true).sum(1).mean()
    nats = bound(network, data, 1, repeats=400)["elbo_bpd"]
    error = nats.mean(1).std() / math.sqrt(len(nats))
    torch.testing.assert_close(nats.mean() + network.log_prob(data).mean(), gap, rtol=0, atol=4 * error.item())
    assert gap > 20 * error


def test_more_draws_estimate_the_same_with_less_spread(data: Tensor) -> None:
    one, nine = (bound(PPCA(data, 2), data[:20], k, repeats=400)["reconstruction_bpd"] for k in (1, 9))
    error = (one.std(0) ** 2 + nine.std(0) ** 2).sqrt() / 20
    assert ((one.mean(0) - nine.mean(0)).abs() < 4.5 * error).all()
    torch.testing.assert_close(
        (one.var(0) / nine.var(0)).log().mean().exp(), torch.tensor(9.0).double(), rtol=0.1, atol=0
    )


def test_the_divergence_is_its_closed_form_and_what_drawing_gives(data: Tensor) -> None:
    network, x = PPCA(data, 2), data[:4]
    mean, log_var = network.encode(x).chunk(2, dim=1)
    q, p = torch.distributions.Normal(mean, (log_var / 2).exp()), torch.distributions.Normal(0.0, 1.0)
    kl = bound(network, x, 1)["kl_bpd"][0]
    torch.testing.assert_close(kl, torch.distributions.kl_divergence(q, torch.distributions.Normal(0 * mean, 1)).sum(1))
    eps = Noise(0, torch.arange(20_000)).normal((4, 2)).double()
    z = reparameterized(mean, log_var, eps)
    ratio = (q.log_prob(z) - p.log_prob(z)).sum(2)
    assert ((ratio.mean(0) - kl).abs() < 4 * ratio.std(0) / math.sqrt(20_000)).all()


def test_beta_weighs_the_divergence_in_the_loss_alone(data: Tensor) -> None:
    plain, half = bound(PPCA(data, 2), data[:9], 1), bound(PPCA(data, 2), data[:9], 1, beta=0.5)
    assert torch.equal(plain["loss"], plain["elbo_bpd"])
    assert torch.equal(half["elbo_bpd"], plain["elbo_bpd"])
    torch.testing.assert_close(half["loss"], plain["loss"] - 0.5 * plain["kl_bpd"])


def test_a_pixel_costs_the_mass_of_its_bin() -> None:
    values = torch.arange(256).double() / 127.5 - 1
    model = Autoencoder(AutoencoderNetwork((1, 2, 2), 1, (2,), 1).double())
    x = values.view(64, 1, 2, 2)
    out = ELBOObjective()(model, {"x": x}, Noise(0, torch.zeros(64, dtype=torch.int64)))
    mean, log_var = model.moments(x).chunk(2, dim=1)
    decoded_ = model.decode(
        reparameterized(mean, log_var, Noise(0, torch.zeros(1, dtype=torch.int64)).normal((1, 1, 1), draw=1))
    )
    normal = torch.distributions.Normal(decoded_, (model.network.log_var.double() / 2).exp())
    low = torch.where(x < -0.999, 0, normal.cdf(x - HALF_BIN))
    high = torch.where(x > 0.999, 1, normal.cdf(x + HALF_BIN))
    torch.testing.assert_close(out["reconstruction_bpd"], -(high - low).log2().flatten(1).mean(1))


def test_the_variance_given_z_comes_to_the_mean_square_error_in_a_short_training() -> None:
    model, noise = Autoencoder(AutoencoderNetwork((1, 8, 8), 1, (4,), 2)), Noise(0, torch.arange(64))
    x = 0.1 * noise.normal((1, 8, 8), draw=7)
    optimizer = AdamW(lr=2e-3)(model.network, fused=False)
    for _ in range(250):
        optimizer.zero_grad()
        ELBOObjective(eight_bit=False)(model, {"x": x}, noise)["loss"].mean().backward()
        optimizer.step()
    mean, log_var = model.moments(x).chunk(2, dim=1)
    error = (model.decode(reparameterized(mean, log_var, noise.normal(mean.shape[1:], draw=1))) - x).square().mean()
    torch.testing.assert_close(model.network.log_var.exp(), error, rtol=0.25, atol=0)  # which is still falling


def test_the_priors_denoiser_is_that_of_a_standard_normal(schedule: Schedule, times: Tensor) -> None:
    exact = GaussianMixtureDenoiser(schedule, torch.zeros(1, 3).double(), torch.eye(3).double()[None])
    x_t = torch.linspace(-2, 3, 12, dtype=torch.float64).view(4, 3)
    for t in times:
        torch.testing.assert_close(PriorDenoiser(schedule)(x_t, t), exact(x_t, t))


def test_ten_steps_draw_from_the_prior() -> None:
    schedule = LinearSchedule()
    noise = Noise(0, torch.arange(4000))
    x = prior(schedule, noise, (4,)).double()
    z = DDPMSampler().sample(PriorDenoiser(schedule), x, LogSNRGrid()(schedule, 10), noise=noise)
    assert z.mean().abs() < 4 / math.sqrt(z.numel())
    assert (z.var() - 1).abs() < 4 * math.sqrt(2 / z.numel())


def test_what_is_shown_are_eight_data_their_reconstructions_and_the_prior_decoded(data: Tensor) -> None:
    network = PPCA(data, 2)
    shown = Autoencoder(network).shown(data[:20], torch.zeros(20, dtype=torch.int64), Noise(0, torch.arange(20)))
    expected = torch.stack((data[:8], network.decode(network.encode(data[:8])[:, :2])))
    torch.testing.assert_close(shown["reconstructions"], expected)
    z = Noise(0, torch.arange(64), PREVIEW).normal((2,)).double()
    torch.testing.assert_close(shown["prior"], network.decode(z).reshape(8, 8, 5).float())


@pytest.fixture
def codec(data: Tensor) -> Codec:
    codec = Codec(Autoencoder(PPCA(data, 2)), clip=False).double()
    codec.measure(codec.moments(data))
    return codec


def test_latents_have_unit_variance_and_come_back(codec: Codec, data: Tensor) -> None:
    eps = Noise(0, torch.arange(300 * 300)).normal((2,)).double()
    z = codec.latents(data.repeat(300, 1), eps)
    assert z.mean(0).abs().max() < 4 / 300
    torch.testing.assert_close(z.var(0), torch.ones(2).double(), rtol=4 * math.sqrt(2) / 300, atol=0)
    mean, log_var = codec.moments(data).chunk(2, 1)
    by_hand = codec.autoencoder.decode(reparameterized(mean, log_var, eps[:300]))
    torch.testing.assert_close(codec.decode(codec.latents(data, eps[:300])), by_hand)
    torch.testing.assert_close(codec.decode(codec.latents(data)), codec.autoencoder.decode(mean))
    assert torch.equal(codec.latents(codec.moments(data), eps[:300]), codec.latents(data, eps[:300]))


def test_states_are_shown_at_the_latents_own_variance(codec: Codec, schedule: Schedule) -> None:
    t, eps = torch.tensor(1.0).double(), Noise(0, torch.arange(3)).normal((2,)).double()
    alpha, sigma = schedule(t)
    pure = decoded(codec, schedule, sigma * eps, t)
    torch.testing.assert_close(pure, codec.decode(eps * sigma / (alpha**2 + sigma**2).sqrt()))
    assert torch.equal(decoded(codec, schedule, eps, torch.tensor(0.0).double()), codec.decode(eps))
    assert torch.equal(decoded(None, schedule, eps, t), eps)


def test_gradients_reach_the_denoiser_and_not_the_codec(codec: Codec, data: Tensor) -> None:
    model = NetworkDenoiser(MLP((2,), width=8).double(), LinearSchedule(), X0Preconditioner())
    inner = DenoisingObjective(UniformTimes(), SimpleWeighting())
    objective, noise = LatentObjective(inner, codec).train(), Noise(0, torch.arange(300))
    loss = objective(model, {"x": data}, noise)["loss"]
    loss.mean().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert all(p.grad is None and not p.requires_grad for p in objective.parameters())
    assert not any(module.training for module in codec.modules())
    # What it sees are draws of the posterior, by numbers that the loss does not use.
    z = codec.latents(data, noise.normal((2,), draw=3))
    torch.testing.assert_close(loss, inner(model, {"x": z}, noise)["loss"])


def test_pixels_that_are_decoded_stay_in_range() -> None:
    network = AutoencoderNetwork((1, 4, 4), 2, (4, 4), 1)
    z = 100 * torch.randn(3, 2, 1, 1, generator=torch.Generator().manual_seed(0))
    nn.init.normal_(network.to_data[0].weight, std=9.0)
    assert Codec(Autoencoder(network), clip=True).decode(z).abs().max() == 1
    assert Codec(Autoencoder(network), clip=False).decode(z).abs().max() > 1


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((2,), {}, "needs images"),
        ((1, 9, 9), {}, "multiples of 4"),
        ((1, 8, 8), {"patch": 1, "widths": (8,)}, "a lower resolution"),
        ((1, 8, 8), {"latent": 0}, "latent of at least 1"),
    ],
)
def test_networks_that_cannot_be_are_refused(shape: tuple[int, ...], options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AutoencoderNetwork(shape, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(("patch", "widths"), [(1, (4, 8)), (2, (4,)), (2, (4, 8)), (4, (8, 4))])
def test_the_networks_ways_fit_each_other(patch: int, widths: tuple[int, ...]) -> None:
    network = AutoencoderNetwork((3, 16, 8), 5, widths, 2, patch)
    x = torch.zeros(2, 3, 16, 8)
    moments = network.encode(x)
    factor = patch * 2 ** (len(widths) - 1)
    assert moments.shape == (2, 10, 16 // factor, 8 // factor)
    assert network.latent_shape == (5, *moments.shape[2:])
    assert network.decode(moments[:, :5]).shape == x.shape
    assert {name.split(".")[0] for name in network.ends} <= {name for name, _ in network.named_children()}
    for name in network.ends:
        network.get_submodule(name)
