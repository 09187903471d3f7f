"""The Lightning data module: one for every data set."""

import math
import os

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from data.augmentation import augmentation
from data.changes import fingerprint
from data.conditions import ImageCondition
from data.stream import Batch, Batches, Examples, Requests, Sequential, Source, Splits, Stream, whole

# Of a device's free memory, the share that training data may take: the rest is for the model.
SHARE = 0.25


class DataModule(pl.LightningDataModule):
    """Serves batches {"x": float32 (b, *S), "label": int64 (b,), "serial": int64 (b,)} of a source, with "image" too
    where there is a condition.

    The training loader is endless and starts at the trainer's batch counter (see `Stream`); give the trainer
    `use_distributed_sampler=False`, as the samplers share the work between ranks themselves.

    Args:
        source: builds the splits.
        batch_size: of training, over all ranks.
        seed: of the training order and flips.
        flip: mirror training images left-right at random.
        workers: processes that prepare batches; None is 0 for sets in memory and up to 4 for those decoded on the fly.
        eval_batch_size: of validation and test, over all ranks; None is `batch_size`.
        limit: train on the first so many examples only; None is all.
        condition: of images, see `data.conditions`; None for none.
        augment: probability of each transformation of training images, see `data.augmentation`; 0 is off.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        source: Source,
        batch_size: int,
        seed: int,
        flip: bool = False,
        workers: int | None = None,
        eval_batch_size: int | None = None,
        limit: int | None = None,
        condition: ImageCondition | None = None,
        augment: float = 0.0,
    ) -> None:
        super().__init__()
        if flip and len(source.shape) != 3:
            raise ValueError("flip=true: only images can be flipped")
        if condition is not None:
            condition.channels(source.shape)
        self.source, self.seed, self.flip, self.condition = source, seed, flip, condition
        self.augmentation = augmentation(augment, source.shape)
        self.batch_size = whole("batch_size", batch_size, 1)
        self.workers = None if workers is None else whole("workers", workers, 0)
        self.eval_batch_size = batch_size if eval_batch_size is None else whole("eval_batch_size", eval_batch_size, 1)
        self.limit = None if limit is None else whole("limit", limit, 1)
        self.splits: Splits | None = None
        self.described: dict[str, Tensor] = {}
        self._requests = False

    def setup(self, stage: str | None = None) -> None:
        """Load the splits, once.

        Raises:
            ValueError: the data have another shape than the source says.
            OSError: the data are not there.
        """
        if self.splits is None:
            splits = self.source.load()
            shape = tuple(splits.train.get(torch.tensor([0])).shape[1:])
            if shape != tuple(self.source.shape):
                raise ValueError(f"the data have shape {shape}, but the source says {tuple(self.source.shape)}")
            self.splits = splits
            self.described = fingerprint(splits, self.train_size)

    def state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint keeps: the identities of the examples of each split, see `data.changes`."""
        return self.described

    @property
    def train_size(self) -> int:
        """Number of training examples."""
        found = len(self._loaded().train)
        return found if self.limit is None else min(self.limit, found)

    def train_sample(self, most: int = 10_000, numbers: int = 2**26) -> tuple[Tensor, Tensor]:
        """Training examples spread evenly over the set, float32 (n, *S), with their labels (n,): `most` at most, and so
        many `numbers`; mirrored ones count as further examples where training sees them."""
        size, train = self.train_size, self._loaded().train
        examples = 2 * size if self.flip else size
        n = max(1, min(examples, most, numbers // math.prod(self.source.shape)))
        rows = torch.linspace(0, examples - 1, n).long()
        return train.get(rows % size, rows >= size if self.flip else None), train.labels[rows % size]

    @property
    def val_size(self) -> int:
        """Number of validation examples."""
        return len(self._loaded().val)

    def served_on(self, device: torch.device, free: int) -> Batches | None:
        """Put the training data on a device and return what makes batches of them there; the training loader serves
        `Requests` for it from then on. None, and nothing happens, where the data are not held in memory, are too many,
        or are augmented or have an image condition, which is done on the CPU.

        Args:
            device: that trains.
            free: bytes of its memory.
        """
        examples = self._loaded().train
        bytes_ = sum(value.nbytes for value in vars(examples).values() if isinstance(value, Tensor))
        made_here = self.condition is not None or self.augmentation is not None
        if made_here or bytes_ > SHARE * free:
            return None
        held = examples.held_on(device)
        self._requests = held is not None
        return None if held is None else Batches(held)

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return the endless training loader."""
        examples = self._loaded().train
        rank, world_size = self._place()
        stream = Stream(
            self.train_size, self.batch_size, self.seed, rank, world_size, flip=self.flip, start=self._batches_done
        )
        batches = Batches(examples, self.condition, self.seed, self.augmentation)
        return self._loader(Requests() if self._requests else batches, stream)

    def val_dataloader(self) -> DataLoader[Batch]:
        """Return the validation loader: every example once over the ranks, in order."""
        return self._sequential(self._loaded().val)

    def test_dataloader(self) -> DataLoader[Batch]:
        """Return the test loader: every example once over the ranks, in order."""
        return self._sequential(self._loaded().test)

    def _loaded(self) -> Splits:
        self.setup()
        assert self.splits is not None
        return self.splits

    def _place(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def _to_cuda(self) -> bool:
        """Whether batches go to a GPU; a run on the CPU needs no context of one."""
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"

    def _batches_done(self) -> int:
        return 0 if self.trainer is None else self.trainer.fit_loop.epoch_loop.batch_progress.total.ready

    def _sequential(self, examples: Examples) -> DataLoader[Batch]:
        rank, world_size = self._place()
        return self._loader(
            Batches(examples, self.condition),
            Sequential(len(examples), -(-self.eval_batch_size // world_size), rank, world_size),
        )

    def _loader(self, batches: Batches | Requests, sampler: Stream | Sequential) -> DataLoader[Batch]:
        lazy = isinstance(batches, Batches) and batches.examples.lazy
        workers = (min(4, os.cpu_count() or 1) if lazy else 0) if self.workers is None else self.workers
        loader: DataLoader[Batch] = DataLoader(
            batches,  # type: ignore[arg-type]
            sampler=sampler,
            batch_size=None,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=self._to_cuda(),
            # A loader draws a seed for its workers; drawn from the global generator, it would shift the training's.
            generator=torch.Generator(),
        )
        return loader
