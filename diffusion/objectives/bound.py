"""The variational bound as a loss."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from diffusion.denoisers import TrainableDenoiser
from diffusion.forward import noised
from diffusion.likelihood import bits, bound_term, prior_term
from diffusion.noise import Noise, cumulative
from diffusion.objectives.base import NOISE, TIME, Objective, conditions, noising_steps
from diffusion.schedules import float64


class VLBObjective(Objective):
    """The variational bound in bits per dimension; each sample estimates the sum by one of its terms.

    The step i is drawn with a probability proportional to the root mean square of its last terms, and its term is
    divided by that probability (Nichol & Dhariwal 2021, arXiv 2102.09672, eq. 18). Until every step has a full
    history, and in validation, all steps have the same probability. The history is part of the checkpoint and the same
    on all ranks.

    Args:
        timesteps: T of the schedule.
        eight_bit: whether the data are pixels, see `diffusion.likelihood`.
        history: number of terms kept for each step; with 0 all steps have the same probability.
    """

    trains = TrainableDenoiser

    losses: Tensor
    counts: Tensor

    def __init__(self, timesteps: int | None, eight_bit: bool = True, history: int = 10) -> None:
        super().__init__()
        if timesteps is None or timesteps < 1:
            raise ValueError("a variational bound needs noising steps, and this schedule is continuous")
        if timesteps > 1_000_000:
            raise ValueError(f"timesteps must be at most a million, got {timesteps}")
        if not 0 <= history <= 1000:
            raise ValueError(f"history must be from 0 to 1000, got {history}")
        self.eight_bit = eight_bit
        self.register_buffer("losses", torch.zeros(timesteps, history))
        self.register_buffer("counts", torch.zeros(timesteps, dtype=torch.int64))

    def forward(self, model: TrainableDenoiser, batch: Mapping[str, Tensor], noise: Noise) -> dict[str, Tensor]:
        """The loss of each sample; see `DenoisingObjective`."""
        self.check(model)
        x0, steps = batch["x"], len(self.counts)
        probabilities = self.probabilities()
        u = noise.uniform(draw=TIME)
        row = torch.searchsorted(cumulative(probabilities), u.to(probabilities)).clamp(max=steps - 1)
        t, s = (row + 1).to(u) / steps, row.to(u) / steps
        x_t = noised(model.schedule, x0, t, noise.normal(x0.shape[1:], draw=NOISE))
        mean, log_var, _ = model.transition(x_t, t, s, conditions(batch))
        term = bits(bound_term(model, x0, x_t, t, s, mean, log_var, self.eight_bit))
        if self.training:
            self.remember(row, term.detach())
        loss = term / probabilities[row] + bits(prior_term(model.schedule, x0))
        return {"loss": loss.to(x0.dtype), "log_snr": model.schedule.log_snr(t)}

    def check(self, model: nn.Module) -> None:
        super().check(model)
        assert isinstance(model, TrainableDenoiser)
        if noising_steps(model.schedule) != len(self.counts):
            raise ValueError(
                f"the bound is for {len(self.counts)} timesteps, and the schedule has {model.schedule.timesteps}"
            )

    def probabilities(self) -> Tensor:
        """Of each step, (T,), float64 where the device has it."""
        steps, kept = self.losses.shape
        even = float64(self.losses.new_ones(steps)) / steps
        if not self.training or kept == 0:
            return even
        weight = float64(self.losses).square().mean(1).sqrt()
        # A thousandth is spread evenly, as in the authors' code: each step stays possible, and each quotient bounded.
        return torch.where((self.counts >= kept).all(), 0.999 * weight / weight.sum() + 0.001 * even, even)

    def remember(self, row: Tensor, term: Tensor) -> None:
        """Puts terms (B,) of the steps with these rows into the history, those of all ranks in the batch's order."""
        kept = self.losses.shape[1]
        if kept == 0:
            return
        row, term = _of_all_ranks(row), _of_all_ranks(term.to(self.losses))
        row, order = row.sort(stable=True)
        drawn = torch.zeros_like(self.counts).index_add_(0, row, torch.ones_like(row))
        earlier = torch.arange(len(row), device=row.device) - (drawn.cumsum(0) - drawn)[row]  # of the same step
        last = earlier >= drawn[row] - kept
        place = (self.counts[row] + earlier) % kept
        # The others go to a column that is dropped: a selection of unknown size would have to wait for the device.
        columns = torch.cat((self.losses, self.losses.new_zeros(len(self.losses), 1)), dim=1)
        columns[row, torch.where(last, place, kept)] = term[order]
        self.losses.copy_(columns[:, :kept])
        self.counts += drawn


def _of_all_ranks(values: Tensor) -> Tensor:
    """(B,) of this rank, or those of all ranks in the order of the samples' serials, which go round the ranks."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return values
    parts = [torch.empty_like(values) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(parts, values.contiguous())
    return torch.stack(parts, dim=1).flatten()
