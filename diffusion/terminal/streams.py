"""Standard output and standard error that never end a run: what they cannot take is dropped, the work goes on.

`quiet=true` drops all that is printed, but for results, warnings and errors.
"""

import contextlib
import errno
import io
import os
import sys
import warnings
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TextIO

# Where results, and warnings and errors, go while all else is dropped.
_KEPT: ContextVar[tuple[TextIO, TextIO] | None] = ContextVar("kept", default=None)
_COLOURS = {"error": 31, "warning": 33}


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


@contextlib.contextmanager
def quieted() -> Iterator[None]:
    """While the block runs, only `result`, `problem` and warnings are printed."""
    before = warnings.showwarning

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        problem(f"warning: {message}")

    kept = _KEPT.set((sys.stdout, sys.stderr))
    warnings.showwarning = show
    try:
        with (
            Path(os.devnull).open("w", encoding="utf-8") as null,
            contextlib.redirect_stdout(null),
            contextlib.redirect_stderr(null),
        ):
            yield
    finally:
        warnings.showwarning = before
        _KEPT.reset(kept)


def is_quiet() -> bool:
    """Whether all but results, warnings and errors is dropped."""
    return _KEPT.get() is not None


def result(text: object) -> None:
    """Prints what a command was given for, a path or a table, on standard output."""
    kept = _KEPT.get()
    print(text, file=sys.stdout if kept is None else kept[0])


def problem(text: str) -> None:
    """Prints what a person has to know on standard error; `error:` and `warning:` at its beginning are coloured."""
    kept = _KEPT.get()
    stream = sys.stderr if kept is None else kept[1]
    word, mark, rest = text.partition(": ")
    print(f"{coloured(word, stream)}{mark}{rest}", file=stream, flush=True)


def urgent(text: str) -> None:
    """Prints on standard error from a signal's handler, which may have interrupted another write to it.

    It goes past the stream's buffer, which does not take a second write then.
    """
    kept = _KEPT.get()
    stream = sys.stderr if kept is None else kept[1]
    with contextlib.suppress(OSError):  # the terminal may be closed, which is what SIGHUP says
        try:
            os.write(stream.fileno(), f"{text}\n".encode(stream.encoding or "utf-8", "backslashreplace"))
        except io.UnsupportedOperation:  # a stream of Python's own, a test's perhaps
            print(text, file=stream, flush=True)


def coloured(word: str, stream: TextIO) -> str:
    """`error` in red and `warning` in yellow on a terminal; elsewhere, and where NO_COLOR is set, as they are.

    See https://no-color.org.
    """
    plain = word not in _COLOURS or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return word if plain or not stream.isatty() else f"\x1b[{_COLOURS[word]}m{word}\x1b[0m"


def draws_bars() -> bool:
    """Whether standard error is a terminal, and not one of no width, on which a bar would not be seen."""
    if not sys.stderr.isatty():
        return False
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns > 0
    except (OSError, ValueError):  # its width is not known
        return True


def columns(most: int = 120) -> int:
    """The width of the terminal that standard error is, at most `most`; elsewhere `most`."""
    try:
        return min(os.get_terminal_size(sys.stderr.fileno()).columns or most, most)
    except (OSError, ValueError):
        return most
