"""What a device has to agree with: with itself, and with the CPU. Each function measures one device of any kind."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import sample
import train
from diffusion.ode import exact_convolutions
from support.processes import checkpoint, run_folder, same
from support.scripts import TINY, call

# Dropout, because its masks come from the device's own generator.
EXACT = (*TINY, "trainer.deterministic=true", "network.dropout=0.1", "preview_every=0")


def changed_by_repeating(folder: Path, device: str, *overrides: str) -> list[str]:
    """What differs between the checkpoints of two equal deterministic runs of eight steps."""
    for name in ("first", "second"):
        _train(folder / name, device, *EXACT, "trainer.max_steps=8", *overrides)
    return differences(checkpoint(folder / "first"), checkpoint(folder / "second"))


def changed_by_resuming(folder: Path, device: str, *overrides: str) -> list[str]:
    """What differs between the checkpoints of a deterministic run of eight steps and of one resumed after four."""
    _train(folder / "whole", device, *EXACT, "trainer.max_steps=8", *overrides)
    _train(folder / "halves", device, *EXACT, "trainer.max_steps=4", *overrides)
    _train(folder / "halves", device, "resume=last", "trainer.max_steps=8")
    return differences(checkpoint(folder / "whole"), checkpoint(folder / "halves"))


def distance_from_eager(folder: Path, device: str, compiled: bool = False, *own: str) -> float:
    """Between the weights of fifty steps that are captured and those of eager ones, as a share of the way that these
    went: 1 for steps that train nothing. On a CPU none are captured.

    The learning rate changes from step to step, so that a graph that froze one goes another way. Compiled dropout draws
    other masks, so there is none then. `own` are more settings of the first steps.
    """
    settings = (*EXACT, "val_every=50", "learning_rate.warmup_images=0", "learning_rate.decay=cosine")
    settings += ("trainer.precision=32-true",)  # bfloat16 rounds elsewhere when it is compiled
    settings += ("network.dropout=0",) if compiled else ()
    capture = (f"capture={str(device == 'cuda').lower()}", f"compile={str(compiled).lower()}")
    with exact_convolutions():
        _train(folder / "begun", device, *settings, "trainer.max_steps=1", "capture=false")
        _train(folder / "eager", device, *settings, "trainer.max_steps=50", "capture=false")
        _train(folder / "ours", device, *settings, "trainer.max_steps=50", *capture, *own)
    begun, eager, ours = (_weights(folder / name) for name in ("begun", "eager", "ours"))
    return ((ours - eager).norm() / (eager - begun).norm()).item()


def _weights(folder: Path) -> Tensor:
    """Of the model and of its averages, one after another."""
    state = checkpoint(folder)["state_dict"]
    return torch.cat([state[name].double().flatten() for name in sorted(state)])


def largest_pixel_difference(folder: Path, device: str, n: int, *overrides: str) -> int:
    """The largest difference, in 1/255, between n images drawn on this device and the same drawn on the CPU.

    The model is trained so long that its network matters, and drawn in so many steps that a GPU captures its calls.
    """
    _train(folder, device, *TINY, "trainer.max_steps=200", "val_every=200", "learning_rate.warmup_images=0", *overrides)
    images = []
    for where in (device, "cpu"):
        _succeed(
            call(
                *(sample, folder, f"ckpt={run_folder(folder)}", f"n={n}", "sampler=ddim", "steps=50"),
                *(f"batch_size={n}", f"accelerator={where}", "devices=1", f"out={where}.npz"),
            )
        )
        with np.load(folder / f"{where}.npz") as arrays:
            images.append(arrays["arr_0"].astype(int))
        (folder / f"{where}.npz").unlink()
    return int(np.abs(images[0] - images[1]).max())


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """The names of the weights, averages and other parts in which two checkpoints differ by a bit."""
    names = sorted(ours["state_dict"].keys() | theirs["state_dict"].keys())
    found = [name for name in names if not same(ours["state_dict"].get(name), theirs["state_dict"].get(name))]
    return found + [key for key in ("global_step", "optimizer_states") if not same(ours[key], theirs[key])]


def _train(folder: Path, device: str, *arguments: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    before = torch.are_deterministic_algorithms_enabled()
    try:
        _succeed(call(train, folder, f"accelerator={device}", "devices=1", *arguments))
    finally:
        torch.use_deterministic_algorithms(before)  # a run leaves them on in its process


def _succeed(outcome: Any) -> None:
    if outcome.code:
        raise RuntimeError(outcome.err.strip())
