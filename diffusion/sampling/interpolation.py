"""From one sample to another through the noise that a deterministic sampler turns into them, and from data to their
noise."""

from collections.abc import Callable

import torch
from torch import Tensor

from diffusion.build import ConfigError
from diffusion.denoisers import Conditioned
from diffusion.models import encoded
from diffusion.sampling.pipeline import Pipeline


def slerp(begin: Tensor, end: Tensor, share: float) -> Tensor:
    """On the arc between two points of a sphere: `(sin((1 - s) w) a + sin(s w) b) / sin w`, w being their angle
    (Shoemake 1985, Animating Rotation with Quaternion Curves, section 3.3).

    Between independent noise, whose lengths are nearly equal, all points have about that length, as noise has. Vectors
    of one direction are interpolated along the line.

    Args:
        begin: (n, *S), at share 0.
        end: likewise, at share 1.
        share: s, in [0, 1].
    """
    a, b = begin.flatten(1).double(), end.flatten(1).double()
    cosine = (a * b).sum(1, keepdim=True) / (a.norm(dim=1, keepdim=True) * b.norm(dim=1, keepdim=True))
    angle = cosine.clamp(-1, 1).arccos()
    curved = angle.sin() > 1e-6
    sine = angle.sin().where(curved, 1)
    left = torch.where(curved, ((1 - share) * angle).sin() / sine, 1 - share)
    right = torch.where(curved, (share * angle).sin() / sine, share)
    return (left * a + right * b).to(begin).reshape(begin.shape)


def check_deterministic(pipeline: Pipeline, name: str) -> None:
    """Raises ConfigError if its sampler draws noise on the way, or cannot go back to where it begins."""
    sampler = pipeline.sampler
    if sampler.stochastic:
        raise ConfigError(
            f"{name} needs a deterministic sampler, such as sampler=ddim or dpmpp_2m, and {type(sampler).__name__} "
            f"draws noise on its way"
        )
    if pipeline.init is None and pipeline.times[0] < 1:
        raise ConfigError(f"{name} goes from noise to data, and sampling begins between them: add start_level=inf")
    try:
        sampler.check(pipeline.denoiser, _rising(pipeline))
    except ValueError as error:
        raise ConfigError(f"{name}: {error}") from error


@torch.no_grad()
def inverted(pipeline: Pipeline, data: Tensor, label: int | list[int] | None = None) -> Tensor:
    """The states at the first time that the pipeline turns into these data (n, *S): its ODE solved from data to noise.

    The data stand at the lowest time of the grid, without noise. With few steps what is drawn from the result differs
    from them.
    """
    index, times = torch.arange(len(data), device=data.device), _rising(pipeline)
    denoiser = pipeline.denoiser.to(data.device)
    conditioned = Conditioned(denoiser, pipeline.conditions(index, 0, label))
    codec = None if pipeline.codec is None else pipeline.codec.to(data.device)
    x = denoiser.schedule(times[0])[0].item() * encoded(codec, data)
    with torch.autocast(data.device.type, enabled=False):
        return pipeline.sampler.sample(conditioned, x, times)


def morphed(
    pipeline: Pipeline,
    begin: Tensor,
    end: Tensor,
    frames: int,
    label: int | list[int] | None = None,
    batch_size: int = 64,
    device: str = "cpu",
    after_step: Callable[[], object] = lambda: None,
) -> Tensor:
    """The samples of states that lie evenly between two, (frames, n, *shape) on the CPU.

    Args:
        pipeline: with a deterministic sampler.
        begin: (n, *S), states at its first time, of which the first frame is drawn.
        end: likewise, of which the last frame is drawn.
        frames: at least two.
        label: of sample k in each frame, see `Pipeline.labels`.
        batch_size: samples at a time.
        device: to compute on.
        after_step: called after each step of each batch.
    """
    states = torch.cat([slerp(begin, end, share) for share in torch.linspace(0, 1, frames).tolist()])
    index, drawn = torch.arange(len(begin)).repeat(frames), []
    for x, numbers in zip(states.split(batch_size), index.split(batch_size), strict=True):
        last = x
        for state in pipeline.states(numbers.to(device), 0, label, x.to(device)):
            last = state.x_t
            after_step()
        drawn.append(pipeline.decoded(last).cpu())
    return torch.cat(drawn).unflatten(0, (frames, len(begin)))


def _rising(pipeline: Pipeline) -> Tensor:
    return pipeline.times[pipeline.times > 0].flip(0)
