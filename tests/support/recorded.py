"""What a captured graph would freeze: the operations of a step with the numbers among their arguments."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves

_ATEN = torch.ops.aten


class Recorded(TorchDispatchMode):
    """Records each operation with all its arguments but the values of tensors, which a graph reads anew.

    A tensor that comes from the host meanwhile would be frozen too: of `lift_fresh`, by which torch makes one of
    numbers, the values are recorded.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, str]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        leaves, structure = tree_flatten((args, kwargs))
        values = func.overloadpacket in (_ATEN.lift_fresh, _ATEN.lift_fresh_copy)
        if func.namespace == "profiler":  # marks in a trace
            return func(*args, **kwargs)
        said = [_said(leaf, values) for leaf in leaves]
        self.calls.append((str(func), f"{said} {structure}"))
        return func(*args, **kwargs)


def _said(leaf: Any, values: bool) -> str:
    if not isinstance(leaf, Tensor):
        return repr(leaf)
    return f"{leaf.dtype}{tuple(leaf.shape)}" + (f"={tree_leaves(leaf.tolist())}" if values else "")


def changed(first: Recorded, second: Recorded) -> list[str]:
    """The operations of a step that the next one calls otherwise."""
    pairs = zip(first.calls, second.calls, strict=False)
    found = [f"{a[0]}: {a[1]} became {b[0]}: {b[1]}" for a, b in pairs if a != b]
    return found + (["another number of operations"] if len(first.calls) != len(second.calls) else [])
