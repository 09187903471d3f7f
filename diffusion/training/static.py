"""The optimizer step on tensors that stay where they are, so that a CUDA graph can repeat it.

The step of a small network is a few thousand short kernels, and launching them takes longer than they do. A captured
graph launches them at once, and freezes every Python number among their arguments. Here what changes from step to step
is a tensor that is filled before: the batch, the learning rates, the averages' weights, the step's number. The noise
follows from the batch's serial numbers, and the optimizers count their steps on the device.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from data.stream import Batches, Request
from diffusion.build import ConfigError
from diffusion.machine import graphs
from diffusion.noise import TRAINING, Noise
from diffusion.objectives import Objective
from diffusion.trainable import Trainable

PRECISIONS = ("32-true", "bf16-mixed")


def eager_because(capture: bool | str, trainer: pl.Trainer, objective: Objective) -> str:
    """Why a run's steps are not captured, as the end of a sentence; nothing where they can be.

    Args:
        capture: the setting: "auto", True or False.
        trainer: tells device and precision.
        objective: of the run.
    """
    if capture is False:
        return "capture=false"
    device = trainer.strategy.root_device.type
    if device != "cuda":
        return f"CUDA graphs need a CUDA device, and this is {device}"
    if trainer.world_size > 1:
        return f"{trainer.world_size} devices exchange gradients in each step"
    if trainer.precision not in PRECISIONS:
        return f"trainer.precision={trainer.precision} is not {' or '.join(PRECISIONS)}"
    if torch.is_anomaly_enabled() or trainer._detect_anomaly:
        return "trainer.detect_anomaly=true reads every value"
    if objective.rewinds:
        return "its objective sets the random number generator back"
    return ""


def trained(model: nn.Module, objective: nn.Module) -> list[nn.Parameter]:
    """The weights that are trained: those of the model and those that the objective has of its own."""
    return [p for module in (model, objective) for p in module.parameters() if p.requires_grad]


def first_divergence(grad_norm: Tensor, step: Tensor | int, diverged_at: Tensor) -> Tensor:
    """The first step whose gradient is not finite, () int64: this one, if `diverged_at` names none (-1) so far."""
    return torch.where(~grad_norm.isfinite() & (diverged_at < 0), step, diverged_at)


def move_average(average: nn.Module, model: nn.Module, weight: Tensor | float) -> None:
    """Moves averaged parameters towards those of the model, `average <- average + weight (model - average)`."""
    averaged: list[Tensor] = list(average.parameters())
    raw: list[Tensor] = list(model.parameters())
    if not isinstance(weight, Tensor):
        torch._foreach_lerp_(averaged, raw, weight)
        return
    # torch takes one weight for all tensors from the host alone.
    steps = torch._foreach_sub(raw, averaged)
    torch._foreach_mul_(steps, weight)
    torch._foreach_add_(averaged, steps)


def requested(served: Batches, batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The batch that a `Request` stands for."""
    made = served[Request(batch["indices"], batch["serials"], batch.get("flip"))]
    return {name: value for name, value in made.items() if isinstance(value, Tensor)}


class StaticStep:
    """One optimizer step: `accumulate` for each of its batches, then `update`; both read and write static tensors.

    Args:
        model: in training, on the device.
        objective: its loss, on the device.
        optimizer: of the weights that are `trained`, with fused AdamW.
        averages: of the model.
        batch: one batch on the device, for the shapes; with "x", or what `served` makes one of.
        batches: of an optimizer step.
        clip: bound of the gradient's norm; infinite for none.
        seed: of all randomness in training.
        autocast: makes the context of the forward pass.
        served: makes batches of "indices", "serials" and "flip", for data on the device; None where `batch` is one.
    """

    def __init__(
        self,
        model: Trainable,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        averages: Sequence[nn.Module],
        batch: Mapping[str, Tensor],
        batches: int,
        clip: float,
        seed: int,
        autocast: Callable[[], AbstractContextManager[Any]],
        served: Batches | None = None,
    ) -> None:
        self.model, self.objective, self.optimizer, self.averages = model, objective, optimizer, averages
        self.batches, self.clip, self.seed, self.autocast, self.served = batches, clip, seed, autocast, served
        self.device = device = next(model.parameters()).device
        self.batch = {name: value.clone() for name, value in batch.items()}
        self.lrs = [torch.zeros((), device=device) for _ in optimizer.param_groups]
        self.weights = [torch.zeros((), device=device) for _ in averages]
        self.number = torch.zeros((), dtype=torch.int64, device=device)
        self.diverged_at = torch.full((), -1, dtype=torch.int64, device=device)
        self.loss, self.last_loss, self.grad_norm = (torch.zeros((), device=device) for _ in range(3))
        self._losses = torch.zeros((), device=device)  # of the step's batches so far
        self._trained: list[nn.Parameter] = []
        self._gradients: list[Tensor] = []  # of these
        self.accumulate: Callable[[], None] = self._accumulate
        self.update: Callable[[], None] = self._update

    def capture(self) -> None:
        """Makes `accumulate` and `update` a CUDA graph each. Model, optimizer and averages are afterwards what they
        were, also where this fails; the next step has to be filled first.

        Raises:
            NotCapturable: the step asks the device for a value.
            CaptureFailed: CUDA refuses to capture it.
            RuntimeError: memory runs out.
        """
        kept = [(tensor, tensor.detach().clone()) for tensor in self._changing()]
        known = {id(tensor) for tensor, _ in kept}
        try:
            self.find_trained()
            graphs.warmed_up(self._step, self.device)
            accumulate, update = (graphs.captured(part, self.device) for part in (self._accumulate, self._update))
        except BaseException:
            self._clear()
            raise
        finally:
            with torch.no_grad():
                for tensor, value in kept:
                    tensor.copy_(value)
                for tensor in self._changing():
                    if id(tensor) not in known:  # a moment, a gradient or a count, which begins at zero
                        tensor.zero_()
        self.accumulate, self.update = accumulate, update

    def tried(self, capture: bool | str) -> str:
        """Captures if that is possible; else returns why not, as the end of a sentence.

        Raises:
            ConfigError: CUDA refused in the middle of it, or it is not possible and `capture` is True.
        """
        try:
            self.capture()
        except RuntimeError as error:  # of CUDA, whose reasons are many
            reason = str(error).strip().partition("\n")[0]
            if isinstance(error, graphs.CaptureFailed):
                raise ConfigError(f"CUDA refused to capture the training step: {reason}; add capture=false") from error
            if capture is True:
                raise ConfigError(f"capture=true: this step cannot be captured: {reason}; leave capture out") from error
            return f"it cannot be captured: {reason}"
        return ""

    def fill_batch(self, batch: Mapping[str, Tensor]) -> None:
        """What the next `accumulate` is to see."""
        for name, value in self.batch.items():
            value.copy_(batch[name], non_blocking=True)

    def fill(self, number: int, lrs: Sequence[float], weights: Sequence[float]) -> None:
        """What the next `update` is to use.

        Args:
            number: of the optimizer step, from 1.
            lrs: learning rate of each parameter group.
            weights: of the model in each average.
        """
        numbers = (number, *lrs, *weights)
        for tensor, value in zip((self.number, *self.lrs, *self.weights), numbers, strict=True):
            tensor.fill_(value)

    def waited(self) -> None:
        """A step of one batch, until the device has done it."""
        self.accumulate()
        self.update()
        self.loss.item()

    def _step(self) -> None:
        self._accumulate()
        self._update()

    def _accumulate(self) -> None:
        """The gradients of one batch, added to those before it."""
        loss = self._loss()
        gradients = torch.autograd.grad(loss / self.batches, self._trained)
        torch._foreach_add_(self._gradients, gradients)
        self.loss.copy_(loss.detach())
        self._losses.add_(self.loss)

    @torch.no_grad()
    def _update(self) -> None:
        """Clips, steps, averages; leaves the gradients at zero."""
        for p, gradient in zip(self._trained, self._gradients, strict=True):
            p.grad = gradient  # Lightning takes them away before each validation
        self.grad_norm.copy_(nn.utils.clip_grad_norm_(self._trained, self.clip))
        self.diverged_at.copy_(first_divergence(self.grad_norm, self.number, self.diverged_at))
        with self._rates_on_device():
            self.optimizer.step()
        for average, weight in zip(self.averages, self.weights, strict=True):
            move_average(average, self.model, weight)
        self.last_loss.copy_(self._losses / self.batches)
        self._losses.zero_()
        torch._foreach_zero_(self._gradients)

    def _loss(self) -> Tensor:
        batch = self.batch if self.served is None else requested(self.served, self.batch)
        with self.autocast():
            out = self.objective(self.model, batch, Noise(self.seed, batch["serial"], TRAINING))
        mean: Tensor = out["loss"].mean()
        return mean

    def find_trained(self) -> None:
        """Finds the parameters that the loss depends on; the optimizer leaves the others as they are."""
        parameters = trained(self.model, self.objective)
        gradients = torch.autograd.grad(self._loss(), parameters, allow_unused=True)
        self._trained = [p for p, gradient in zip(parameters, gradients, strict=True) if gradient is not None]
        self._gradients = [torch.zeros_like(p) for p in self._trained]
        self._clear()

    def _clear(self) -> None:
        for module in (self.model, self.objective):
            module.zero_grad(set_to_none=True)

    @contextmanager
    def _rates_on_device(self) -> Iterator[None]:
        """The optimizer's options as a graph needs them; in between they are plain numbers, which checkpoints hold."""
        kept = [dict(group) for group in self.optimizer.param_groups]
        for group, lr in zip(self.optimizer.param_groups, self.lrs, strict=True):
            group["lr"] = lr
            if "capturable" in group:
                group["capturable"] = True
        try:
            yield
        finally:
            for group, options in zip(self.optimizer.param_groups, kept, strict=True):
                group.update(options)

    def _changing(self) -> Iterator[Tensor]:
        """All that a step changes."""
        yield from (self.loss, self.last_loss, self.grad_norm, self.diverged_at, self._losses)
        for module in (self.model, self.objective, *self.averages):
            yield from module.parameters()
            yield from module.buffers()
        for state in self.optimizer.state.values():
            yield from (value for value in state.values() if isinstance(value, Tensor))
        yield from self._gradients
