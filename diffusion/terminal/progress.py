"""How far something slow is: a bar on a terminal, a line now and then elsewhere."""

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

from diffusion.terminal.streams import draws_bars

LINE_EVERY_S = 30.0


@contextmanager
def progress(total: int, unit: str, what: str, line_every_s: float = LINE_EVERY_S) -> Iterator[Callable[[int], None]]:
    """Shows on stderr how much of `total` is done; gives a function to call with the number of units just done.

    Args:
        total: how many units there are.
        unit: in the singular.
        what: is being done, "sampling".
        line_every_s: seconds between lines where stderr is no terminal.
    """
    if draws_bars():
        with tqdm(total=total, unit=unit, desc=what, leave=False) as bar:
            yield lambda count: bar.update(count) and None
        return
    done, begun, line_at = 0, time.monotonic(), time.monotonic()

    def advance(count: int) -> None:
        nonlocal done, line_at
        done += count
        now = time.monotonic()
        if now - line_at >= line_every_s and done < total:
            line_at = now
            left = duration((now - begun) / done * (total - done))
            print(f"{what}: {done} of {counted(total, unit)}, {left} left", file=sys.stderr, flush=True)

    yield advance


def duration(seconds: float) -> str:
    """`42 s`, `3 min 20 s`, `5 h 12 min` or `3 d 4 h`."""
    minutes, s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {s} s" if minutes else f"{s} s"


def counted(count: int, noun: str) -> str:
    """`1 step`, `2 steps`, `3 classes`; the noun is in the singular."""
    ending = "es" if noun.endswith(("s", "x", "ch")) else "s"
    return f"{count} {noun}" + ("" if count == 1 else ending)


def times_left(step: int, last: int, every: int) -> int:
    """How often something happens after step `step` that happens each `every` steps and at step `last`; 0 is never."""
    if not every or step >= last:
        return 0
    return (last - 1) // every - step // every + 1


def images_validated(limit: int | float | None, images: int, batch_size: int) -> int:
    """Of how many images a validation takes the loss, with Lightning's `limit_val_batches`: so many batches, or a share
    of them if it is a float; None is all."""
    batches = math.ceil(images / batch_size)
    if isinstance(limit, float):
        batches = int(limit * batches)
    elif limit is not None:
        batches = min(limit, batches)
    return min(batches * batch_size, images)
