"""Distribution matching distillation: turns a denoiser into a generator whose noised samples look like noised data."""

import copy
from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from diffusion.denoisers import Condition, RegressionDenoiser
from diffusion.forward import noised
from diffusion.noise import GENERATOR, Noise
from diffusion.objectives.base import CALL, NOISE, TIME, conditions
from diffusion.objectives.denoising import Times
from diffusion.objectives.tuning import TuningObjective
from diffusion.ranges import check_positive
from diffusion.samplers import Grid, begun
from diffusion.schedules import Schedule, expand, time_of

# All calls but the last are made in each training step.
MOST_CALLS = 100


class MatchingObjective(TuningObjective):
    """Distribution matching distillation (Yin et al. 2024, arXiv 2311.18828) of a trained denoiser.

    The model becomes a generator that draws in a few calls, each from a state that its calls before have led to, as in
    sampling (the backward simulation of Yin et al. 2024b, arXiv 2405.14867). The gradient of the divergence
    KL(generated || data) with both noised to the level v is the difference of two scores, so of two posterior means:
    that of the teacher D, which is the denoiser as it was, and that of a critic, a copy of it that is trained along on
    the generator's samples x:

        L = 1/2 |x - stopgrad(x - g)|^2 + w(v) |D_critic(x_v) - stopgrad x|^2
        g = (D_critic(x_v) - D(x_v)) / (mean |x - D(x_v)|)

    with means over the dimensions; w is 1 on the network's output, as in `SimpleWeighting`. The first term trains the
    generator, the second one the critic. The data themselves are not seen, but for their conditions.

    The critic has to keep up with the generator, so the generator's learning rate is `pace` times the critic's, and its
    gradient is zero for the first `warmup_images`. The loss does not measure quality.

    Args:
        times: distribution of v.
        grid: gives the times of several calls, as in sampling.
        steps: calls that are trained, all alike. One is enough where the calls after it are at levels near its own.
        start_level: sigma / alpha at the first call, which begins with the denoiser's prior; None is with noise.
        pace: learning rate of the generator as a share of the critic's, which `lr` is.
        warmup_images: generated images after which the generator is trained.
    """

    distils = True

    def __init__(
        self,
        times: Times,
        grid: Grid,
        steps: int = 1,
        start_level: float | None = None,
        pace: float = 0.1,
        warmup_images: int = 2000,
    ) -> None:
        super().__init__(times)
        if not isinstance(grid, Grid):
            raise ValueError(f"grid must be a time grid, as grid= names one, got {grid!r}")
        if not 1 <= steps <= MOST_CALLS:
            raise ValueError(f"steps must be from 1 to {MOST_CALLS}, got {steps}")
        check_positive(pace=pace)
        if warmup_images < 0:
            raise ValueError(f"warmup_images must be at least 0, got {warmup_images}")
        if start_level is not None and not start_level > 0:
            raise ValueError(f"start_level must be a level above 0, got {start_level:g}")
        self.grid, self.steps, self.start_level = grid, steps, start_level
        self.pace, self.idle_images = pace, warmup_images
        self._calls: list[float] | None = None  # their times
        self.teacher: nn.Module | None = None
        self.critic: nn.Module | None = None

    def begin(self, model: nn.Module) -> None:
        """Teacher and critic become what the model is now."""
        network = model.network
        assert isinstance(network, nn.Module)
        if self.teacher is None or self.critic is None:
            self.teacher = copy.deepcopy(network).requires_grad_(False).eval()
            self.critic = copy.deepcopy(network).eval()
        for kept in (self.teacher, self.critic):
            kept.load_state_dict(network.state_dict())

    def trained_beside(self) -> list[nn.Module]:
        assert self.critic is not None
        return [self.critic]

    def train(self, mode: bool = True) -> "MatchingObjective":
        """Teacher and critic stay without dropout: their difference is what the generator learns from."""
        super().train(mode)
        for kept in (self.teacher, self.critic):
            if kept is not None:
                kept.eval()
        return self

    def forward(self, model: RegressionDenoiser, batch: Mapping[str, Tensor], noise: Noise) -> dict[str, Tensor]:
        """The loss of each sample.

        Args:
            model: the generator, in tuning.
            batch: "x", data (B, *S) for their shape alone, and "serial", which tells the warm-up; the rest conditions
                the generator.
            noise: the batch's random numbers.

        Returns:
            "loss", "log_snr", "critic", the critic's part of the loss, and "gap", the root mean square of
            D_critic - D; each (B,).
        """
        assert self.teacher is not None and self.critic is not None
        schedule, cond = model.schedule, conditions(batch)
        x = model(*self.states(model, noise, batch["x"].shape[1:], cond), cond)
        fixed = x.detach()
        t, eps = self.times(schedule, noise.uniform(draw=TIME)), noise.normal(x.shape[1:], draw=NOISE).to(x.dtype)
        x_t = noised(schedule, fixed, t, eps)
        critic = _behind(model, self.critic)
        prediction = critic.predict(x_t, t, cond)
        with torch.no_grad():
            known = _behind(model, self.teacher)(x_t, t, cond)
            gap = prediction.x0 - known
            size = (fixed - known).flatten(1).abs().mean(1).clamp(min=1e-6)
        # Its gradient is g; its value, half of g^2, tells how far the two are apart.
        generator = (x - (fixed - gap / expand(size, x))).square().flatten(1).mean(1) / 2
        if self.training:
            generator = generator * (batch["serial"] >= self.idle_images)
        assert prediction.raw is not None
        target, _ = critic.target(fixed, eps, t, prediction)
        error = (prediction.raw - target).square().flatten(1).mean(1)
        return {
            "loss": generator + error,
            "log_snr": schedule.log_snr(t),
            "critic": error.detach(),
            "gap": gap.square().flatten(1).mean(1).sqrt(),
        }

    @torch.no_grad()
    def states(
        self, model: RegressionDenoiser, noise: Noise, shape: Sequence[int], cond: Condition
    ) -> tuple[Tensor, Tensor]:
        """A state (B, *shape) of each sample before one of the generator's calls, and its time (B,); the generator
        itself has led to it."""
        first, *later = self._times(model.schedule)
        own, u = Noise(noise.seed, noise.index, noise.stream + GENERATOR), noise.uniform(draw=CALL)
        x = x_t = begun(model, own, tuple(shape), first, cond)
        t = torch.full_like(u, first)
        for i, (before, at) in enumerate(pairwise((first, *later)), start=1):
            x0 = model(x, torch.full_like(u, before), cond)
            x = noised(model.schedule, x0, torch.full_like(u, at), own.normal(shape, step=i))
            reached = u * self.steps >= i
            x_t, t = torch.where(expand(reached, x), x, x_t), torch.where(reached, at, t)
        return x_t, t

    def _times(self, schedule: Schedule) -> list[float]:
        """The times of the calls; computed once, since that asks for values."""
        if self._calls is None:
            first = 1.0 if self.start_level is None else time_of(schedule, self.start_level)
            self._calls = [first] if self.steps == 1 else self.grid(schedule, self.steps, first)[:-1].tolist()
        return self._calls


def _behind(model: RegressionDenoiser, network: nn.Module) -> RegressionDenoiser:
    """The same denoiser around another network; all else is shared."""
    other = copy.copy(model)
    other._modules = dict(model._modules)
    other.network = network
    return other
