"""Data that nobody plans for: hardly differing images, names that are no text."""

import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import train
from data.module import DataModule
from data.stream import Images, Splits
from diffusion.runlog import RunLogger


@pytest.mark.parametrize(("level", "warns"), [(0, True), (9, False)])
def test_training_data_that_hardly_differ_are_warned_of(level: int, warns: bool) -> None:
    pixels = torch.full((4, 1, 4, 4), 100, dtype=torch.uint8)
    pixels[2:] += level
    given = Images(pixels)
    datamodule = DataModule(SimpleNamespace(shape=(1, 4, 4), load=lambda: Splits(given, given, given)), 2, 0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train.warn_of_likeness(datamodule)
    assert [str(w.message).startswith("the training data are nearly all alike") for w in caught] == [True] * warns


def test_a_name_that_is_no_text_does_not_end_a_run(tmp_path: Path) -> None:
    logger = RunLogger(tmp_path, None)
    logger.log_result({"dataset": {"path": "caf\udce9"}}, {"final/val_loss": 1.0}, 1)
    logger.experiment.close()
    (events,) = tmp_path.glob("events*")
    assert b"caf\\udce9" in events.read_bytes()
