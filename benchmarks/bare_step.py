"""The training step alone: no Lightning, no data, no logs."""

import time

import torch
from omegaconf import DictConfig
from torch import nn

from diffusion.noise import TRAINING, Noise
from diffusion.training.run import Run
from diffusion.training.setup import resolved


def bare_images_per_s(composed: DictConfig, device: str, bf16: bool, seconds: float) -> float:
    """images/s of the training step: objective with its random numbers, backward pass, clipping, optimizer, averages.

    Args:
        composed: the configuration of a model of images, whose data need not be here.
        device: "cuda" or "cpu".
        bf16: under autocast to bfloat16.
        seconds: how long to measure, after three steps.
    """
    parts = resolved(composed)
    config, module = parts.config, Run(parts, None).module.to(device).train()  # type: ignore[arg-type]
    optimizer = module.optimizer(module.denoiser.network, fused=True)
    count = config["batch_size"]
    batch = {"x": torch.rand(count, *config["dataset"]["shape"], device=device) * 2 - 1}
    batch["label"] = torch.zeros(count, dtype=torch.int64, device=device)
    noise = Noise(0, torch.arange(count, device=device), TRAINING)
    raw = list(module.denoiser.parameters())

    def steps(number: int) -> None:
        for _ in range(number):
            with torch.autocast(device, torch.bfloat16, enabled=bf16):
                loss = module.objective(module.denoiser, batch, noise)["loss"].mean()
            loss.backward()
            nn.utils.clip_grad_norm_(raw, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            with torch.no_grad():
                for average in module.averages:
                    torch._foreach_lerp_(list(average.parameters()), raw, 1e-3)
        loss.item()  # waits for the device

    steps(3)
    began, done = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        steps(5)
        done += 5
    return done * count / (time.perf_counter() - began)
