"""Which of the states on the way from noise to data an animation shows."""

import numpy as np
import pytest
import torch

from diffusion.denoisers import GaussianMixtureDenoiser
from diffusion.samplers import DDIMSampler, Grid, KarrasGrid, LogSNRGrid, TrailingGrid, UniformGrid
from diffusion.sampling import Pipeline
from diffusion.sampling.pipeline import VISIBLE_LOG_SNR
from diffusion.schedules import LinearSchedule, Schedule, VarianceExplodingSchedule

FRAMES = 21


def pipeline(schedule: Schedule, grid: Grid, steps: int) -> Pipeline:
    denoiser = GaussianMixtureDenoiser(schedule, torch.zeros(1, 2), torch.eye(2)[None])
    return Pipeline(denoiser, DDIMSampler(), grid(schedule, steps), (2,), 0)


@pytest.mark.parametrize("grid", [TrailingGrid(), UniformGrid(), KarrasGrid(), LogSNRGrid()])
def test_frames_are_even_in_log_snr_where_it_can_be_seen(schedule: Schedule, grid: Grid) -> None:
    made = pipeline(schedule, grid, 1000)
    chosen = made.shown(FRAMES)
    assert len(set(chosen)) == FRAMES and chosen == sorted(chosen)
    assert (chosen[0], chosen[-1]) == (0, 1000)
    between = schedule.log_snr(made.times[chosen[1:-1]])
    low, high = (schedule.log_snr(made.times[end]).clamp(*VISIBLE_LOG_SNR).item() for end in (0, -1))
    even = torch.linspace(low, high, FRAMES, dtype=torch.float64)[1:-1]
    # Even steps in t have few states at low noise, where a frame is the nearest state that there is.
    assert (between - even).abs().max() < (1.0 if isinstance(grid, TrailingGrid | UniformGrid) else 0.1)


def test_from_the_first_third_of_an_animation_on_noise_is_at_most_twice_the_data(schedule: Schedule) -> None:
    made = pipeline(schedule, TrailingGrid(), 1000)
    alpha, sigma = schedule(made.times[made.shown(FRAMES)[FRAMES // 3 : -1]])
    assert (sigma / alpha).max() < 2


@pytest.mark.parametrize("frames", [1, 2, 5, 7, 50])
def test_few_steps_give_each_visible_state_once_and_both_ends(frames: int) -> None:
    made = pipeline(VarianceExplodingSchedule(sigma_min=0.002, sigma_max=80), KarrasGrid(), 10)
    log_snr = made.denoiser.schedule.log_snr(made.times)
    visible = ((log_snr > VISIBLE_LOG_SNR[0]) & (log_snr < VISIBLE_LOG_SNR[1])).nonzero()[:, 0].tolist()
    chosen = made.shown(frames)
    assert chosen[-1] == 10 and np.all(np.diff(chosen) >= 1)
    assert len(chosen) == min(frames, 2 + len(visible))
    assert set(chosen) <= {0, *visible, 10}


def test_infinite_log_snr_at_either_end_is_no_obstacle() -> None:
    made = pipeline(LinearSchedule(zero_terminal_snr=True), TrailingGrid(), 100)
    assert made.denoiser.schedule.log_snr(made.times[[0, -1]]).isinf().all()
    assert len(set(made.shown(FRAMES))) == FRAMES
