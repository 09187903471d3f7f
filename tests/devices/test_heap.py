"""Freed memory of the CPU is kept, where the C library is glibc and the environment says nothing else."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from diffusion.machine import heap

ROOT = Path(__file__).parents[2]
# Makes and drops 64 MiB ten times; prints whether they are kept, and the pages that the system gave for it.
TEN = """
import resource
from diffusion.machine import heap
kept, made = heap.keep(), b"x" * 2**26
del made
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    made = b"x" * 2**26
    del made
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def ten(**environment: str) -> tuple[bool, int]:
    """In an environment that says nothing about memory but this."""
    silent = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    done = subprocess.run(
        [sys.executable, "-c", TEN], cwd=ROOT, env=silent | environment, capture_output=True, text=True, check=True
    )
    kept, pages = done.stdout.split()
    return kept == "True", int(pages)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library is left as it is")
def test_the_system_is_not_asked_again_for_what_was_freed() -> None:
    kept, pages = ten()
    assert kept
    assert pages < 2**26 // os.sysconf("SC_PAGE_SIZE")  # not one of the ten rounds


@pytest.mark.skipif(sys.platform != "linux", reason="memory is kept on Linux alone")
@pytest.mark.parametrize("name", ["MALLOC_ARENA_TEST", "GLIBC_TUNABLES"])
def test_what_the_environment_says_is_left_as_it_is(name: str) -> None:
    assert not ten(**{name: "8" if name.startswith("MALLOC") else "glibc.malloc.arena_test=8"})[0]


def test_a_library_without_the_function_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setattr(heap.ctypes, "CDLL", lambda name: object())
    assert not heap.keep()
