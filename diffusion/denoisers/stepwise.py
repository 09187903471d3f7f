"""The denoiser of the first diffusion model, which has one Gaussian for each noising step."""

import torch
from torch import Tensor, nn

from diffusion.denoisers.base import Condition, Prediction
from diffusion.denoisers.network import TrainableDenoiser
from diffusion.forward import log_variances, posterior
from diffusion.schedules import Schedule, expand, float64


class StepDenoiser(TrainableDenoiser):
    """A network that gives mean and variance of the step `p(x_s | x_t)` from t = i / T to s = (i - 1) / T alone
    (Sohl-Dickstein et al. 2015, arXiv 1503.03585, section 2.2).

    With `a` and `c` from `q(x_s | x_t, x0)`, whose mean is `a x_t + c x0`, with `r = alpha_t / alpha_s` and beta as in
    `log_variances`, the network's halves F and h give

        mean = r x_t + beta^(1/2) F
        variance = beta_tilde + (beta - beta_tilde) e^h

    The mean is written as in the authors' code: F = h = 0 is right for data from N(0, I). The variance has a floor
    because the best one is beta-tilde plus `c^2 Var[x0 | x_t]`, never less, and one that collapsed to a point would
    make the KL divergence infinite. Then `D = (mean - a x_t) / c`. In the last step, to data, beta-tilde is zero, the
    mean is D, and the decoder is a Gaussian with this variance.

    Args:
        network: F and h are the halves of its output, each shaped like x.
        schedule: a discrete one.
    """

    outputs = 2  # F and h

    def __init__(self, network: nn.Module, schedule: Schedule) -> None:
        if schedule.timesteps is None:
            raise ValueError("a StepDenoiser needs a discrete schedule, and this schedule is continuous")
        super().__init__(network, schedule, "learned")
        self.timesteps = schedule.timesteps

    def check_times(self, times: Tensor) -> None:
        """Raises ValueError unless they are all steps of the schedule, one after the other."""
        steps = float64(times) * self.timesteps
        far = (steps.diff(dim=0).abs() - 1).abs() > 1e-3
        if far.any() or ((steps - steps.round()).abs() > 1e-3).any():
            raise ValueError(
                f"a StepDenoiser knows each of its {self.timesteps} steps and nothing between or across them: it goes "
                f"through every one of them"
            )

    def predict(self, x_t: Tensor, t: Tensor, cond: Condition) -> Prediction:
        wide = float64(t)
        s = ((wide * self.timesteps).round() - 1) / self.timesteps
        self.check_times(torch.stack((wide, s)))
        (alpha_t, sigma_t), (alpha_s, sigma_s) = self.schedule(wide), self.schedule(s)
        ratio = alpha_t / alpha_s
        beta = sigma_t**2 - (ratio * sigma_s) ** 2
        out = self.output(x_t, self.schedule.c_noise(t), cond)
        if out.shape[1] != 2 * x_t.shape[1]:
            raise ValueError(f"a StepDenoiser needs a network with {2 * x_t.shape[1]} outputs, this has {out.shape[1]}")
        raw, extra = out.chunk(2, dim=1)
        # D = (mean - a x_t) / c with r - a = r (sigma_t^2 - sigma_s^2) / sigma_t^2 and c = alpha_s beta / sigma_t^2.
        c_skip = ratio * (sigma_t**2 - sigma_s**2) / (alpha_s * beta)
        c_out = sigma_t**2 / (alpha_s * beta.sqrt())
        x0 = expand(c_skip.to(x_t), x_t) * x_t + expand(c_out.to(x_t), x_t) * raw
        return Prediction(x0, raw, extra)

    def step(self, x_t: Tensor, t: Tensor, s: Tensor, prediction: Prediction) -> tuple[Tensor, Tensor]:
        """The network's own mean and log-variance; raises ValueError for any s but the next."""
        assert prediction.extra is not None
        self.check_times(torch.stack((t, s)))
        mean, _ = posterior(self.schedule, x_t, prediction.x0, t, s)
        # In float32, beta and beta-tilde of a fine schedule are too near each other for their difference.
        t, s = ((float64(time) * self.timesteps).round() / self.timesteps for time in (t, s))
        log_beta, _ = log_variances(self.schedule, t, s)
        share = (self.schedule(s)[1] / self.schedule(t)[1]) ** 2  # beta-tilde / beta
        floor, room = (expand(log_beta + log_part, x_t).to(x_t) for log_part in (share.log(), torch.log1p(-share)))
        return mean, torch.logaddexp(floor, room + prediction.extra)
