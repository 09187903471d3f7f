"""A denoiser whose calls are CUDA graphs: sampling a few images launches kernels, and little else."""

import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from diffusion.denoisers import Condition, Denoiser, Prediction, Wrapper
from diffusion.machine import graphs

# Calls below which capturing costs more than it saves.
FEWEST_CALLS = 50


class _Graph(NamedTuple):
    """A captured call: what it reads, and what it writes."""

    x_t: Tensor
    t: Tensor
    cond: Condition
    prediction: Prediction
    replay: Callable[[], None]


class CapturedDenoiser(Wrapper):
    """Another denoiser, whose `predict` is captured as a CUDA graph, once for each shape of its arguments.

    Samplers hold t on the CPU, where a graph would freeze it; here it comes to the device first, so that the
    coefficients are computed there. Under autograd, and where the call cannot be captured, the inner denoiser is called
    as it is; the latter with a warning.

    Args:
        denoiser: the inner one, frozen.
    """

    keeps_prior = True

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__(denoiser)
        self._graphs: dict[tuple[object, ...], _Graph] = {}
        self._refused = False

    def predict(self, x_t: Tensor, t: Tensor, cond: Condition) -> Prediction:
        if self._refused or torch.is_grad_enabled():
            return self.denoiser.predict(x_t, t, cond)
        tensors = {"x_t": x_t, "t": t, **cond}
        shapes = tuple((name, value.shape, value.dtype) for name, value in tensors.items())
        if shapes not in self._graphs:
            try:
                self._graphs[shapes] = self._captured(x_t, t, cond)
            except RuntimeError as error:  # of CUDA, whose reasons are many
                self._refused = True
                reason = str(error).strip().partition("\n")[0]
                warnings.warn(f"sampling without CUDA graphs, since {reason}", stacklevel=2)
                return self.denoiser.predict(x_t, t, cond)
        graph = self._graphs[shapes]
        graph.x_t.copy_(x_t)
        if t.ndim or t.device == x_t.device:
            graph.t.copy_(t)
        else:
            graph.t.fill_(t.item())  # a launch, where a copy from the host would wait
        for name, value in graph.cond.items():
            value.copy_(cond[name])
        graph.replay()
        return graph.prediction.map(torch.clone)

    def _captured(self, x_t: Tensor, t: Tensor, cond: Condition) -> _Graph:
        static_x, static_t = x_t.clone(), t.to(x_t.device, copy=True)
        static_cond = {name: value.clone() for name, value in cond.items()}
        written = self.denoiser.predict(static_x, static_t, static_cond).map(torch.clone)

        def call() -> None:
            found = self.denoiser.predict(static_x, static_t, static_cond)
            for place, value in zip(written, found, strict=True):
                if place is not None and value is not None:
                    place.copy_(value)

        graphs.warmed_up(call, x_t.device)
        return _Graph(static_x, static_t, static_cond, written, graphs.captured(call, x_t.device))


def graphed(denoiser: Denoiser, device: torch.device, calls: int) -> Denoiser:
    """The denoiser for so many calls in a row on its device: by CUDA graphs where that is one that has them."""
    return CapturedDenoiser(denoiser) if device.type == "cuda" and calls >= FEWEST_CALLS else denoiser
