"""Data: what is served, and in which order."""

import itertools
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from sklearn.datasets import load_digits, make_swiss_roll
from torch import Tensor, nn

from data.images import Cifar, Digits, Mnist
from data.module import DataModule
from data.stream import Batches, Images, Points, Request, Sequential, Splits, Stream, mix
from data.toy import Toy2d


def take(stream: Stream, n: int) -> list[Request]:
    return list(itertools.islice(iter(stream), n))


def same(a: Request, b: Request) -> bool:
    return all((x is None and y is None) or torch.equal(x, y) for x, y in zip(a, b, strict=True))


# --- the stream ---


def test_stream_started_at_k_equals_skipping_k_batches() -> None:
    whole = take(Stream(37, 8, seed=3, flip=True), 30)
    for k in (0, 1, 4, 5, 23):
        late = take(Stream(37, 8, seed=3, flip=True, start=lambda k=k: k), 5)
        assert all(same(a, b) for a, b in zip(late, whole[k:], strict=False))


def test_stream_reads_its_start_when_iteration_begins_not_at_the_first_batch() -> None:
    counter = {"batch": 2}
    iterator = iter(Stream(10, 2, seed=0, start=lambda: counter["batch"]))
    counter["batch"] = 7
    assert next(iterator).serials.tolist() == [4, 5]


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_together_serve_the_batches_of_one_process(world_size: int) -> None:
    ranks = [take(Stream(37, 8, 3, rank, world_size, flip=True), 12) for rank in range(world_size)]
    for b, expected in enumerate(take(Stream(37, 8, 3, flip=True), 12)):
        joined = [torch.stack([rank[b][field] for rank in ranks], 1).flatten() for field in range(3)]
        assert same(Request(*joined), expected)


def test_every_epoch_is_a_permutation_and_differs_from_the_others() -> None:
    batches = take(Stream(37, 8, seed=3), 37)
    orders = torch.cat([batch.indices for batch in batches]).view(8, 37)
    assert all(sorted(order.tolist()) == list(range(37)) for order in orders)
    assert len({tuple(order.tolist()) for order in orders}) == 8
    assert torch.equal(torch.cat([batch.serials for batch in batches]), torch.arange(8 * 37))


def test_seeds_and_epochs_are_not_interchangeable() -> None:
    first_of_seed_1 = take(Stream(50, 50, seed=1), 1)[0].indices
    second_of_seed_0 = take(Stream(50, 50, seed=0), 2)[1].indices
    assert not torch.equal(first_of_seed_1, second_of_seed_0)
    assert len({mix(a, b) for a in range(100) for b in range(100)}) == 10_000


def test_batches_are_full_when_the_set_is_smaller_than_a_batch() -> None:
    batches = take(Stream(3, 8, seed=0, flip=True), 6)
    assert all(len(batch.indices) == 8 for batch in batches)
    served = torch.cat([batch.indices for batch in batches])
    assert all(sorted(epoch.tolist()) == [0, 1, 2] for epoch in served.view(16, 3))


def test_flips_are_fair_and_change_between_epochs() -> None:
    first, second = take(Stream(4000, 4000, seed=0, shuffle=False, flip=True), 2)
    assert abs(first.flip.float().mean() - 0.5) < 0.04
    assert abs((first.flip ^ second.flip).float().mean() - 0.5) < 0.04


def test_stream_without_shuffle_is_in_order() -> None:
    assert take(Stream(4, 6, seed=0, shuffle=False), 1)[0].indices.tolist() == [0, 1, 2, 3, 0, 1]


def test_batch_size_must_divide_over_the_devices() -> None:
    with pytest.raises(ValueError, match="batch_size=9.*multiple of 2"):
        Stream(10, 9, 0, rank=0, world_size=2)
    with pytest.raises(ValueError, match="batch_size=-1"):
        Stream(10, -1, 0)


@pytest.mark.parametrize(
    ("size", "batch_size", "world_size"), [(10, 4, 1), (11, 3, 2), (257 * 2 - 1, 128, 2), (1, 4, 3)]
)
def test_validation_serves_every_example_once_over_the_ranks(size: int, batch_size: int, world_size: int) -> None:
    ranks = [Sequential(size, batch_size, rank, world_size) for rank in range(world_size)]
    served = torch.cat([request.indices for rank in ranks for request in rank])
    assert sorted(served.tolist()) == list(range(size))
    assert all(len(request.indices) <= batch_size for rank in ranks for request in rank)
    assert all(len(list(rank)) == len(rank) for rank in ranks)
    if size >= world_size * batch_size:
        assert len({len(rank) for rank in ranks}) == 1


# --- in-memory sets ---


def test_normalisation_is_exact_at_both_ends() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    x = Images(pixels).get(torch.tensor([0])).flatten()
    assert x.dtype == torch.float32
    assert x[0] == -1 and x[255] == 1
    assert torch.equal(((x + 1) * 127.5).round().to(torch.uint8), pixels.flatten())


def test_what_is_fitted_to_data_sees_mirrored_images_where_training_does() -> None:
    module = DataModule(Digits(), 4, 0, flip=True, limit=3)
    plain = DataModule(Digits(), 4, 0, limit=3).train_sample()[0]
    assert torch.equal(module.train_sample()[0], torch.cat((plain, plain.flip(-1))))


def test_flip_mirrors_left_right_only_where_asked() -> None:
    pixels = torch.randint(0, 256, (2, 3, 4, 5), dtype=torch.uint8)
    plain = Images(pixels).get(torch.tensor([0, 1]))
    flipped = Images(pixels).get(torch.tensor([0, 1]), torch.tensor([True, False]))
    assert torch.equal(flipped[0], plain[0].flip(-1))
    assert torch.equal(flipped[1], plain[1])


def test_digits_are_scikit_learns_in_fixed_disjoint_splits() -> None:
    splits = Digits().load()
    assert [len(part) for part in splits] == [1437, 180, 180]
    rows = torch.cat([part.rows for part in splits])
    assert sorted(rows.tolist()) == list(range(1797))
    assert splits.train.rows[:5].tolist() == [1081, 1707, 927, 713, 262]
    digits = load_digits()
    x = splits.test.get(torch.arange(180))
    assert torch.equal(splits.test.labels, torch.from_numpy(digits.target)[splits.test.rows])
    expected = np.rint(digits.images[splits.test.rows.numpy()] * 255 / 16) / 127.5 - 1
    assert torch.allclose(x[:, 0].double(), torch.from_numpy(expected), atol=1e-6)
    assert x.min() == -1 and x.max() == 1


def test_swissroll_is_scikit_learns() -> None:
    points = Toy2d("swissroll", n=500, seed=7, noise=0.3).load().train.points
    expected = make_swiss_roll(500, noise=0.3, random_state=7)[0][:, [0, 2]] / 10
    assert torch.equal(points, torch.from_numpy(expected).float())


@pytest.mark.parametrize("kind", ["swissroll", "moons", "gaussians", "checkerboard"])
def test_toy_sets_are_small_repeatable_and_freshly_drawn_for_each_split(kind: str) -> None:
    splits, again = Toy2d(kind, n=2000).load(), Toy2d(kind, n=2000).load()
    assert [len(part) for part in splits] == [2000, 200, 200]
    assert torch.equal(splits.train.points, again.train.points)
    assert not torch.equal(splits.val.points, splits.test.points)
    assert not torch.equal(splits.val.points, splits.train.points[:200])
    x = splits.train.get(torch.arange(2000))
    assert x.shape == (2000, 2) and x.dtype == torch.float32
    assert 1 < x.abs().max() < 2.5


def test_checkerboard_leaves_the_light_cells_empty() -> None:
    cells = (Toy2d("checkerboard", n=4000).load().train.points + 2).floor().long()
    assert (cells.sum(1) % 2 == 0).all()
    assert len(cells.unique(dim=0)) == 8


def test_gaussians_lie_around_eight_centres() -> None:
    train = Toy2d("gaussians", n=8000).load().train
    for k in range(8):
        centre = 1.6 * torch.tensor([np.cos(k * np.pi / 4), np.sin(k * np.pi / 4)])
        own = train.points[train.labels == k] - centre
        assert own.mean(0).abs().max() < 0.02
        assert abs(own.std() - 0.1) < 0.01


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Toy2d("roll"), "kind=roll: must be one of swissroll"),
        (lambda: Toy2d(n=0), "n=0"),
        (lambda: Toy2d(n="many"), "n=many"),
        (lambda: Toy2d(noise=-1), "noise=-1"),
        (lambda: Mnist(holdout=60_000), "holdout=60000.*59999"),
        (lambda: Mnist(pad=-1), "pad=-1"),
        (lambda: Mnist(data_dir=None), "data_dir=None"),
        (lambda: Cifar(download="maybe"), "download=maybe"),
    ],
)
def test_bad_arguments_are_refused_at_once(build: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_batches_have_labels_of_their_images() -> None:
    examples = Images(torch.zeros(5, 1, 2, 2, dtype=torch.uint8), torch.tensor([4, 3, 2, 1, 0]))
    indices = torch.tensor([3, 0])
    batch = Batches(examples)[Request(indices, torch.tensor([9, 8]), None)]
    assert batch["label"].tolist() == [1, 4]
    assert batch["serial"].tolist() == [9, 8]


# --- the data module ---


class _Source:
    def __init__(self, n: int = 10, shape: tuple[int, ...] = (2,)) -> None:
        self.n, self.shape, self.loads = n, shape, 0

    def load(self) -> Splits:
        self.loads += 1
        points = torch.arange(2.0 * self.n).view(self.n, 2)
        return Splits(Points(points), Points(points[:7]), Points(points[:3]))


def test_module_serves_batches_without_a_trainer() -> None:
    source = _Source()
    module = DataModule(source, batch_size=4, seed=5)
    batch = next(iter(module.train_dataloader()))
    expected = take(Stream(10, 4, 5), 1)[0]
    assert torch.equal(batch["serial"], expected.serials)
    assert torch.equal(batch["x"][:, 0], 2.0 * expected.indices)
    assert batch["label"].dtype == batch["serial"].dtype == torch.int64
    assert [len(batch["x"]) for batch in module.val_dataloader()] == [4, 3]
    assert [batch["serial"].tolist() for batch in module.test_dataloader()] == [[0, 1, 2]]
    assert (module.train_size, module.val_size, source.loads) == (10, 7, 1)


def test_module_shares_the_work_between_ranks_and_starts_at_the_trainers_counter() -> None:
    module = DataModule(_Source(), batch_size=4, seed=5, eval_batch_size=2)
    progress = SimpleNamespace(total=SimpleNamespace(ready=3))
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress))
    here = SimpleNamespace(root_device=torch.device("cpu"))
    module.trainer = SimpleNamespace(global_rank=1, world_size=2, fit_loop=loop, strategy=here)
    assert next(iter(module.train_dataloader()))["serial"].tolist() == [13, 15]
    assert [batch["serial"].tolist() for batch in module.val_dataloader()] == [[1], [3], [5]]


def test_batches_are_pinned_for_a_run_on_a_gpu_and_not_for_one_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    module = DataModule(_Source(), batch_size=4, seed=5)
    for device, pinned in (("cpu", False), ("cuda", True)):
        here = SimpleNamespace(root_device=torch.device(device))
        module.trainer = SimpleNamespace(global_rank=0, world_size=1, strategy=here)
        assert module.train_dataloader().pin_memory is pinned


def test_loading_does_not_move_the_global_random_stream() -> None:
    module = DataModule(_Source(), batch_size=4, seed=5)
    state = torch.get_rng_state()
    next(iter(module.train_dataloader()))
    next(iter(module.val_dataloader()))
    assert torch.equal(state, torch.get_rng_state())


def test_workers_serve_the_same_batches() -> None:
    served = [
        [batch["x"] for batch in itertools.islice(DataModule(_Source(), 4, 5, workers=n).train_dataloader(), 4)]
        for n in (0, 2)
    ]
    assert torch.equal(torch.cat(served[0]), torch.cat(served[1]))


def test_module_refuses_a_wrong_shape_and_bad_arguments() -> None:
    with pytest.raises(ValueError, match=r"shape \(2,\), but the source says \(1, 8, 8\)"):
        DataModule(_Source(shape=(1, 8, 8)), 4, 0).setup()
    with pytest.raises(ValueError, match="flip=true: only images"):
        DataModule(_Source(), 4, 0, flip=True)
    with pytest.raises(ValueError, match="batch_size=0"):
        DataModule(_Source(), 0, 0)
    with pytest.raises(ValueError, match="workers=-1"):
        DataModule(_Source(), 4, 0, workers=-1)


class _Recorder(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.serials = nn.Linear(2, 1), []

    def training_step(self, batch: dict[str, Tensor]) -> Tensor:
        self.serials += batch["serial"].tolist()
        return self.linear(batch["x"]).mean()

    def validation_step(self, batch: dict[str, Tensor]) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def test_lightning_trains_on_every_serial_once_over_epochs_with_validation_between(tmp_path: Path) -> None:
    recorder = _Recorder()
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = pl.Trainer(
            accelerator="cpu", max_epochs=3, limit_train_batches=5, default_root_dir=tmp_path,
            use_distributed_sampler=False, **quiet,
        )  # fmt: skip
        trainer.fit(recorder, datamodule=DataModule(_Source(), batch_size=4, seed=5))
    assert recorder.serials == list(range(3 * 5 * 4))
