"""CUDA graphs: many kernels captured once, with their arguments, and launched together from then on.

A Python number is an argument like any other, so a graph repeats the one that it was captured with. What changes from
one replay to the next has to be in tensors that stay where they are; and nothing in between may wait for the device.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

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


class Unasked(TorchDispatchMode):
    """Raises `NotCapturable` where the host would wait for a value of the device, which ends a capture with an error
    that CUDA does not always survive.

    Args:
        device: whose values are not asked; those of the CPU may be, beside a GPU.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device

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
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            _called_twice(function, device)
        torch.cuda.current_stream().wait_stream(side)


def _called_twice(function: Callable[[], object], device: torch.device) -> None:
    function()
    with Unasked(device):
        function()


def captured(function: Callable[[], object], device: torch.device) -> Callable[[], None]:
    """The kernels that it launches on its CUDA device, as one graph: calling the result replays them."""
    with torch.cuda.device(device):
        graph = torch.cuda.CUDAGraph()
        # Other threads, such as one that pins batches, may allocate meanwhile.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            function()
    replay: Callable[[], None] = graph.replay
    return replay
