"""Sampling on several devices, one process for each: processes that this one starts, or torchrun has started."""

import functools
import math
import multiprocessing
import pickle
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffusion.machine import heap
from diffusion.sampling import ranks
from diffusion.sampling.pipeline import Pipeline


def frames_on(
    devices: Sequence[str],
    pipeline: Pipeline,
    numbers: Sequence[int],
    seed: int = 0,
    label: int | Sequence[int] | None = None,
    batch_size: int = 64,
    keep: Sequence[int] = (-1,),
    show: str = "x_t",
    after_step: Callable[[], object] = lambda: None,
) -> Tensor:
    """`pipeline.frames(numbers, ...)` with the samples shared out over devices, one process each.

    `after_step` is called for the first device's share, by this process.

    Raises:
        ValueError: some samples are not finite.
    """
    frames = _shared(devices, pipeline, numbers, seed, label, batch_size, keep, show, after_step)
    check_finite(frames[-1])
    return frames


def check_finite(samples: Tensor) -> None:
    """Raises ValueError if some of the samples (n, *S) are not finite: bytes, which they become, always are."""
    bad = (~samples.isfinite()).flatten(1).any(1).sum().item()
    if bad:
        raise ValueError(
            f"{bad} of {len(samples)} samples are not finite: the model or its sampler diverged, or a setting such as "
            f"guidance= or noise= is too large; nothing was done with them"
        )


def _shared(
    devices: Sequence[str],
    pipeline: Pipeline,
    numbers: Sequence[int],
    seed: int,
    label: int | Sequence[int] | None,
    batch_size: int,
    keep: Sequence[int],
    show: str,
    after_step: Callable[[], object],
) -> Tensor:
    # No more processes than batches: each takes seconds to begin.
    count = min(len(devices), math.ceil(len(numbers) / batch_size))
    shares = [numbers[rank::count] for rank in range(count)]

    def share(rank: int) -> dict[str, Any]:
        return {
            "n": shares[rank], "seed": seed, "label": label, "batch_size": batch_size, "device": devices[rank],
            "keep": keep, "show": show,
        }  # fmt: skip

    if len(shares) == 1:
        return pipeline.frames(**share(0), after_step=after_step)
    # As bytes: torch would move the weights to shared memory under the feet of this process, which computes with them.
    pickled = pickle.dumps(pipeline)
    if ranks.many():
        own = functools.partial(pipeline.frames, **share(0), after_step=after_step)
        return _together(ranks.shared_frames(pickled, [share(rank) for rank in range(count)], own))
    with ProcessPoolExecutor(len(shares) - 1, multiprocessing.get_context("spawn")) as pool:
        others = [pool.submit(_frames, pickled, share(rank)) for rank in range(1, len(shares))]
        parts = [pipeline.frames(**share(0), after_step=after_step)]
        parts += [torch.from_numpy(other.result()) for other in others]
    return _together(parts)


def _together(parts: Sequence[Tensor]) -> Tensor:
    """Shares (k, n_i, *S) as one (k, n, *S): sample j is in share j modulo their number."""
    frames = parts[0].new_empty(len(parts[0]), sum(part.shape[1] for part in parts), *parts[0].shape[2:])
    for rank, part in enumerate(parts):
        frames[:, rank :: len(parts)] = part
    return frames


def _frames(pickled: bytes, arguments: dict[str, Any]) -> np.ndarray:
    """One share, in a process of its own; the pipeline comes from the parent process."""
    heap.keep()
    pipeline: Pipeline = pickle.loads(pickled)
    return pipeline.frames(**arguments).numpy()
