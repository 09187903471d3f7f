"""CUDA graphs: many kernels captured once, with their arguments, and launched together from then on.

A Python number is an argument like any other, so a graph repeats the one that it was captured with. What changes from
one replay to the next has to be in tensors that stay where they are; and nothing in between may wait for the device.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from diffusion.machine import memory

_ATEN = torch.ops.aten
# They answer with a number, or with a tensor whose shape depends on the values.
_QUESTIONS = {
    *(_ATEN._local_scalar_dense, _ATEN.nonzero, _ATEN.masked_select, _ATEN.unique_consecutive),
    *(_ATEN._unique, _ATEN._unique2, _ATEN.unique_dim, _ATEN.equal, _ATEN.is_nonzero),
}
_INDEXING = {_ATEN.index, _ATEN.index_put, _ATEN.index_put_}
_COPIES = {_ATEN._to_copy, _ATEN.copy_}


class NotCapturable(RuntimeError):
    """Something that cannot be part of a CUDA graph; its text says what, as the end of a sentence."""


class CaptureFailed(RuntimeError):
    """CUDA refused something in the middle of a capture; its text says what. Not everything works as before: in
    older versions torch's memory and its random numbers take the capture to go on."""


class Unasked(TorchDispatchMode):
    """Raises `NotCapturable` where the host would wait for a value of the device, which ends a capture with an error
    that CUDA does not always survive.

    Args:
        device: whose values are not asked; those of the CPU may be, beside a GPU.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Under any other mode torch.compile leaves a compiled function uncompiled, in older versions for good."""
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        operation = func.overloadpacket
        asks = operation in _QUESTIONS or (operation in _INDEXING and _selects(args[1]))
        if asks and args[0].device.type == self.device.type:
            raise NotCapturable(f"its {operation.__name__} makes the host wait for the device")
        if operation in _COPIES:
            source, target = _copied(operation, args, kwargs)
            if source != target:
                raise NotCapturable(f"it copies a tensor from {source} to {target}")
        return func(*args, **kwargs)


def _selects(indices: Any) -> bool:
    """Whether one of the indices is a mask, so that the number of rows depends on its values."""
    return any(isinstance(index, Tensor) and index.dtype == torch.bool for index in tree_leaves(indices))


def _copied(operation: Any, args: Any, kwargs: Any) -> tuple[str, str]:
    """The types of the devices that a tensor is copied from and to."""
    if operation is _ATEN.copy_:
        return args[1].device.type, args[0].device.type
    return args[0].device.type, torch.device(kwargs.get("device") or args[0].device).type


def warmed_up(function: Callable[[], object], device: torch.device) -> None:
    """Calls it twice on its device, before it is captured: first all that it allocates and looks up once comes to be.

    Raises:
        NotCapturable: the second call waits for the device.
    """
    if device.type != "cuda":
        _called_twice(function, device)
        return
    with torch.cuda.device(device):
        side = _side_stream(torch.cuda.current_device())
        side.wait_stream(torch.cuda.current_stream())
        try:
            with torch.cuda.stream(side):
                _called_twice(function, device)
        finally:  # also before what failed is undone
            torch.cuda.current_stream().wait_stream(side)


@cache
def _side_stream(index: int) -> torch.cuda.Stream:
    """One for all captures on a device: each stream has working memory of cuBLAS, and torch's own is on the device of
    its first capture."""
    return torch.cuda.Stream(index)


def _called_twice(function: Callable[[], object], device: torch.device) -> None:
    function()
    with Unasked(device):
        function()


def captured(function: Callable[[], object], device: torch.device) -> Callable[[], None]:
    """The kernels that it launches on its CUDA device, as one graph: calling the result replays them.

    Raises:
        CaptureFailed: CUDA refuses one of them.
        RuntimeError: the device's memory runs out.
    """
    with torch.cuda.device(device):
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        side = _side_stream(torch.cuda.current_device())
        try:
            # Other threads, such as one that pins batches, may allocate meanwhile.
            with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
                function()
        except RuntimeError as error:
            torch.cuda.set_stream(stream)  # a capture that cannot be ended leaves its own behind
            if memory.ran_out(error):
                raise
            raise CaptureFailed(str(error)) from error
    replay: Callable[[], None] = graph.replay
    return replay
