"""The labels in the dataset.json of EDM's and StyleGAN's data sets: {"labels": [["00000/img00000000.png", 6], ...]}."""

import json
from collections.abc import Sequence

from data.pictures import printable

LABELS = "dataset.json"
LARGEST = 2**28  # bytes of the file; ImageNet's has 50 million
CLASSES = 100_000


def numbered(content: bytes, names: Sequence[str], where: str) -> list[int] | None:
    """The label of each image: [] where the file says that there are none, None where it is not about labels.

    Args:
        content: of the file, `LARGEST` + 1 bytes at most.
        names: of the images, as they are in the file.
        where: it lies, for messages.

    Raises:
        ValueError: one line; it is no JSON, its labels are not whole numbers from 0 on, or an image has none.
    """
    if len(content) > LARGEST:
        raise ValueError(f"{printable(where)} has more than {LARGEST:,} bytes: that is no list of labels")
    try:
        known = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{printable(where)} is no JSON ({error}): mend or remove it") from error
    if not isinstance(known, dict) or "labels" not in known:
        return None
    pairs = known["labels"]
    if pairs is None:
        return []
    if not isinstance(pairs, list) or not all(_is_pair(pair) for pair in pairs):
        raise ValueError(
            f'{printable(where)}: "labels" must be a list of [file name, class], each class a whole number from 0 to '
            f"{CLASSES - 1}"
        )
    labels = dict(pairs)
    missing = [name for name in names if name not in labels]
    if missing:
        raise ValueError(
            f"{printable(where)} has no label of {len(missing):,} of {len(names):,} images, such as "
            f"{printable(missing[0])}: add them, or remove the file to have classes by subfolder"
        )
    return [labels[name] for name in names]


def _is_pair(pair: object) -> bool:
    if not isinstance(pair, list) or len(pair) != 2 or not isinstance(pair[0], str):
        return False
    return isinstance(pair[1], int) and not isinstance(pair[1], bool) and 0 <= pair[1] < CLASSES
