"""The processes that torchrun has started: the first draws, writes and prints, the others compute shares for it."""

import datetime
import importlib
import pickle
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed

from diffusion.machine.devices import devices, started

# The others wait for the first process, which may score for long between two draws.
_PATIENCE = datetime.timedelta(days=7)


@contextmanager
def led() -> Iterator[None]:
    """In the first process the block runs, and `shared_frames` may share out work; the others compute their shares
    until it ends, and end then themselves. Without torchrun the block just runs."""
    if started() == 1:
        yield
        return
    # Its functions have the group of that time as a default. Were they first imported later, by something that torch
    # imports on demand, they would keep the ended group alive, and with it threads that may abort Python's exit.
    importlib.import_module("torch.distributed.nn.functional")
    distributed.init_process_group("gloo", timeout=_PATIENCE)
    try:
        if distributed.get_rank() > 0:
            _serve()
            raise SystemExit(0)
        try:
            yield
        finally:
            distributed.broadcast_object_list([None])
    finally:
        distributed.destroy_process_group()


def many() -> bool:
    """Whether other processes wait for work."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def shared_frames(pickled: bytes, shares: Sequence[dict[str, Any]], own: Any) -> list[Tensor]:
    """`pipeline.frames(**share)` of each share, one a process.

    Args:
        pickled: the pipeline.
        shares: arguments, those of this process first; at most as many as there are processes.
        own: computes this process's share.
    """
    distributed.broadcast_object_list([(pickled, list(shares))])
    parts: list[Any] = [None] * distributed.get_world_size()
    distributed.gather_object(own().numpy(), parts)
    return [torch.from_numpy(part) for part in parts[: len(shares)]]


def _serve() -> None:
    rank, place = distributed.get_rank(), devices("auto")[0]
    while True:
        received: list[Any] = [None]
        distributed.broadcast_object_list(received)
        if received[0] is None:
            return
        pickled, shares = received[0]
        part = None
        if rank < len(shares):
            # The first process knows accelerator=: where it computes on its CPU, so do the others.
            where = "cpu" if shares[rank]["device"] == "cpu" else place
            part = pickle.loads(pickled).frames(**shares[rank] | {"device": where}).numpy()
        distributed.gather_object(part)
