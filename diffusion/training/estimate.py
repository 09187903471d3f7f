"""How long a run will take: measured before it begins, from a copy that changes nothing of it."""

import copy
import math
import time
from collections.abc import Callable, Collection, Mapping

import pytorch_lightning as pl
import torch
from torch import Tensor

from diffusion.noise import TRAINING, Noise
from diffusion.objectives import optimizer_of
from diffusion.terminal.progress import counted, duration, images_validated, times_left
from diffusion.training.limits import Limit, check_limit, check_validation, limit_of
from diffusion.training.module import DiffusionModule, is_fused
from diffusion.training.run import Run
from diffusion.training.static import StaticStep


def step_seconds(
    module: DiffusionModule, batch: Mapping[str, Tensor], trainer: pl.Trainer, seconds: float, most: float = math.inf
) -> float:
    """Seconds of one training batch on the first device, measured on a copy: nothing of the run changes.

    Args:
        module: the run's.
        batch: one training batch, of any size.
        trainer: tells the device and the precision.
        seconds: how long to measure, after one batch of warm-up.
        most: no more batches than this are measured, but at least one.
    """
    device = trainer.strategy.root_device
    with torch.random.fork_rng(devices=[]):
        one_batch = _batch_of_a_copy(module, {name: value.to(device) for name, value in batch.items()}, trainer)
        one_batch()
        begun, count = time.perf_counter(), 0
        while count < 1 or (count < most and time.perf_counter() - begun < seconds):
            one_batch()
            count += 1
        return (time.perf_counter() - begun) / count


def _batch_of_a_copy(module: DiffusionModule, batch: Mapping[str, Tensor], trainer: pl.Trainer) -> Callable[[], None]:
    """What trains a copy of the module's model on a batch, and waits for the device."""
    device = trainer.strategy.root_device
    denoiser = copy.deepcopy(module.denoiser).to(device).train()
    objective = copy.deepcopy(module.objective).to(device).train()
    optimizer = optimizer_of(module.optimizer, denoiser, objective, is_fused(trainer, device))
    autocast = trainer.precision_plugin.forward_context
    if not module.eager_because(trainer):
        step = StaticStep(denoiser, objective, optimizer, [], batch, 1, float("inf"), module.seed, autocast)
        step.fill(1, [group["lr"] for group in optimizer.param_groups], [])
        module.refused = step.tried(module.capture)
        if not module.refused:
            return step.waited
    noise = Noise(module.seed, batch["serial"], TRAINING)

    def one_batch() -> None:
        with autocast():
            loss = objective(denoiser, batch, noise)["loss"].mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()  # waits for the device

    return one_batch


def estimate(run: Run, trainer: pl.Trainer, limit: Limit) -> float:
    """Seconds of one optimizer step: from a whole batch where that is quick, else from a part large enough to tell.

    A compiled network and a captured step are measured on whole batches alone: any other size would be compiled, or
    captured, too.
    """
    batch = device_batch(run, trainer)
    size = len(batch["x"])
    once = run.parts.settings.compile or not run.module.eager_because(trainer)
    count = size if once else 16
    seconds = 0.0
    # Nobody waits long for a short run to be measured.
    most = (limit.max_steps or math.inf) * run.parts.accumulated / 10
    # What a step costs whatever its size must not be multiplied, and a small batch is slower for each image.
    while seconds < 1 and count < size:
        seconds = step_seconds(run.module, {name: value[:count] for name, value in batch.items()}, trainer, 0.0)
        measured, count = count, 4 * count
    if seconds < 1:
        seconds, measured = step_seconds(run.module, batch, trainer, seconds=0.5, most=most), size
    return seconds * size / measured * run.parts.accumulated


def device_batch(run: Run, trainer: pl.Trainer) -> dict[str, Tensor]:
    """One device's share of the first training batch."""
    batch = next(iter(run.data.train_dataloader()))
    return {name: value[: max(len(value) // trainer.world_size, 1)] for name, value in batch.items()}


def limit_of_run(run: Run, trainer: pl.Trainer, begun: float, resumed: bool) -> Limit:
    """The limit that a run's settings give it; see `budgeted`.

    A run that is resumed has the limit that its budget gave it when it was begun.

    Raises:
        ConfigError: there is no limit, or validation has too few data.
    """
    parts, data = run.parts, run.data
    if parts.settings.compile and trainer.is_global_zero:
        print("compiling the network: the first step takes a minute or so")
    if parts.settings.budget_minutes is not None and not resumed:
        limit = budgeted(run, trainer, begun)
    else:
        limit = limit_of(parts, data.train_size)
    check_limit(limit, parts)
    check_validation(parts, data.val_size, data.eval_batch_size, trainer.world_size)
    return limit


def budgeted(run: Run, trainer: pl.Trainer, begun: float) -> Limit:
    """The limit that fits into `budget_minutes`, counted from `begun` (a `time.monotonic()`).

    Ten seconds of training tell the speed; a twentieth of the budget is kept for checkpoints, and what validation,
    previews and scores take is estimated.
    """
    minutes = run.parts.settings.budget_minutes
    assert minutes is not None
    max_time = run.parts.trainer["max_time"]
    if not trainer.is_global_zero:  # the first process measures and tells the others when training begins
        return Limit(1, max_time)
    batch = device_batch(run, trainer)
    seconds = step_seconds(run.module, batch, trainer, seconds=min(10.0, minutes * 60 / 20)) * run.parts.accumulated
    left = 0.95 * minutes * 60 - (time.monotonic() - begun)
    steps = max(int(left / seconds), 1)
    # What goes on beside so many steps is in proportion to them, so that both shrink together to what is left.
    beside = sum(seconds_beside(run, seconds, 0, steps))
    steps = max(int(steps * left / (steps * seconds + beside)), 1)
    images = counted(run.parts.images_per_step, "image")
    print(f"budget of {minutes:g} minutes: {counted(steps, 'step')} of {images} at {seconds:.3f} s each")
    return Limit(steps, max_time, seconds)


def seconds_beside(run: Run, step_s: float, done: int, last: int) -> tuple[float, float]:
    """About how long validation, and previews with scores, take from step `done` to step `last`.

    An image's forward pass takes about a third of its share of a training step of `step_s` seconds.
    """
    image_s = step_s / run.parts.images_per_step / 3
    validations = times_left(done, last, run.parts.settings.val_every)
    limit, size = run.parts.trainer.get("limit_val_batches"), run.parts.settings.batch_size
    validated = validations * images_validated(limit, run.data.val_size, size)
    drawn = sum(times_left(done, last, watcher.every) * watcher.images for watcher in run.watchers)
    return image_s * validated, image_s * drawn


def announce(run: Run, limit: Limit, trainer: pl.Trainer, presets: Collection[str], done: int = 0) -> None:
    """Prints what is about to happen, how long it will take, and which preset suits the device if that is long.

    Args:
        run: what is about to begin.
        limit: where it ends; without seconds of a step they are measured here.
        trainer: tells the devices.
        presets: experiments that there are.
        done: steps that a resumed run has taken.
    """
    seconds = limit.step_s or estimate(run, trainer, limit)
    steps, world_size, device = limit.max_steps, trainer.world_size, trainer.strategy.root_device.type
    network = run.module.denoiser.network
    millions = sum(p.numel() for p in network.parameters()) / 1e6
    batch = run.parts.settings.batch_size
    share = f", {batch // world_size} on each of {world_size} devices" if world_size > 1 else ""
    images = counted(batch, "image")
    print(f"{type(network).__name__} with {millions:.2f} M parameters on {device}; batches of {images}{share}")
    reason = run.module.eager_because(trainer)
    print(f"training step: {f'eager, since {reason}' if reason else 'captured as CUDA graphs'}")
    if steps is None:
        print(f"about {duration(seconds * 1000)} for 1000 steps; stops after trainer.max_time={limit.max_time}")
        return
    beside = dict(zip(("validation", "previews"), seconds_beside(run, seconds, done, steps), strict=True))
    total = seconds * (steps - done) + sum(beside.values())
    named = " and ".join(name for name, taken in beside.items() if taken)
    included = f", {named} included" if named else ""
    print(f"estimated time: {duration(total)} for {counted(steps - done, 'step')} ({seconds:.3g} s each){included}")
    kinds = {"cpu": ("fast", "CPU"), "cuda": ("gpu", "GPU")}
    if total > 3600 and device in kinds:
        prefix, name = kinds[device]
        preset = f"{prefix}_{run.parts.config['dataset']['name']}"
        if preset in presets:
            print(f"that is long for a {name}: python train.py experiment={preset} is made for one")
