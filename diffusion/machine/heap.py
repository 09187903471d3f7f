"""Freed memory of the CPU is kept for the next step, in the place of being asked of the system again."""

import ctypes
import os
import sys

# Parameters of glibc's mallopt(3): above how many free bytes the heap shrinks, and how many blocks lie outside it.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4


def keep() -> bool:
    """Whether the C library keeps from now on what is freed, until this process ends.

    By default glibc gives blocks of many megabytes back to the system as soon as they are free. Each training step then
    gets its activations as new pages of 4 KiB, which the system fills with zeros, one fault each: up to a million
    faults and a third of the time of a step. Kept, a process takes about as much as at its peak all along. Another C
    library is left as it is, and so is what MALLOC_* or GLIBC_TUNABLES in the environment say.
    """
    if sys.platform != "linux" or any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, -1))
