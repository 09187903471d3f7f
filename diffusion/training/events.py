"""TensorBoard's event file, and the settings in it."""

import os
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard.summary import image, scalar

from diffusion.media import Pixels
from diffusion.media.atomic import naming


class EventFile:
    """Curves and pictures for TensorBoard, each on disk when its call returns.

    torch's `SummaryWriter` writes in a thread of its own, where an error of the disk is a traceback, not an
    exception for the caller.

    Args:
        folder: gets a new file.
        purge_step: TensorBoard drops what earlier files of the folder hold from this step on; None keeps all.

    Raises:
        WriteError: the file cannot be written; also of all methods that add something.
    """

    def __init__(self, folder: Path, purge_step: int | None = None) -> None:
        # TensorBoard reads a folder's files in the order of their names.
        seconds, nanoseconds = divmod(time.time_ns(), 10**9)
        name = f"events.out.tfevents.{seconds:010d}.{nanoseconds:09d}.{socket.gethostname()}.{os.getpid()}"
        self.path = folder / name
        with naming(self.path):
            folder.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("ab")
        self._records = RecordWriter(self._file)
        self._add(Event(file_version="brain.Event:2"))
        if purge_step is not None:
            self._add(Event(step=purge_step, session_log=SessionLog(status=SessionLog.START)))

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """One point of a curve."""
        self.add_summary(scalar(name, value), step)

    def add_image(self, name: str, pixels: Pixels, step: int) -> None:
        """A picture (H, W, C)."""
        self.add_summary(image(name, pixels, dataformats="HWC"), step)

    def add_summary(self, summary: Summary, step: int | None = None) -> None:
        """Anything that TensorBoard shows."""
        self._add(Event(summary=summary) if step is None else Event(summary=summary, step=step))

    def close(self) -> None:
        """Nothing can be added any more."""
        with naming(self.path):
            self._file.close()

    def _add(self, event: Event) -> None:
        event.wall_time = time.time()
        with naming(self.path):
            self._records.write(event.SerializeToString())
            self._file.flush()


def flattened(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, int | float | str]]:
    """Settings by full name, as TensorBoard's table of runs takes them; of a part with a class its short name."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from flattened(value, f"{prefix}{key}.")
        elif key == "_target_":
            yield prefix.rstrip("."), str(value).rpartition(".")[2]
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield prefix + key, value
        else:
            # TensorBoard stores UTF-8, and a file's name may hold bytes that are none.
            yield prefix + key, str(value).encode("utf-8", "backslashreplace").decode()
