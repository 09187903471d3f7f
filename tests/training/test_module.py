"""The Lightning module: one average and one learning rate for each optimizer step, whatever is accumulated."""

import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from diffusion.denoisers import EpsPreconditioner, NetworkDenoiser
from diffusion.noise import VALIDATION, Noise
from diffusion.objectives import DenoisingObjective, SimpleWeighting, UniformTimes
from diffusion.optimizers import EMA, AdamW, LearningRate, Muon
from diffusion.schedules import LinearSchedule
from diffusion.training.module import DiffusionModule, TrainingDiverged

IMAGES, STEPS = 4, 12


class Scale(nn.Module):
    """The smallest network: one weight for each coordinate."""

    num_classes = 0
    ends = ()

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.1, -0.2]))

    def forward(self, x: Tensor, c_noise: Tensor, cond: dict[str, Tensor]) -> Tensor:
        return self.weight * x


class Stream(IterableDataset[dict[str, Tensor]]):
    """Points without an end."""

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        serial = torch.arange(IMAGES)
        while True:
            x = torch.stack((serial.sin(), serial.cos()), dim=1)
            yield {"x": x, "label": torch.zeros(IMAGES, dtype=torch.int64), "serial": serial}
            serial = serial + IMAGES


class Recorder(pl.Callback):
    """The weights, the averaged weights and the learning rate after each batch."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, Tensor, Tensor, float]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        weights = [m.network.weight.detach().clone() for m in (pl_module.denoiser, pl_module.ema)]
        self.rows.append((trainer.global_step, weights[0], weights[1], trainer.optimizers[0].param_groups[0]["lr"]))


def make(lr: float, accumulate: int, decay: float = 0.5) -> DiffusionModule:
    return DiffusionModule(
        denoiser=NetworkDenoiser(Scale(), LinearSchedule(), EpsPreconditioner()),
        objective=DenoisingObjective(UniformTimes(), SimpleWeighting()),
        optimizer=AdamW(lr),
        learning_rate=LearningRate(warmup_images=20, decay="cosine"),
        ema=EMA(decay),
        images_per_step=IMAGES * accumulate,
        seed=0,
    )


def fit(module: DiffusionModule, accumulate: int, *callbacks: pl.Callback) -> None:
    trainer = pl.Trainer(
        max_steps=STEPS,
        accumulate_grad_batches=accumulate,
        callbacks=list(callbacks),
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(Stream(), batch_size=None))


@pytest.mark.parametrize("accumulate", [1, 3])
def test_average_and_learning_rate_follow_the_optimizer_steps(accumulate: int) -> None:
    recorder, module = Recorder(), make(0.05, accumulate)
    raw = average = module.denoiser.network.weight.detach().clone()
    fit(module, accumulate, recorder)
    assert [row[0] for row in recorder.rows] == [(batch + 1) // accumulate for batch in range(STEPS * accumulate)]
    for batch, (step, weight, averaged, lr) in enumerate(recorder.rows):
        if (batch + 1) % accumulate:
            assert torch.equal(weight, raw)
            assert torch.equal(averaged, average)
            continue
        # The warm-up (1 + k) / (10 + k) reaches 0.5 at k = 8.
        expected = average + (1 - min(0.5, (1 + step) / (10 + step))) * (weight - average)
        assert torch.allclose(averaged, expected, rtol=0, atol=1e-7)
        raw, average = weight, averaged

        images, total = (step - 1) * IMAGES * accumulate, STEPS * IMAGES * accumulate
        factor = (images + 1) / 21 if images < 20 else (1 + math.cos(math.pi * (images - 20) / (total - 20))) / 2
        assert lr == pytest.approx(0.05 * factor, rel=1e-12)
    assert not torch.equal(raw, average)


def test_every_group_of_the_optimizer_follows_the_course_from_its_own_peak() -> None:
    lrs = []

    class Lrs(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
            lrs.append([group["lr"] for group in trainer.optimizers[0].param_groups])

    plain, muon = make(0.05, 1), make(0.05, 1)
    muon.optimizer = Muon(lr=0.05, matrix_lr=0.4)
    fit(plain, 1, Lrs())
    fit(muon, 1, Lrs())
    alone, pairs = lrs[:STEPS], lrs[STEPS:]
    assert [pair[:1] for pair in pairs] == alone
    assert all(matrix_lr == pytest.approx(8 * lr, rel=1e-12) for lr, matrix_lr in pairs)


def test_accumulating_equals_one_batch() -> None:
    """The gradient of three batches is that of one batch of their images."""
    together, apart = make(0.05, 1), make(0.05, 3)
    batches = [batch for batch, _ in zip(Stream(), range(3), strict=False)]
    whole = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}

    def gradient(module: DiffusionModule, parts: list[dict[str, Tensor]]) -> Tensor:
        module.trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
        for part in parts:
            (module.training_step(part, 0) / len(parts)).backward()
        grad = module.denoiser.network.weight.grad
        assert grad is not None
        return grad

    assert torch.allclose(gradient(together, [whole]), gradient(apart, batches), rtol=1e-5)


def test_the_first_step_that_is_not_finite_is_named() -> None:
    module = make(0.05, 1)

    class Poison(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if trainer.global_step >= 4:
                batch["x"].fill_(math.nan)

    fit(module, 1, Poison())
    with pytest.raises(TrainingDiverged, match="not finite at step 5"):
        module.raise_if_diverged()
    with pytest.raises(TrainingDiverged, match="not finite at step 5"):
        module.on_save_checkpoint({})


def test_checkpoints_hold_raw_and_averaged_weights() -> None:
    state = make(0.05, 1).state_dict()
    raw = {name.removeprefix("denoiser.") for name in state if name.startswith("denoiser.")}
    assert "network.weight" in raw
    assert set(state) == {f"{part}.{name}" for part in ("denoiser", "ema") for name in raw}


class Lines(pl.loggers.Logger):
    """Keeps what is logged."""

    name, version = "lines", 0

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[dict[str, float]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append(dict(metrics))

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...


def validated(module: DiffusionModule) -> dict[str, float]:
    """What one validation on 64 points logs."""
    serial = torch.arange(64)
    x = torch.stack((serial.sin(), serial.cos()), dim=1)
    batch = {"x": x, "label": torch.zeros(64, dtype=torch.int64), "serial": serial}
    logger = Lines()
    trainer = pl.Trainer(
        accelerator="cpu", logger=logger, enable_checkpointing=False, enable_progress_bar=False, barebones=False
    )
    trainer.validate(module, DataLoader([batch], batch_size=None), verbose=False)
    return next(row for row in logger.rows if "val/loss" in row)


def test_validation_is_the_objective_on_the_averaged_weights_with_fixed_noise() -> None:
    module = make(lr=0.1, accumulate=1)
    assert module.ema is not None
    with torch.no_grad():
        module.denoiser.network.weight.fill_(100.0)  # validation must not look at these
    serial = torch.arange(64)
    batch = {"x": torch.stack((serial.sin(), serial.cos()), dim=1), "serial": serial}
    expected = module.objective(module.ema, batch, Noise(0, serial, VALIDATION))
    logged = validated(module)
    assert logged["val/loss"] == pytest.approx(expected["loss"].mean().item(), rel=1e-6)
    module.seed = 5  # of training alone
    assert validated(module) == logged


def test_validation_loss_by_level_belongs_to_the_level_it_names() -> None:
    module = make(lr=0.1, accumulate=1)
    assert module.ema is not None
    serial = torch.arange(64)
    batch = {"x": torch.stack((serial.sin(), serial.cos()), dim=1), "serial": serial}
    out = module.objective(module.ema, batch, Noise(0, serial, VALIDATION))
    logged = validated(module)
    ranges = {"-inf_to_-4": (-math.inf, -4), "-4_to_0": (-4, 0), "0_to_4": (0, 4), "4_to_inf": (4, math.inf)}
    for name, (low, high) in ranges.items():
        inside = (out["log_snr"] > low) & (out["log_snr"] <= high)
        assert inside.any()
        mean = out["loss"][inside].mean().item()
        assert logged[f"val_loss_by_level/log_snr_{name}"] == pytest.approx(mean, rel=1e-6)


@pytest.mark.parametrize(("device", "fused"), [("cpu", True), ("cuda", True), ("mps", False)])
def test_a_resumed_run_has_the_kind_of_adamw_of_its_device(device: str, fused: bool) -> None:
    module = SimpleNamespace(
        trainer=SimpleNamespace(precision="32-true", strategy=SimpleNamespace(root_device=torch.device(device)))
    )
    groups: list[dict[str, Any]] = [{"fused": not fused}, {"lr": 0.1}]  # of AdamW, and of Muon
    DiffusionModule.on_load_checkpoint(module, {"optimizer_states": [{"param_groups": groups}]})  # type: ignore[arg-type]
    assert groups == [{"fused": fused}, {"lr": 0.1}]
