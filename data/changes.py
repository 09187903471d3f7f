"""Are the data of a resumed run those that it was trained on before?

A checkpoint keeps 64 bits of each example. They show what has changed, and whether an example has moved from one
split to another: a validation loss means nothing for images that the model was trained on.
"""

import hashlib
import warnings
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from data.stream import Examples, Splits

_CHUNK = 1024


class DataChanged(ValueError):
    """The data of a run have changed so that it cannot go on; the text is one line."""


def identity(content: bytes) -> int:
    """64 bits of BLAKE2b, as a signed number."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little", signed=True)


def identities(examples: Examples) -> Tensor:
    """What tells each example from the others, int64 (N,).

    Its attribute `identities` where a source sets it, as a folder does from names and sizes of files; else a digest of
    its numbers. Examples that are slow to read have only their place and label.
    """
    if examples.identities is not None:
        return examples.identities
    if examples.lazy:
        return torch.tensor([identity(f"{i} {label}".encode()) for i, label in enumerate(examples.labels.tolist())])
    chunks = (examples.get(rows).numpy() for rows in torch.arange(len(examples)).split(_CHUNK))
    return torch.tensor([identity(row.tobytes()) for chunk in chunks for row in chunk], dtype=torch.int64)


def fingerprint(splits: Splits, train_size: int) -> dict[str, Tensor]:
    """The identities of what a run is trained on, its first `train_size` examples, and of its two other splits."""
    return {
        "train": identities(splits.train)[:train_size].clone(),
        "val": identities(splits.val),
        "test": identities(splits.test),
    }


def compared(before: Mapping[str, Tensor], now: Mapping[str, Tensor]) -> str | None:
    """What has changed between two descriptions of a run's data, with the numbers; None if nothing has.

    Raises:
        DataChanged: an example of the validation or test split would be trained on, or the reverse.
    """
    changes = [_change(split, before[split], now[split]) for split in now if not torch.equal(before[split], now[split])]
    if not changes:
        return None
    trained, held = _set(before["train"]), _set(before["val"], before["test"])
    leaks = [
        (len(_both(_set(now["train"]), np.setdiff1d(held, trained))), "held out for validation or test", "trained on"),
        (
            len(_both(_set(now["val"], now["test"]), np.setdiff1d(trained, held))),
            "trained on",
            "held out for validation or test",
        ),
    ]
    said = [
        f"{count:,} {'examples' if count > 1 else 'example'} {was} would now be {becomes}"
        for count, was, becomes in leaks
        if count
    ]
    if said:
        raise DataChanged(f"{'; '.join(changes)}; {' and '.join(said)}")
    return "; ".join(changes)


def check(before: Mapping[str, Tensor], now: Mapping[str, Tensor], since: str) -> None:
    """Warns of data that have changed since a checkpoint.

    Args:
        before: `fingerprint` then.
        now: and now.
        since: what the checkpoint is of, for messages.

    Raises:
        DataChanged: examples have changed sides, see `compared`.
    """
    try:
        change = compared(before, now)
    except DataChanged as error:
        raise DataChanged(
            f"the data have changed since {since}: {error}, and the validation loss would be meaningless: put the data "
            f"back as they were, or begin a new run on these, without resume="
        ) from error
    if change is not None:
        warnings.warn(f"the data have changed since {since}: {change}", stacklevel=2)


def _change(split: str, before: Tensor, now: Tensor) -> str:
    same = len(_both(_set(before), _set(now)))
    order = ", in another order" if same == len(now) == len(before) else ""
    return f"examples of {split}: {len(before):,} then, {len(now):,} now, {same:,} the same{order}"


def _set(*parts: Tensor) -> np.ndarray:
    return np.unique(torch.cat(parts).numpy())


def _both(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.intersect1d(a, b, assume_unique=True)
