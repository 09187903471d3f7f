"""How much memory there is: a request beyond it is refused before it is tried; when it runs out, one line says so."""

import errno
import math
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules import module as registry

from diffusion.build import ConfigError

# A network of more parts is a mistyped number: a U-Net of a hundred blocks has 2,000.
MOST_MODULES = 10_000
# Schedules have at most so many steps, and a sampler that takes more would not end.
MOST_STEPS = 1_000_000
_CGROUP = Path("/sys/fs/cgroup/memory.max")


def total() -> int:
    """Bytes that this process can have at most: the machine's memory, or less in a container with a limit."""
    # Windows has no sysconf: there the system itself refuses what does not fit.
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if os.name == "posix" else 2**40
    limit = _CGROUP.read_text(encoding="ascii").strip() if _CGROUP.is_file() else "max"
    return min(found, int(limit)) if limit.isdecimal() else found


def check(what: str, bytes_: int) -> None:
    """Raises ConfigError if `what`, as it was typed, takes more bytes than there are."""
    if bytes_ > total():
        raise ConfigError(f"{what} takes {_gib(bytes_)} of memory, and this machine has {_gib(total())}")


def check_samples(what: str, count: int, shape: Sequence[int]) -> None:
    """Raises ConfigError if so many float32 samples of this shape take more memory than there is."""
    check(what, 4 * count * math.prod(shape))


@contextmanager
def bounded(what: str) -> Iterator[None]:
    """Ends the building of modules that have too many parts, or more weights than fit into memory.

    Weights on torch's `meta` device count as those on any other.

    Raises:
        ConfigError: they do.
    """
    modules, taken = 0, 0

    def part(module: nn.Module, name: str, child: nn.Module | None) -> None:
        nonlocal modules
        modules += 1
        if modules > MOST_MODULES:
            raise ConfigError(f"{what} has more than {MOST_MODULES} layers: choose fewer")

    def weight(module: nn.Module, name: str, value: Tensor | None) -> None:
        nonlocal taken
        taken += 0 if value is None else value.numel() * value.element_size()
        check(what, taken)

    hooks = [
        registry.register_module_module_registration_hook(part),
        registry.register_module_parameter_registration_hook(weight),
        registry.register_module_buffer_registration_hook(weight),
    ]
    try:
        yield
    except (RuntimeError, MemoryError, OverflowError) as error:  # sizes that torch cannot even count
        raise ConfigError(f"{what} cannot be built: {' '.join(str(error).split())[:150]}") from error
    finally:
        for hook in hooks:
            hook.remove()


# Errors of these classes, among others, are raised when memory runs out.
SHORTAGES = (RuntimeError, MemoryError, OSError)
_SIGNS = ("allocate memory", "out of memory", "not enough memory", "alloc_failed")
# The system ends a process where memory is short, by SIGKILL, or by SIGBUS where shared memory is.
_ENDED = ("exited unexpectedly", "killed by signal: killed", "killed by signal: bus error")


class OutOfMemory(ConfigError):
    """Memory ran out while something was computed; the text is one line that says what to lower.

    Args:
        error: what PyTorch, NumPy or Python raised.
        advice: what to do.
    """

    def __init__(self, error: BaseException, advice: str) -> None:
        cause = _cause(error)
        asked = re.search(r"ried to allocate ([\d.]+ \w+)", cause)
        if isinstance(error, BrokenProcessPool) or any(sign in cause.lower() for sign in _ENDED):
            cause = "the system ended another process of this command, as it does when memory is short"
        super().__init__(f"out of memory ({f'tried to allocate {asked[1]}' if asked else cause[:150]}): {advice}")


def _cause(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    # An error in a data loader's worker comes with a traceback, whose last line is the error itself.
    return lines[-1] if lines[0].startswith("Caught ") else lines[0]


def ran_out(error: BaseException) -> bool:
    """Whether an error means that the device or the machine has no memory left."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, MemoryError | torch.OutOfMemoryError | BrokenProcessPool):
        return True
    cause = _cause(error).lower()
    return isinstance(error, RuntimeError) and any(sign in cause for sign in (*_SIGNS, *_ENDED))


@contextmanager
def shortage(advice: str) -> Iterator[None]:
    """Raises `OutOfMemory` with this advice in the place of whatever is raised inside when memory runs out."""
    try:
        yield
    except SHORTAGES as error:
        if not ran_out(error):
            raise
        raise OutOfMemory(error, advice) from error


def _gib(bytes_: int) -> str:
    return f"{bytes_ / 2**30:.3g} GiB"
