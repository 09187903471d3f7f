"""RePaint: a sampler around any other that goes back and forth at each step."""

from torch import Tensor

from diffusion.denoisers import Denoiser
from diffusion.forward import renoised
from diffusion.samplers.base import Draw, History, Sampler


class RePaintSampler(Sampler):
    """RePaint (Lugmayr et al. 2022, arXiv 2201.09865, algorithm 1): each step is taken, undone by fresh noise and taken
    again, so that the generated part of an `Inpainting` comes to agree with the known part.

    With many rounds the state at each level is a sample of the model given the noised known part. The last step, to
    data, is taken once, as in the paper. One round is the sampler itself.

    Args:
        sampler: takes the steps; a multistep method starts without history after each return.
        rounds: the paper's U, how often each step is taken.
    """

    stochastic = True

    def __init__(self, sampler: Sampler, rounds: int = 10) -> None:
        if rounds < 1:
            raise ValueError(f"resample must be at least 1, got {rounds}")
        self.sampler, self.rounds = sampler, rounds
        self.order, self.calls = sampler.order, rounds * sampler.calls
        self.stochastic = sampler.stochastic or rounds > 1
        self.from_pure_noise, self.by_transition = sampler.from_pure_noise, sampler.by_transition
        self.remembers, self.affine, self.flow_map = sampler.remembers, sampler.affine, sampler.flow_map

    def check(self, denoiser: Denoiser, times: Tensor) -> None:
        super().check(denoiser, times)
        self.sampler.check(denoiser, times)

    def step(
        self, denoiser: Denoiser, x_t: Tensor, t: Tensor, s: Tensor, history: History, draw: Draw
    ) -> tuple[Tensor, History]:
        x_s, history = self.sampler.step(denoiser, x_t, t, s, history, draw)
        for _ in range(self.rounds - 1):
            x_t = renoised(denoiser.schedule, x_s, s, t, draw())
            x_s, history = self.sampler.step(denoiser, x_t, t, s, (), draw)
        return x_s, history
