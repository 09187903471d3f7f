"""A Gaussian mixture that is fitted to data: k-means, then the principal directions of each cluster."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion.noise import EVALUATION, Noise, cumulative

# Draws of a sample's numbers, beside draw 0, the noise from which sampling begins.
_CLUSTER, _INSIDE, _OUTSIDE = 1, 2, 3

_LEVELS = torch.linspace(-8.0, 8.0, 33, dtype=torch.float64)  # ln(sigma / alpha), where errors are measured


_SMALLEST = 1e-6  # variance, of a pixel that never changes


_RIDGE = 1e-3  # variance of a condition's component, below which it is hardly believed


_FEWEST = 50  # data a cluster, on average: the mean of a few would be a copy of them


_PER_COMPONENT = 10  # data a component, at least: few data span little, and others are not confined to that


def clusters(z: Tensor, count: int, rounds: int = 20) -> Tensor:
    """The cluster of each row of z (n, d), (n,): Lloyd's k-means from rows drawn by k-means++ (Arthur & Vassilvitskii
    2007), the same ones each time.

    An empty cluster takes the row that is farthest from its own mean.
    """
    generator = torch.Generator().manual_seed(0)
    means = z[:1]
    nearest = (z - means).square().sum(1)
    while len(means) < count:
        chosen = torch.multinomial(nearest.clamp(min=1e-12), 1, generator=generator)
        means = torch.cat((means, z[chosen]))
        nearest = torch.minimum(nearest, (z - z[chosen]).square().sum(1))
    for _ in range(rounds):
        distances, assigned = (
            torch.cat(p) for p in zip(*(torch.cdist(q, means).min(1) for q in z.split(4096)), strict=True)
        )
        for empty in (torch.bincount(assigned, minlength=count) == 0).nonzero().flatten():
            farthest = distances.argmax()
            assigned[farthest], distances[farthest] = empty, 0.0
        sizes = torch.bincount(assigned, minlength=count)
        means = torch.zeros_like(means).index_add_(0, assigned, z) / sizes.clamp(min=1)[:, None].to(z)
    return assigned


def principal(x: Tensor, k: int) -> tuple[Tensor, int]:
    """Orthonormal directions (d, k) of centred data (n, d), the leading principal components first, and how many of
    them are that: as many as ten data each give, the rest being like any other. torch's generator stays as it was."""
    n, d = x.shape
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # of the randomised decomposition; torch.manual_seed reaches GPUs too
        _, s, v = torch.svd_lowrank(x, q=min(k + 32, n, d), niter=4)
    known = min(k, len(s), n // _PER_COMPONENT)
    return torch.linalg.qr(torch.cat((v[:, :known], torch.eye(d, k).to(v)), dim=1))[0][:, :k], known


def _least_variance(n: int) -> float:
    """Variance per dimension, of data in [-1, 1], below which n data do not prove that others vary as little."""
    return 1 / n if n < _FEWEST else _SMALLEST


class LinearGuess(nn.Module):
    """The best linear guess of data from their condition: a ridge regression on its k principal components
    (Jolliffe 1982, "A note on the use of principal components in regression"). Before `fit` it is 0.

    `mean` and `total` are the data's mean and variance per dimension.

    Args:
        c: numbers of one condition.
        d: numbers of one sample.
        k: principal components of the conditions.
    """

    told_mean: Tensor  # of the conditions; checkpoints have it by this name
    basis: Tensor
    mean: Tensor
    total: Tensor
    slopes: Tensor

    def __init__(self, c: int, d: int, k: int) -> None:
        super().__init__()
        self.register_buffer("told_mean", torch.zeros(c))
        self.register_buffer("basis", torch.eye(c, k))
        self.register_buffer("mean", torch.zeros(d))
        self.register_buffer("total", torch.ones(()))
        self.register_buffer("slopes", torch.zeros(k, d))

    def fit(self, condition: Tensor, x: Tensor) -> None:
        """Estimates it from conditions (n, c) of data (n, d)."""
        mean, condition_mean = x.mean(0), condition.mean(0)
        basis, known = principal(condition - condition_mean, self.basis.shape[1])
        z = ((condition - condition_mean) @ basis).double()
        z[:, known:] = 0
        # With a ridge: a component that hardly varied would have a huge slope, and vary more in other pictures.
        gram = z.T @ z + _RIDGE * len(z) * torch.eye(z.shape[1], dtype=z.dtype)
        self.told_mean.copy_(condition_mean)
        self.basis.copy_(basis)
        self.mean.copy_(mean)
        self.total.copy_((x - mean).double().square().mean().clamp(min=_SMALLEST))
        self.slopes.copy_(torch.linalg.solve(gram, z.T @ (x - mean).double()))

    def forward(self, condition: Tensor) -> Tensor:
        """(B, d) of conditions (B, c)."""
        dtype = condition.dtype
        known = (condition - self.told_mean.to(dtype)) @ self.basis.to(dtype)
        return self.mean.to(dtype) + known @ self.slopes.to(dtype)


class MixturePrior(nn.Module):
    """A Gaussian mixture fitted to data, and its exact denoiser.

    Inside the span of the data's k principal components V each of the K clusters that k-means finds there has its own
    mean and covariance; outside, all share the mean and the mean remaining variance (Tipping & Bishop 1999,
    "Probabilistic principal component analysis", eqs. 7 and 8). K = 1 is one Gaussian. Each class has clusters of its
    own, if there are enough, and in any case its own shares of them. Before `fit` it is N(0, I).

    Args:
        d: numbers of one sample.
        k: principal components, at most; as many as ten data each give.
        count: K.
        num_classes: labels that it is conditioned on, 0 for none.
    """

    mean: Tensor
    basis: Tensor
    rest: Tensor
    total: Tensor
    log_weights: Tensor
    means: Tensor
    variances: Tensor
    axes: Tensor
    log_errors: Tensor

    def __init__(self, d: int, k: int, count: int, num_classes: int = 0) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(d))
        self.register_buffer("basis", torch.eye(d, k))
        self.register_buffer("rest", torch.ones(()))
        # Of the clusters in each class, and in the last row in all data: what NO_LABEL, -1, means.
        self.register_buffer("log_weights", torch.full((num_classes + 1, count), -math.log(count)))
        self.register_buffer("means", torch.zeros(count, k))
        self.register_buffer("variances", torch.ones(count, k))
        self.register_buffer("axes", torch.eye(k).repeat(count, 1, 1))
        self.register_buffer("total", torch.ones(()))
        self.register_buffer("log_errors", -torch.log1p((-2 * _LEVELS).exp()))  # that of N(0, I)

    def fit(self, x: Tensor, labels: Tensor) -> None:
        """Estimates everything from data (n, d) with labels (n,), the same each time; torch's own generator is left as
        it was."""
        (n, d), k, count = x.shape, self.basis.shape[1], len(self.means)
        if n < 2:
            raise ValueError("a covariance is fitted to at least two training examples, and there is one")
        mean = x.mean(0)
        v, known = principal(x - mean, k)
        z = (x - mean) @ v
        z[:, known:] = 0
        total = (x - mean).double().square().sum() / n
        rest = (total - z.double().square().sum() / n) / max(d - known, 1)
        classes = len(self.log_weights) - 1
        # As far apart as if classes were the largest difference there is, so that each has clusters of its own.
        apart = F.one_hot(labels, classes).to(z) * (2 * total.sqrt().to(z)) if classes else z[:, :0]
        assigned = clusters(torch.cat((z, apart), dim=1), max(1, min(count, n // _FEWEST)))
        sizes = torch.bincount(assigned, minlength=count).double()
        means = torch.zeros_like(self.means).index_add_(0, assigned, z) / sizes.clamp(min=1)[:, None].to(z)
        within = z - means[assigned]
        covariances = torch.stack([(part := within[assigned == i].double()).T @ part for i in range(count)])
        # A covariance of few data is not to be believed: k data are worth as much as all clusters' common one.
        covariances = (covariances + k * covariances.sum(0) / n) / (sizes + k)[:, None, None]
        covariances += torch.diag((torch.arange(k) >= known) * rest)
        variances, axes = torch.linalg.eigh(covariances)
        self.mean.copy_(mean)
        self.basis.copy_(v)
        self.rest.copy_(rest.clamp(min=_least_variance(n)))
        # A datum that belongs to all clusters is added to each class, so that none is impossible there.
        joint = torch.zeros(len(self.log_weights), count, dtype=torch.float64)
        if len(joint) > 1:
            joint.index_put_((labels, assigned), torch.ones(n, dtype=torch.float64), accumulate=True)
            joint[:-1] += sizes / n
        joint[-1] = sizes
        self.log_weights.copy_((joint / joint.sum(1, keepdim=True)).log())
        self.means.copy_(means)
        self.variances.copy_(variances.clamp(min=_least_variance(n)))
        self.axes.copy_(axes)
        self.total.copy_((total / d).clamp(min=_least_variance(n)))
        some = torch.linspace(0, n - 1, min(n, 500)).long()
        self._measure_errors(x[some], labels[some], n)

    def _measure_errors(self, x: Tensor, labels: Tensor, n: int) -> None:
        """The mean square error per dimension of `forward` at each of the levels, which has no closed form.

        A few data, n, are themselves what was fitted, and their errors are next to none, where those of others are not.
        """
        least = _least_variance(n)
        noise = Noise(0, torch.arange(len(x)), EVALUATION)
        for i, level in enumerate(_LEVELS.exp().tolist()):
            eps = noise.normal(x.shape[1:], draw=i).to(x)
            one = torch.ones(1, 1, dtype=torch.float64, device=x.device)
            found = self(x + level * eps, one, level * one, labels)
            error = (found - x).double().square().mean().clamp(min=_SMALLEST**2)
            if n < _FEWEST:
                error = error.clamp(min=level**2 * least / (level**2 + least))  # that of N(0, least)
            self.log_errors[i] = error.log()

    def error(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The root mean square error per dimension, interpolated in ln(sigma / alpha); float64, shaped like these."""
        place = ((sigma / alpha).log() - _LEVELS[0]) / (_LEVELS[1] - _LEVELS[0])
        place = place.clamp(0, len(_LEVELS) - 1.001)
        log_errors = self.log_errors.to(place)
        below = place.long()
        return (torch.lerp(log_errors[below], log_errors[below + 1], place - below) / 2).exp()

    def draw(self, noise: Noise, labels: Tensor | None = None) -> Tensor:
        """Samples of the mixture, or of the labels' (B,), (B, d): a cluster, a point of its Gaussian in the span, and
        outside of the span white noise of the remaining variance."""
        k = self.basis.shape[1]
        shares = cumulative(self._log_weights(labels).exp())
        u = noise.uniform((1,), draw=_CLUSTER).to(shares)
        cluster = (u > shares / shares[..., -1:]).sum(1)
        z = noise.normal((k,), draw=_INSIDE).to(self.mean)
        # In all clusters, as `forward` computes: the axes of each sample's own would be k^2 numbers a sample.
        each = self.means + torch.einsum("bil,ikl->bik", z[:, None] * self.variances.sqrt(), self.axes)
        inside = each[torch.arange(len(z), device=z.device), cluster]
        outside = self.rest.sqrt() * noise.normal(self.mean.shape, draw=_OUTSIDE).to(self.mean)
        return self.mean + outside + (inside - outside @ self.basis) @ self.basis.T

    def _log_weights(self, labels: Tensor | None) -> Tensor:
        """Of the clusters, (K,), or of those of each label, (B, K)."""
        rows = len(self.log_weights)
        return self.log_weights[-1] if labels is None or rows == 1 else self.log_weights[labels % rows]

    def forward(self, x_t: Tensor, alpha: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """`E[x0 | x_t, label]` for x_t (B, d), alpha and sigma (B or 1, 1) float64, and labels (B,), if any.

        In each cluster it is linear, `m_i + alpha C_i (alpha^2 C_i + sigma^2 I)^-1 (x_t - alpha m_i)`, and the clusters
        weigh what they make x_t likely; see `diffusion.denoisers.GaussianMixtureDenoiser`.
        """
        dtype = x_t.dtype
        centred = x_t - alpha.to(dtype) * self.mean.to(dtype)
        basis, axes = self.basis.to(dtype), self.axes.to(dtype)
        z = centred @ basis
        a, variances = alpha[:, :, None], self.variances.to(alpha)
        power = a**2 * variances + sigma[:, :, None] ** 2  # (B, K, k)
        residual = torch.einsum("bik,ikl->bil", z[:, None] - a.to(dtype) * self.means.to(dtype), axes)
        log_joint = self._log_weights(labels) - 0.5 * (residual**2 / power + power.log()).sum(-1)
        inside = torch.einsum("bil,ikl->bik", (a * variances / power).to(dtype) * residual, axes) + self.means.to(dtype)
        inside = (log_joint.softmax(-1).to(dtype)[..., None] * inside).sum(1)
        gain = (alpha * self.rest / (alpha**2 * self.rest + sigma**2)).to(dtype)
        return self.mean.to(dtype) + inside @ basis.T + gain * (centred - z @ basis.T)
