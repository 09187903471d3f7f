"""Torch's `meta` device in the place of a GPU: it computes nothing, and refuses what a GPU refuses."""

from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_ATEN = torch.ops.aten


class DeviceError(RuntimeError):
    """An operation that a GPU refuses, or that it can only do by making the host wait."""


def _flat(arguments: Iterable[Any]) -> Iterator[Any]:
    """An operation's arguments, and the members of those that are lists."""
    for argument in arguments:
        if isinstance(argument, list | tuple):
            yield from argument
        else:
            yield argument


class Net(TorchDispatchMode):
    """Raises `DeviceError` where a tensor of the meta device meets one of the CPU that is no scalar.

    The meta device itself refuses that of most operations, but not of a convolution or a matrix product. It also raises
    where the host asks for a value of the device (`.item()`, `bool(tensor)`) and where tensors go between the two:
    neither can be captured as a CUDA graph.

    Args:
        copies: copies are legitimate, as around the training step; one to the host gives zeros.
        answers: questions are legitimate too, and are answered by 0 or False; a selection takes all.
    """

    def __init__(self, copies: bool = False, answers: bool = False) -> None:
        super().__init__()
        self.copies, self.answers = copies or answers, answers

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [value for value in _flat((*args, *kwargs.values())) if isinstance(value, Tensor)]
        on_device = any(x.device.type == "meta" for x in tensors)
        if func.overloadpacket in (_ATEN._to_copy, _ATEN.copy_):
            return self._copied(func, args, kwargs)
        if on_device and any(x.device.type == "cpu" and x.ndim for x in tensors):
            raise DeviceError(f"{func} mixes devices: {[(x.device.type, tuple(x.shape)) for x in tensors]}")
        if on_device and func is _ATEN._local_scalar_dense.default:
            self._question(func)
            return torch.zeros((), dtype=tensors[0].dtype).item()
        if on_device and func.overloadpacket is _ATEN._unique2:
            self._question(func)
            x = tensors[0]
            return x.new_empty(len(x)), *(x.new_empty(len(x), dtype=torch.int64) for _ in range(2))
        if on_device and func.overloadpacket is _ATEN.nonzero:
            self._question(func)
        return func(*args, **kwargs)

    def _copied(self, func: Any, args: Any, kwargs: Any) -> Any:
        if func.overloadpacket is _ATEN.copy_:
            source, target = args[1], args[0].device
        else:
            source, target = args[0], kwargs.get("device") or args[0].device
        scalar_in = source.device.type == "cpu" and not source.ndim and func.overloadpacket is _ATEN.copy_
        if source.device.type == torch.device(target).type or scalar_in:
            return func(*args, **kwargs)
        if not self.copies:
            raise DeviceError(f"{func} copies {tuple(source.shape)} from {source.device} to {target}")
        if source.device.type == "meta":
            return torch.zeros(source.shape, dtype=kwargs.get("dtype") or source.dtype)
        return func(*args, **kwargs)

    def _question(self, func: Any) -> None:
        if not self.answers:
            raise DeviceError(f"{func} makes the host wait for the device")


@pytest.fixture(autouse=True)
def no_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch has no autocast for the meta device."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
