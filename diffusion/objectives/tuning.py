"""What objectives have in common that tune a trained denoiser to draw in a few calls."""

import torch
from torch import nn

from diffusion.denoisers import NetworkDenoiser, RegressionDenoiser
from diffusion.objectives.base import Objective
from diffusion.objectives.denoising import Times


class TuningObjective(Objective):
    """Makes of a trained denoiser one whose answer to x_t is a sample, for `ConsistencySampler`.

    Args:
        times: distribution of the noise levels.
    """

    trains = RegressionDenoiser
    tunes = True

    def __init__(self, times: Times) -> None:
        super().__init__()
        self.times = times

    def check(self, model: nn.Module) -> None:
        super().check(model)
        assert isinstance(model, RegressionDenoiser)
        if model.variance == "learned":
            raise ValueError("this objective does not train the variance, but the denoiser has a learned one")
        if model.steps:
            raise ValueError("this objective needs noise levels between the steps for which the network has weights")
        if model.schedule.log_snr(torch.ones((), device="cpu")).isinf():
            raise ValueError("this objective needs a finite sigma / alpha at t = 1: the schedule has zero terminal SNR")
        self.times.check(model.schedule)
        if isinstance(model, NetworkDenoiser):
            _check_high_end(model)


def _check_high_end(model: NetworkDenoiser) -> None:
    """Raises ValueError if the parameterization multiplies the network's error by much at t = 1."""
    alpha, sigma = model.schedule(torch.ones((), dtype=torch.float64, device="cpu"))
    c_out = model.precond(alpha, sigma).c_out.abs()
    if c_out > 0.5 * sigma / alpha:
        raise ValueError(
            f"one call begins at t = 1, where this parameterization multiplies the network's error by {c_out:.3g}"
        )
