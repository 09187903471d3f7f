"""The forward process drawn above the reverse one."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.images import DataUnavailable, Mnist
from diffusion import media
from diffusion.forward import trajectory
from diffusion.media import processes
from diffusion.noise import Noise
from diffusion.sampling.drawing import held_out
from diffusion.schedules import CosineSchedule, VarianceExplodingSchedule


@pytest.mark.parametrize("schedule", [CosineSchedule(50), VarianceExplodingSchedule()])
def test_forward_states_have_the_schedules_mean_and_variance_and_end_on_the_data(schedule: CosineSchedule) -> None:
    x0 = torch.tensor([[0.5, -1.0]], dtype=torch.float64).expand(5_000, 2)
    times = torch.tensor([1.0, 0.5, 0.1, 0.0], dtype=torch.float64)
    states = trajectory(schedule, x0, times, Noise(0, torch.arange(5_000)))
    assert states.shape == (4, 5_000, 2)
    assert torch.equal(states[-1], x0)
    for t, state in zip(times[:-1], states, strict=False):
        alpha, sigma = schedule(t)
        torch.testing.assert_close((state.mean(0) - alpha * x0[0]) / sigma, torch.zeros(2).double(), atol=0.06, rtol=0)
        torch.testing.assert_close(state.std(0) / sigma, torch.ones(2).double(), atol=0.04, rtol=0)


def test_a_strip_shows_the_same_times_in_both_rows_from_data_to_noise() -> None:
    forward, reverse = (torch.full((3, 2, 1, 8, 8), value) for value in (-1.0, 1.0))
    forward[-1], reverse[0] = 0.0, 0.5
    strip = processes.strip(forward, reverse)
    middle = strip.shape[0] // 2
    assert strip[middle].min() == 255  # the gap between the processes
    above, below = strip[: middle - 12], strip[middle + 12 :]
    assert above.shape == below.shape
    width = (strip.shape[1] + 4) // 3
    # The last state of either, which is the data, stands in the first column.
    assert [int(above[5, 5 + k * width, 0]) for k in range(3)] == [128, 0, 0]
    assert [int(below[5, 5 + k * width, 0]) for k in range(3)] == [255, 255, 191]


def test_an_animation_of_clouds_has_one_scale_the_datas(tmp_path: Path) -> None:
    data = torch.tensor([[1.0, 1.0], [-1.0, -1.0], [0.5, 0.0]])
    above, below = torch.stack((5 * data, data)), torch.stack((data, 0.5 * data))
    frames = processes.animation(above, below)
    size = frames[0].shape[1]
    limit = media.axis_limit(data)
    assert np.array_equal(frames[1][-size:], media.cloud(0.5 * data, limit))
    assert np.array_equal(frames[0][-size:], frames[1][:size])  # the same points on the same axes
    processes.save(tmp_path / "a.webp", above, below)
    with Image.open(tmp_path / "a.webp") as file:
        assert file.size == (size, 2 * size + 24)


def test_files_that_cannot_show_both_are_refused(tmp_path: Path) -> None:
    for name in ("folder", "points.npz"):
        with pytest.raises(ValueError, match="show=both is a picture: choose a name that ends in .gif, .webp or .png"):
            processes.check_out(tmp_path / name)


def test_data_that_are_gone_are_not_fetched_for_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Mnist, "_download", lambda self, missing: pytest.fail("a download began"))
    source = {"_target_": "data.images.Mnist", "data_dir": str(tmp_path), "download": True, "pad": 2, "holdout": 5}
    with pytest.raises(DataUnavailable, match="mnist is not available .*place the files in"):
        held_out({"dataset": {"source": source}})
