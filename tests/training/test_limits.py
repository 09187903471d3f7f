"""What a validation split is too small for is refused in one line, before the run has a folder."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from support.scripts import TINY, assert_refused, call

import train
from diffusion.build import ConfigError
from diffusion.training.limits import check_validation


def check(size: int, limit: float | None, world_size: int = 1) -> None:
    parts = SimpleNamespace(trainer={"limit_val_batches": limit})
    check_validation(parts, size, batch_size=8, world_size=world_size)  # type: ignore[arg-type]


def test_a_validation_split_has_an_example_for_every_device() -> None:
    check(2, None, world_size=2)
    check(1, 0, world_size=2)  # no validation
    with pytest.raises(ConfigError, match="the validation split has 1 example for 2 devices: use fewer devices"):
        check(1, None, world_size=2)


def test_a_share_of_the_batches_is_at_least_one_of_them() -> None:
    for limit in (0.5, 1.0, 0.0, 1, None):
        check(16, limit)
    with pytest.raises(ConfigError, match=r"limit_val_batches=0.4 of the 2 batches of validation is less than one"):
        check(16, 0.4)


def test_a_run_whose_share_is_no_batch_leaves_no_folder(tmp_path: Path) -> None:
    outcome = call(train, tmp_path, *TINY, "trainer.limit_val_batches=0.01")
    assert outcome.code == 1
    assert_refused(outcome._replace(out=""), "trainer.limit_val_batches=0.01 of the 12 batches of validation")
    assert not (tmp_path / "lightning_logs").exists()
