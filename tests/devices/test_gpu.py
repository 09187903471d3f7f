"""A GPU repeats itself to the bit, resumes to the bit, and draws the CPU's images.

Without one, `-m slow` makes the same comparisons on the CPU, where they hold as well.
"""

import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from support.gpu import (
    changed_by_repeating,
    changed_by_resuming,
    differences,
    distance_from_eager,
    largest_pixel_difference,
)

Measure = Callable[..., Any]


DEVICES = [pytest.param("cpu", marks=pytest.mark.slow), pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(scope="module", params=DEVICES)
def measured(request: pytest.FixtureRequest) -> Iterator[Measure]:
    """`measured(function, folder, *arguments)` of each device; of a GPU in a process that sees one."""
    device = request.param
    if device == "cpu":
        yield lambda function, folder, *arguments: function(folder, device, *arguments)
        return
    if not os.environ["TEST_GPUS"]:
        pytest.skip("PyTorch finds no CUDA device here")
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn, initializer=_show, initargs=(os.environ["TEST_GPUS"],)) as process:
        yield lambda function, folder, *arguments: process.submit(function, folder, device, *arguments).result()


def _show(gpus: str) -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = gpus


def test_two_deterministic_runs_end_with_the_same_bits(measured: Measure, tmp_path: Path) -> None:
    assert measured(changed_by_repeating, tmp_path) == []
    assert not torch.are_deterministic_algorithms_enabled()  # the next test in this process is not slowed down


def test_a_resumed_run_ends_with_the_bits_of_one_that_was_not_interrupted(measured: Measure, tmp_path: Path) -> None:
    assert measured(changed_by_resuming, tmp_path) == []


@pytest.mark.parametrize("measured", DEVICES[1:], indirect=True)
def test_captured_steps_arrive_where_eager_ones_do(measured: Measure, tmp_path: Path) -> None:
    assert measured(distance_from_eager, tmp_path) < 0.02


def test_compiled_steps_arrive_where_others_do(measured: Measure, tmp_path: Path) -> None:
    assert measured(distance_from_eager, tmp_path, True) < 0.02


@pytest.mark.slow
def test_steps_with_a_learning_rate_that_stays_arrive_elsewhere(tmp_path: Path) -> None:
    assert distance_from_eager(tmp_path, "cpu", False, "learning_rate.decay=none") > 0.2


def test_images_are_those_of_the_cpu_within_one_grey_level(measured: Measure, tmp_path: Path) -> None:
    assert measured(largest_pixel_difference, tmp_path, 64, "denoiser=residual") <= 1


def test_one_changed_bit_and_one_lost_moment_are_named() -> None:
    def checkpoint() -> dict[str, Any]:
        weights = {"w": torch.ones(2), "ema.w": torch.ones(2)}
        return {"state_dict": weights, "optimizer_states": [{"exp_avg": torch.ones(2)}], "global_step": 8}

    other = checkpoint()
    assert differences(checkpoint(), other) == []
    other["state_dict"]["ema.w"][1] += 2**-23
    del other["optimizer_states"][0]["exp_avg"]
    assert differences(checkpoint(), other) == ["ema.w", "optimizer_states"]


def test_no_other_test_sees_a_gpu() -> None:
    assert not torch.cuda.is_available()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
