"""The Lightning module: calls the objective, sets the learning rate, keeps the averages. It holds no mathematics."""

import copy
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from data.stream import Batches
from diffusion.models import Codec, LatentObjective
from diffusion.noise import TRAINING, VALIDATION, Noise
from diffusion.objectives import Objective, optimizer_of
from diffusion.optimizers import EMA, AdamW, LearningRate, Muon, PowerEMA
from diffusion.trainable import Trainable
from diffusion.training import static
from diffusion.training.static import StaticStep, first_divergence, move_average, requested

# Boundaries in log-SNR between which the validation loss is reported separately.
LEVELS = (-4.0, 0.0, 4.0)


class TrainingDiverged(FloatingPointError):
    """The gradient is no longer finite; its text is one line that names the step."""


def raise_on_first_rank(trainer: pl.Trainer, error: Exception) -> None:
    """Stops all ranks for a reason that they agree on; only the first one says why, the others end quietly."""
    if trainer.is_global_zero:
        raise error
    raise SystemExit(0)


def level_names() -> list[str]:
    """One name for each range of log-SNR, from noise to data."""
    edges = ["-inf", *(f"{level:g}" for level in LEVELS), "inf"]
    return [f"log_snr_{low}_to_{high}" for low, high in pairwise(edges)]


def is_fused(trainer: pl.Trainer, device: torch.device) -> bool:
    """Whether the optimizer updates all weights in one kernel."""
    # For float16 a fused optimizer unscales the gradient itself, after our clipping.
    return trainer.precision != "16-mixed" and device.type in ("cpu", "cuda")


def _bound(gradient_clip_val: float | None) -> float:
    return float("inf") if gradient_clip_val is None else gradient_clip_val


class DiffusionModule(pl.LightningModule):
    """Trains a model: a denoiser, a classifier of noisy data, an autoencoder.

    Args:
        denoiser: what is trained.
        objective: its loss, `objective(denoiser, batch, noise)` -> "loss" (B,), whatever else is to be logged, (B,),
            and "log_snr" (B,) if there are noise levels.
        optimizer: makes the optimizer.
        learning_rate: warm-up and decay, a factor on the optimizer's peak learning rates.
        ema: averages the weights, or None.
        images_per_step: of one optimizer step, over all devices and accumulated batches.
        seed: of all randomness in training.
        capture: whether steps are captured as CUDA graphs: "auto", where that is possible; True or False.
    """

    diverged_at: Tensor

    def __init__(
        self,
        denoiser: Trainable,
        objective: Objective,
        optimizer: AdamW | Muon,
        learning_rate: LearningRate,
        ema: EMA | PowerEMA | None,
        images_per_step: int,
        seed: int,
        capture: bool | str = "auto",
    ) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.objective, self.optimizer, self.learning_rate = objective, optimizer, learning_rate
        self.images_per_step, self.seed, self.capture = images_per_step, seed, capture
        self.static: StaticStep | None = None  # the captured step; None computes eagerly
        self.refused = ""  # why a step could not be captured, where that was tried
        self.served: Batches | None = None  # makes the batches of their requests, where the data are on the device
        self.averaging = ema
        copies = [copy.deepcopy(denoiser).requires_grad_(False).eval() for _ in ([] if ema is None else ema.weights(1))]
        self.ema: Trainable | None = copies[0] if copies else None
        self.other_emas = nn.ModuleList(copies[1:])
        self.register_buffer("diverged_at", torch.tensor(-1), persistent=False)
        self.grad_norm = torch.zeros(())
        self.last_loss = torch.zeros(())  # of the last optimizer step
        self._losses: list[Tensor] = []  # of its accumulated batches

    @property
    def averages(self) -> list[nn.Module]:
        """The averaged denoisers, in the order of `averaging.weights`."""
        return [] if self.ema is None else [self.ema, *self.other_emas]

    @property
    def evaluated(self) -> Trainable:
        """The model that is validated and sampled: the averaged one if there is one."""
        return self.denoiser if self.ema is None else self.ema

    @property
    def codec(self) -> Codec | None:
        """What makes the latents that are diffused; None if the data themselves are."""
        return self.objective.codec if isinstance(self.objective, LatentObjective) else None

    def setup(self, stage: str) -> None:
        """Gives all ranks the last step of the first one, which measured it for a budget."""
        steps = self.trainer.strategy.broadcast(self.trainer.max_steps)
        self.trainer.fit_loop.epoch_loop.max_steps = steps

    def train(self, mode: bool = True) -> "DiffusionModule":
        """The averages stay in evaluation mode."""
        super().train(mode)
        for average in self.averages:
            average.eval()
        return self

    def on_train_batch_start(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        """Captures the step before the first batch, when all that a checkpoint restores is there."""
        if self.static is None and not self.eager_because(self.trainer):
            self._capture(batch)

    def eager_because(self, trainer: pl.Trainer) -> str:
        """Why the steps are not captured, as the end of a sentence; nothing where they can be, as far as is known."""
        return self.refused or static.eager_because(self.capture, trainer, self.objective)

    def _capture(self, batch: Mapping[str, Tensor]) -> None:
        step = StaticStep(
            self.denoiser,
            self.objective,
            self.trainer.optimizers[0],
            self.averages,
            batch,
            batches=self.trainer.accumulate_grad_batches,
            clip=_bound(self.trainer.gradient_clip_val),
            seed=self.seed,
            autocast=self.trainer.precision_plugin.forward_context,
            served=self.served,
        )
        self.refused = step.tried(self.capture)
        if self.refused:
            print(f"training step: eager, since {self.refused}", flush=True)
            return
        self.static = step
        self.diverged_at, self.last_loss, self.grad_norm = step.diverged_at, step.last_loss, step.grad_norm

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        # Dropout draws from torch's own generator: seeded from the batch's number it is the same after a resume.
        batches_done = self.trainer.fit_loop.epoch_loop.batch_progress.total.ready
        torch.manual_seed(hash((self.seed, batches_done, self.global_rank)) & 0x7FFFFFFFFFFFFFFF)
        if self.static is not None:
            self.static.fill_batch(batch)
            self.static.accumulate()
            return self.static.loss
        batch = batch if self.served is None else requested(self.served, batch)
        out = self.objective(self.denoiser, batch, Noise(self.seed, batch["serial"], TRAINING))
        loss: Tensor = out["loss"].mean()
        self._losses.append(loss.detach())
        return loss

    def on_validation_epoch_start(self) -> None:
        self._sums = torch.zeros(1, len(LEVELS) + 1, dtype=torch.float64)  # the first row counts
        self._summed: list[str] = []

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        """Noise and noise levels depend on the image's number alone, so that losses compare between epochs and runs."""
        out = self.objective(self.evaluated, batch, Noise(0, batch["serial"], VALIDATION))
        levels = torch.zeros(len(out["loss"]), dtype=torch.int64)
        self._has_levels = "log_snr" in out
        if self._has_levels:
            levels = torch.bucketize(out["log_snr"].float(), torch.tensor(LEVELS, device=self.device)).cpu()
        self._summed = [name for name in out if name != "log_snr"]
        values = torch.stack([out[name] for name in self._summed]).cpu().double()  # in this order: MPS has no float64
        if len(self._sums) == 1:
            self._sums = torch.zeros(1 + len(values), self._sums.shape[1], dtype=torch.float64)
        self._sums.index_add_(1, levels, torch.cat((torch.ones_like(values[:1]), values)))

    def on_validation_epoch_end(self) -> None:
        """One sum over the ranks, which may have seen different numbers of images."""
        counts, *rows = self._sums
        if self.trainer.world_size > 1:
            counts, *rows = self.trainer.strategy.reduce(self._sums.to(self.device), reduce_op="sum").cpu()
        totals: dict[str, float] = {}
        means: dict[str, float] = {}
        for what, sums in zip(self._summed, rows, strict=True):
            totals[f"val/{what}"] = (sums.sum() / counts.sum()).item()
            names = [f"val_{what}_by_level/{name}" for name in level_names()]
            if self._has_levels:
                means |= {name: (s / c).item() for name, s, c in zip(names, sums, counts, strict=True) if c > 0}
        self.log("val/loss", totals["val/loss"], logger=False, rank_zero_only=True)
        if self.logger is not None and not self.trainer.sanity_checking:
            self.logger.log_metrics(totals | means, step=self.global_step)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        fused = is_fused(self.trainer, self.device)
        optimizer = optimizer_of(self.optimizer, self.denoiser, self.objective, fused)
        self._peak_lrs = [group["lr"] for group in optimizer.param_groups]
        return optimizer

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clips by norm and keeps the norm for the log; notes the first step at which it is not finite."""
        trained = static.trained(self.denoiser, self.objective)
        self.grad_norm = nn.utils.clip_grad_norm_(trained, _bound(gradient_clip_val)).detach()
        if self.trainer.precision != "16-mixed":  # there the scaler skips such steps
            self.diverged_at = first_divergence(self.grad_norm, self.global_step + 1, self.diverged_at)

    def raise_if_diverged(self) -> None:
        """Raises `TrainingDiverged` if a gradient was not finite; waits for the device, so not for every step."""
        if self.diverged_at >= 0:
            stop = TrainingDiverged(
                f"the gradient is not finite at step {self.diverged_at.item()}: training stopped and nothing was saved "
                f"since; try a smaller lr or trainer.gradient_clip_val=1, from the last checkpoint if there is one, or "
                f"from the beginning"
            )
            raise_on_first_rank(self.trainer, stop)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Nothing where the step is captured: gradients are a part of it."""
        if self.static is None:
            super().backward(loss, *args, **kwargs)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
        """Nothing where the step is captured: it leaves its gradients at zero."""
        if self.static is None:
            super().optimizer_zero_grad(epoch, batch_idx, optimizer)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        factor, number = self.learning_rate_factor(), self.global_step + 1
        for group, peak in zip(optimizer.param_groups, self._peak_lrs, strict=True):
            group["lr"] = peak * factor
        weights = [] if self.averaging is None else self.averaging.weights(number)
        if self.static is not None:
            optimizer_closure()
            self.static.fill(number, [group["lr"] for group in optimizer.param_groups], weights)
            self.static.update()
            return
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.last_loss = torch.stack(self._losses).mean()
        self._losses.clear()
        with torch.no_grad():
            for average, weight in zip(self.averages, weights, strict=True):
                move_average(average, self.denoiser, weight)

    def learning_rate_factor(self) -> float:
        """The factor on the peak learning rates in the step that comes next."""
        total = self.trainer.max_steps * self.images_per_step if self.trainer.max_steps > 0 else None
        return self.learning_rate(self.global_step * self.images_per_step, total)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The kind of AdamW is that of this device, and not of the one that saved."""
        for state in checkpoint.get("optimizer_states", []):
            for group in state["param_groups"]:
                if "fused" in group:
                    group["fused"] = is_fused(self.trainer, self.trainer.strategy.root_device)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.raise_if_diverged()
