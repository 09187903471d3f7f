"""Standard output and standard error that never end a run: what they cannot take is dropped, the work goes on."""

import errno
import io
import os
import sys
from typing import Any


class Output(io.FileIO):
    """A standard stream; from the first write that fails on, what is written is dropped.

    A pipe whose reader has gone is no failure of the run (`python train.py | head -1`). Any other loss of standard
    output, a full disk say, is one line on standard error.
    """

    _lost = False

    def write(self, data: Any) -> int:
        """Writes; returns the number of bytes written or dropped."""
        if self._lost:
            return len(memoryview(data).cast("B"))
        try:
            return super().write(data)
        except OSError as error:
            self._lost = True
            if error.errno != errno.EPIPE and self.fileno() == 1:
                print(f"warning: standard output is lost from here on: {error.strerror}", file=sys.stderr)
            return len(memoryview(data).cast("B"))


def _stream(descriptor: int, encoding: str) -> io.TextIOWrapper:
    # Line by line in a file or a pipe too, so that lines stand in the order of events. A character that the encoding
    # lacks is escaped.
    buffer = io.BufferedWriter(Output(descriptor, "w", closefd=False))
    return io.TextIOWrapper(buffer, encoding=encoding, errors="backslashreplace", line_buffering=True)


def protect() -> None:
    """Puts such streams in the place of the process's own; of streams that were redirected in Python, nothing."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:  # closed (`>&-`): the next file that is opened, a checkpoint perhaps, would take its place
            os.open(os.devnull, os.O_RDWR)
    if sys.stdout is sys.__stdout__:
        sys.stdout = _stream(1, getattr(sys.__stdout__, "encoding", "utf-8"))
    if sys.stderr is sys.__stderr__:
        sys.stderr = _stream(2, getattr(sys.__stderr__, "encoding", "utf-8"))
