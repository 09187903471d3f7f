"""Consistency tuning: turns a denoiser into a model of the end of its ODE, which draws in one call or a few."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from diffusion.denoisers import NetworkDenoiser, RegressionDenoiser
from diffusion.forward import noised
from diffusion.noise import Noise
from diffusion.objectives.base import NOISE, TIME, conditions
from diffusion.objectives.denoising import Times
from diffusion.objectives.tuning import TuningObjective
from diffusion.ranges import check_finite, check_positive
from diffusion.schedules import Schedule, expand, float64

WEIGHTINGS = ("gap", "edm")
# The smallest share of a level by which two levels may differ: nearer ones give a loss of float32's rounding alone.
NEAREST = 1e-6


class ConsistencyObjective(TuningObjective):
    """Easy Consistency Tuning (Geng et al. 2024, arXiv 2406.14548) of a trained denoiser.

    A consistency model f gives the end of the probability-flow ODE through x_t, which is the same for all states of one
    path (Song et al. 2023, arXiv 2303.01469). A sample's loss compares two states with the same data and noise, at the
    levels `sigma / alpha` v and u < v:

        w(v, u) |f(x_v) - stopgrad f(x_u)|,    u = v (1 - n(v) / q^k),    n(v) = 1 + n_max sigmoid(-v)

    where the distance is the root mean square over the dimensions (the paper takes the root of their sum). k is the
    stage, from 1 to `stages`. Where u lies below the schedule's lowest level, f(x_u) is x0 itself. So the loss of the
    first stages is nearly a denoiser's, and the gap closes from stage to stage. Validation is at the last stage.

    Dropout is the same at both states, on the CPU and on CUDA devices. The loss does not measure quality: a model with
    a constant output has a loss near zero.

    Args:
        times: distribution of v; the paper's is `ln v ~ N(-1.1, 2^2)`.
        weighting: "gap", `1 / (v - u)`, as in the authors' code for CIFAR-10, or "edm", `1 / v^2 + 1 / sigma_data^2`,
            as EDM weighs denoisers and as in their code for ImageNet.
        sigma_data: the data's standard deviation, of weighting "edm" alone.
        q: the factor by which the gap shrinks from stage to stage, above 1; the authors' code has 2 with 8 stages and 4
            with 4. `q^stages` is at most a million.
        n_max: widens the gap at low noise, up to (1 + n_max / 2) fold; the paper's k.
        stages: number of stages.
        images_per_stage: training images of each stage but the last, which lasts to the end of training.
    """

    rewinds = True

    def __init__(
        self,
        times: Times,
        weighting: str = "gap",
        sigma_data: float = 0.5,
        q: float = 2.0,
        n_max: float = 8.0,
        stages: int = 8,
        images_per_stage: int = 7200,
    ) -> None:
        super().__init__(times)
        if weighting not in WEIGHTINGS:
            raise ValueError(f"weighting must be {' or '.join(WEIGHTINGS)}, got {weighting!r}")
        check_positive(sigma_data=sigma_data)
        check_finite(q=q, n_max=n_max)
        if q <= 1:
            raise ValueError(f"q must be above 1, so that the gap closes, got {q:g}")
        if n_max < 0:
            raise ValueError(f"n_max must be at least 0, got {n_max:g}")
        if min(stages, images_per_stage) < 1:
            raise ValueError(f"stages and images_per_stage must be at least 1, got {stages} and {images_per_stage}")
        if stages * math.log(q) > -math.log(NEAREST) * (1 + 1e-12):  # a million itself may be rounded up
            raise ValueError(
                f"stages={stages} and q={q:g}: in the last stage the two levels would differ by less than a millionth "
                f"of themselves, hardly more than single precision rounds: use fewer stages, or a smaller q"
            )
        self.weighting, self.sigma_data = weighting, sigma_data
        self.q, self.n_max, self.stages, self.images_per_stage = q, n_max, stages, images_per_stage

    def forward(self, model: RegressionDenoiser, batch: Mapping[str, Tensor], noise: Noise) -> dict[str, Tensor]:
        """The loss of each sample.

        Args:
            model: in tuning.
            batch: "x", the data (B, *S), and "serial", from which the stage follows; the rest conditions the model.
            noise: the batch's random numbers.

        Returns:
            "loss" and "log_snr", each (B,).
        """
        self.check(model)
        schedule, x0, cond = model.schedule, batch["x"], conditions(batch)
        t = self.times(schedule, noise.uniform(draw=TIME))
        level, lower = _level(schedule, t), self.lower(schedule, t, batch["serial"])
        r = schedule.inverse(-2 * lower.log())  # t_min where the lower level is 0
        eps = noise.normal(x0.shape[1:], draw=NOISE)
        # The next call draws the same numbers again, so its dropout is the same.
        with torch.no_grad(), torch.random.fork_rng([x0.device] if x0.is_cuda else []):
            earlier = model(noised(schedule, x0, r, eps), r, cond)
        target = torch.where(expand(lower > 0, x0), earlier, x0)
        error = (model(noised(schedule, x0, t, eps), t, cond) - target).flatten(1)
        # At zero the gradient of a norm is finite, and that of a square root is not.
        distance = torch.linalg.vector_norm(error, dim=1) / error.shape[1] ** 0.5
        return {"loss": self.weight(level, lower).to(distance.dtype) * distance, "log_snr": schedule.log_snr(t)}

    def lower(self, schedule: Schedule, t: Tensor, serial: Tensor) -> Tensor:
        """The level u of the earlier state of samples with these serials, (B,) float64; 0 for the data themselves."""
        level = _level(schedule, t)
        stage = torch.full_like(serial, self.stages)
        if self.training:
            stage = (1 + serial // self.images_per_stage).clamp(max=self.stages)
        share = (1 + self.n_max * torch.sigmoid(-level)) / self.q ** stage.to(level)
        lower = level * (1 - share)
        return torch.where(lower < _level(schedule, t.new_full((), schedule.t_min)), 0.0, lower)

    def weight(self, level: Tensor, lower: Tensor) -> Tensor:
        """w of the two levels, each (B,)."""
        if self.weighting == "gap":
            return 1 / (level - lower)
        return level**-2 + self.sigma_data**-2

    def check(self, model: nn.Module) -> None:
        if isinstance(model, NetworkDenoiser):
            _check_low_end(model)
        super().check(model)


def _level(schedule: Schedule, t: Tensor) -> Tensor:
    """sigma / alpha, float64."""
    return (-schedule.log_snr(float64(t)) / 2).exp()


def _check_low_end(model: NetworkDenoiser) -> None:
    """Raises ValueError unless the parameterization gives x_t where there is no noise, whatever the network says."""
    low = torch.tensor(model.schedule.t_min, dtype=torch.float64, device="cpu")
    alpha, sigma = model.schedule(low)
    if (alpha * model.precond(alpha, sigma).c_skip - 1).abs() > 0.1:
        raise ValueError(
            "a consistency model gives x_t where there is no noise, and this parameterization does not by itself"
        )
