"""In-memory examples and the order in which they are served.

The training order is a pure function of a batch counter, so a run that was killed continues with the very next batch,
and any number of processes serves the same global batches.
"""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, NotRequired, Protocol, TypedDict, TypeVar

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

_MASK64 = (1 << 64) - 1
_ORDER, _FLIP = 1, 2


def whole(name: str, value: object, low: int, high: int | None = None) -> int:
    """Return `value` as an int in [low, high]; raise a one-line ValueError that names `name` otherwise."""
    allowed = f"a whole number of at least {low}" if high is None else f"a whole number from {low} to {high}"
    if not isinstance(value, int) or isinstance(value, bool) or value < low or (high is not None and value > high):
        raise ValueError(f"{name}={value}: must be {allowed}")
    return value


def share(name: str, value: object, below: float) -> float:
    """Return `value` as a float in [0, below); raise a one-line ValueError that names `name` otherwise."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < below:
        raise ValueError(f"{name}={value}: must be a number of at least 0 and below {below}")
    return float(value)


class Examples(ABC):
    """A finite set of examples, fetched many at a time.

    `labels` is int64 (N,), zeros where there are no labels. `embeddings` float32 (N, d), if there are any, are vectors
    that can condition a model in the place of labels: set the attribute. `identities` int64 (N,), if they are set,
    tell the examples apart by what is cheaper to read than their content; see `data.changes`. `lazy` tells that `get`
    is slow enough to want workers.
    """

    labels: Tensor
    embeddings: Tensor | None = None
    identities: Tensor | None = None
    lazy: bool = False

    def __len__(self) -> int:
        return len(self.labels)

    def held_on(self, device: torch.device) -> "Examples | None":
        """Return the same examples in a device's memory; None for examples that are not held in memory."""
        return None

    @abstractmethod
    def get(self, indices: Tensor, flip: Tensor | None = None) -> Tensor:
        """Return float32 (b, *S) for int64 `indices` (b,), mirrored left-right where the bool `flip` (b,) is set."""


class Splits(NamedTuple):
    """The three parts of a data set."""

    train: Examples
    val: Examples
    test: Examples


class Source(Protocol):
    """What a data set's YAML file builds: `shape` (without the batch) is known at once, `load` may be slow."""

    shape: tuple[int, ...]

    def load(self) -> Splits: ...


def normalise(pixels: Tensor, flip: Tensor | None = None) -> Tensor:
    """Turn uint8 (b, C, H, W) into float32 `x / 127.5 - 1`, exactly -1 at 0 and 1 at 255, mirrored where `flip`."""
    if flip is not None:
        pixels = torch.where(flip[:, None, None, None], pixels.flip(-1), pixels)
    return pixels.float().div_(127.5).sub_(1)


class Images(Examples):
    """Images held as uint8 `pixels` (M, C, H, W), of which the set is `rows` (N,), all of them by default.

    Several sets can share one block of pixels; `labels` (M,) belongs to the block.
    """

    def __init__(self, pixels: Tensor, labels: Tensor | None = None, rows: Tensor | None = None) -> None:
        self.pixels = pixels
        self.rows = torch.arange(len(pixels)) if rows is None else rows
        self.labels = torch.zeros(len(self.rows), dtype=torch.int64) if labels is None else labels.long()[self.rows]

    def held_on(self, device: torch.device) -> "Images":
        return _moved(self, device)

    def get(self, indices: Tensor, flip: Tensor | None = None) -> Tensor:
        """Return float32 (b, C, H, W) in [-1, 1]."""
        return normalise(self.pixels[self.rows[indices]], flip)


class Points(Examples):
    """Points float32 (N, D), or other data held as they are, (N, *S); `flip` is refused, as points have no left and
    right."""

    def __init__(self, points: Tensor, labels: Tensor | None = None) -> None:
        self.points = points.float()
        self.labels = torch.zeros(len(points), dtype=torch.int64) if labels is None else labels.long()

    def held_on(self, device: torch.device) -> "Points":
        return _moved(self, device)

    def get(self, indices: Tensor, flip: Tensor | None = None) -> Tensor:
        """Return float32 (b, *S).

        Raises:
            ValueError: `flip` is given.
        """
        if flip is not None:
            raise ValueError("flip=true: only images can be flipped")
        return self.points[indices]


Held = TypeVar("Held", bound=Examples)


def _moved(examples: Held, device: torch.device) -> Held:
    """A copy whose tensors are on another device."""
    moved = copy.copy(examples)
    vars(moved).update({name: value.to(device) for name, value in vars(examples).items() if isinstance(value, Tensor)})
    return moved


class Request(NamedTuple):
    """One batch to fetch: int64 `indices` (b,) into the set, int64 `serials` (b,), bool `flip` (b,) or None."""

    indices: Tensor
    serials: Tensor
    flip: Tensor | None


class Batch(TypedDict):
    """A batch: `x` float32 (b, *S), `label` int64 (b,), `serial` int64 (b,); `embedding` (b, d), `image` (b, C', H, W)
    and its `level` (b,), `augmentation` (b, 9) if there are any."""

    x: Tensor
    label: Tensor
    serial: Tensor
    embedding: NotRequired[Tensor]
    image: NotRequired[Tensor]
    level: NotRequired[Tensor]
    augmentation: NotRequired[Tensor]


class Augmented(Protocol):
    """What makes image conditions of a batch, see `data.conditions.ImageCondition`."""

    def augmented(self, x: Tensor, seed: int, serials: Tensor) -> dict[str, Tensor]: ...


class Transformation(Protocol):
    """What transforms images and states how, see `data.augmentation.Augmentation`."""

    def __call__(self, x: Tensor, seed: int, serials: Tensor) -> tuple[Tensor, Tensor]: ...


def mix(*words: int) -> int:
    """Hash integers to 63 bits by chaining the SplitMix64 finaliser (Steele, Lea and Flood, OOPSLA 2014, fig. 16).

    Adding the words instead would give seed 1 in epoch 0 the order of seed 0 in epoch 1.
    """
    state = 0
    for word in words:
        state = ((state ^ (word & _MASK64)) + 0x9E3779B97F4A7C15) & _MASK64
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK64
        state ^= state >> 31
    return state >> 1


def random_numbers(
    draw: Callable[..., Tensor], shape: Sequence[int], seed: int, serials: Tensor, purpose: int
) -> Tensor:
    """(b, *shape) random numbers, those of each sample from a generator of its own."""
    seeds = (mix(seed, serial, purpose) for serial in serials.tolist())
    return torch.stack([draw(tuple(shape), generator=torch.Generator().manual_seed(word)) for word in seeds])


class Stream(Sampler[Request]):
    """The endless training order, a pure function of the batch counter b.

    The global batch b holds the serials b * B .. (b + 1) * B - 1. Serial s is position s % size of epoch s // size; an
    epoch's order is a permutation drawn from (seed, epoch), its flips likewise. Rank r serves every world_size-th
    serial of a batch from the r-th on. Every batch is full: where size < B it spans several epochs.

    Args:
        size: number of examples.
        batch_size: B, over all ranks.
        seed: of the order and the flips.
        rank: of this process, 0 .. world_size - 1.
        world_size: number of processes; must divide `batch_size`.
        shuffle: False serves 0, 1, 2, ... in every epoch.
        flip: draw a fair coin for each position.
        start: gives the first batch's number; called whenever an iteration begins.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = True,
        flip: bool = False,
        start: Callable[[], int] = lambda: 0,
    ) -> None:
        self.size = whole("size", size, 1)
        self.batch_size = whole("batch_size", batch_size, 1)
        self.world_size = whole("world_size", world_size, 1)
        self.rank = whole("rank", rank, 0, world_size - 1)
        if batch_size % world_size:
            raise ValueError(
                f"batch_size={batch_size}: shared by {world_size} devices, it must be a multiple of {world_size}"
            )
        self.seed, self.shuffle, self.flip, self.start = seed, shuffle, flip, start

    def __iter__(self) -> Iterator[Request]:
        # Not a generator itself: a generator would call start() only when its first batch is asked for.
        return self._requests(self.start())

    def _requests(self, batch: int) -> Iterator[Request]:
        drawn, order, coins = -1, torch.empty(0), torch.empty(0)
        while True:
            first = batch * self.batch_size
            serials = torch.arange(first + self.rank, first + self.batch_size, self.world_size)
            indices, flips = torch.empty_like(serials), torch.zeros(len(serials), dtype=torch.bool)
            for epoch in (serials // self.size).unique().tolist():
                if epoch != drawn:
                    drawn, order, coins = epoch, *self._epoch(epoch)
                here = serials // self.size == epoch
                positions = serials[here] % self.size
                indices[here], flips[here] = order[positions], coins[positions]
            yield Request(indices, serials, flips if self.flip else None)
            batch += 1

    def _epoch(self, epoch: int) -> tuple[Tensor, Tensor]:
        """Return the order int64 (size,) and the flips bool (size,) of an epoch."""
        generator = torch.Generator().manual_seed(mix(self.seed, epoch, _ORDER))
        order = torch.randperm(self.size, generator=generator) if self.shuffle else torch.arange(self.size)
        generator.manual_seed(mix(self.seed, epoch, _FLIP))
        return order, torch.rand(self.size, generator=generator) < 0.5


class Sequential(Sampler[Request]):
    """Every example exactly once over the ranks, in order, unpadded; the serial is the index.

    Rank r serves the indices r, r + world_size, ... in chunks of `batch_size` (of this rank). All ranks have the same
    number of chunks (as long as each has that many examples): a rank that would be one short splits its last chunk,
    for a rank that finishes early can leave the others waiting in a collective operation.
    """

    def __init__(self, size: int, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        mine = torch.arange(size)[rank::world_size]
        self.chunks = [chunk for chunk in mine.split(whole("batch_size", batch_size, 1)) if len(chunk)]
        most = math.ceil(math.ceil(size / world_size) / batch_size)
        if self.chunks and len(self.chunks) < most and len(self.chunks[-1]) > 1:
            last = self.chunks.pop()
            self.chunks += [last[:-1], last[-1:]]

    def __len__(self) -> int:
        return len(self.chunks)

    def __iter__(self) -> Iterator[Request]:
        return (Request(chunk, chunk, None) for chunk in self.chunks)


class Batches(Dataset[Batch]):
    """Examples served a whole batch at a time: an item is the batch that a `Request` asks for.

    Args:
        examples: what is served.
        condition: made from the images as they are served, so after they were transformed; None for none.
        seed: of what is random in condition and augmentation.
        augmentation: of the images; None for none.
    """

    def __init__(
        self,
        examples: Examples,
        condition: Augmented | None = None,
        seed: int = 0,
        augmentation: Transformation | None = None,
    ) -> None:
        self.examples, self.condition, self.seed, self.augmentation = examples, condition, seed, augmentation

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, request: Request) -> Batch:
        batch: Batch = {
            "x": self.examples.get(request.indices, request.flip),
            "label": self.examples.labels[request.indices],
            "serial": request.serials,
        }
        if self.examples.embeddings is not None:
            batch["embedding"] = self.examples.embeddings[request.indices]
        if self.augmentation is not None:
            batch["x"], batch["augmentation"] = self.augmentation(batch["x"], self.seed, request.serials)
        if self.condition is not None:
            cond = self.condition.augmented(batch["x"], self.seed, request.serials)
            batch["image"] = cond["image"]
            if "level" in cond:
                batch["level"] = cond["level"]
        return batch


class Requests(Dataset[dict[str, Tensor]]):
    """What `Batches` is asked for, in the place of its batches: an item is the `Request`, by the names of its parts."""

    def __getitem__(self, request: Request) -> dict[str, Tensor]:
        return {name: part for name, part in request._asdict().items() if part is not None}
