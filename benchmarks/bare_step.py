"""The training step alone: no Lightning, no data, no logs."""

import time
from contextlib import AbstractContextManager
from typing import Any

import torch
from omegaconf import DictConfig

from diffusion.objectives import optimizer_of
from diffusion.training.run import Run
from diffusion.training.setup import resolved
from diffusion.training.static import StaticStep


def bare_images_per_s(composed: DictConfig, device: str, bf16: bool, seconds: float, captured: bool = False) -> float:
    """images/s of the training step: objective with its random numbers, backward pass, clipping, optimizer, averages.

    Args:
        composed: the configuration of a model of images, whose data need not be here.
        device: "cuda" or "cpu".
        bf16: under autocast to bfloat16.
        seconds: how long to measure, after three steps.
        captured: as CUDA graphs.
    """
    parts = resolved(composed)
    config, module = parts.config, Run(parts, None).module.to(device).train()  # type: ignore[arg-type]
    optimizer = optimizer_of(module.optimizer, module.denoiser, module.objective, fused=True)
    count = config["batch_size"]
    batch = {"x": torch.rand(count, *config["dataset"]["shape"], device=device) * 2 - 1}
    batch["label"] = torch.zeros(count, dtype=torch.int64, device=device)
    batch["serial"] = torch.arange(count, device=device)

    def autocast() -> AbstractContextManager[Any]:
        return torch.autocast(device, torch.bfloat16, enabled=bf16, cache_enabled=False)

    step = StaticStep(module.denoiser, module.objective, optimizer, module.averages, batch, 1, 1.0, 0, autocast)
    step.fill(1, [group["lr"] for group in optimizer.param_groups], [1e-3] * len(module.averages))
    if captured:
        step.capture()
    else:
        step.find_trained()

    def steps(number: int) -> None:
        for _ in range(number):
            step.accumulate()
            step.update()
        step.loss.item()  # waits for the device

    steps(3)
    began, done = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        steps(5)
        done += 5
    return done * count / (time.perf_counter() - began)
