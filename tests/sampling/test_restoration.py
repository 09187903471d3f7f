"""`sample.py measure=...`: images restored from a linear measurement by a model that knows nothing of it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.scripts import assert_refused, call
from torch import Tensor

import sample
from data.conditions import blurred, luminance
from diffusion.build import ConfigError
from diffusion.denoisers import GaussianMixtureDenoiser
from diffusion.guidance import MeasurementGuidance
from diffusion.sampling.given import steered
from diffusion.sampling.measurements import ROUNDING
from diffusion.schedules import VPSchedule
from diffusion.settings.sampling import Steering

FIXTURES = Path(__file__).parents[1] / "fixtures"
MODEL, POINTS = (f"ckpt={FIXTURES}/{name}.ckpt" for name in ("digits", "swissroll"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of 8x8 and other sizes, and masks."""
    folder = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    ramp = np.add.outer(np.arange(8), np.arange(8)).astype(np.uint8)
    Image.fromarray(18 * ramp).save(folder / "photo.png")  # smooth, as what has been blurred is
    for name, size in {"half": (4, 4), "odd": (3, 4), "wide": (8, 4), "large": (16, 16)}.items():
        Image.fromarray(random.integers(0, 256, size, dtype=np.uint8)).save(folder / f"{name}.png")
    Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / "colour.png")
    mask = np.zeros((8, 8), np.uint8)
    mask[::2] = 255
    for name, values in {"mask": mask, "white": mask | 255, "black": mask & 0}.items():
        Image.fromarray(values).save(folder / f"{name}.png")
    return folder


def pixels(path: Path) -> Tensor:
    with Image.open(path) as image:
        values = torch.from_numpy(np.array(image)).float() / 127.5 - 1
    return values[None] if values.ndim == 2 else values.permute(2, 0, 1)


def restoring(folder: Path, channels: int, **settings: Any) -> MeasurementGuidance:
    """What these settings put around a model of images of 8x8."""
    d = channels * 64
    model = GaussianMixtureDenoiser(VPSchedule(), torch.zeros(1, d), torch.eye(d)[None])
    checkpoint: Any = SimpleNamespace(config={"dataset": {"shape": [channels, 8, 8]}})
    settings |= {name: str(folder / settings[name]) for name in ("init", "mask") if name in settings}
    found = steered(model, Steering(**settings), checkpoint)
    assert isinstance(found, MeasurementGuidance)
    return found


def means(x: Tensor) -> Tensor:
    return x.unflatten(3, (4, 2)).unflatten(2, (4, 2)).mean((3, 5))


X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("settings", "expected", "measured"),
    [
        ({"measure": "blur", "init": "colour.png", "blur_width": 1.5}, lambda x: blurred(x, torch.full((2,), 1.5)), 1),
        ({"measure": "downsample", "init": "half.png"}, means, 3),
        ({"measure": "grey", "init": "photo.png"}, luminance, 1),
        ({"measure": "mask", "init": "colour.png", "mask": "mask.png"},
         lambda x: x * (torch.arange(8) % 2)[:, None], (torch.arange(8) % 2)[:, None]),
    ],
    ids=["blur", "downsample", "grey", "mask"],
)  # fmt: skip
def test_each_measurement_is_the_linear_map_of_its_name(
    folder: Path, settings: dict[str, Any], expected: Any, measured: Any
) -> None:
    found = restoring(folder, 3, **settings)
    torch.testing.assert_close(found.measurement(X), expected(X))
    torch.testing.assert_close(found.measurement(2 * X[:1] - X[1:]), 2 * expected(X)[:1] - expected(X)[1:])
    picture = pixels(folder / settings["init"])
    grey = settings["measure"] == "downsample"  # a grey file becomes a colour image
    torch.testing.assert_close(found.measured, picture.expand(3, -1, -1) if grey else picture * measured)
    assert found.noise == ROUNDING
    assert found.measurement(X).shape[1:] == found.measured.shape


def test_a_colour_photo_is_read_as_its_luminance_where_grey_is_measured(folder: Path) -> None:
    found = restoring(folder, 3, measure="grey", init="colour.png", noise=0.1)
    difference = found.measured - luminance(pixels(folder / "colour.png")[None])[0]
    assert difference.abs().max() < 1.5 / 127.5  # Pillow rounds
    assert found.noise == 0.1


def test_grey_is_nothing_to_restore_of_grey_images(folder: Path) -> None:
    with pytest.raises(ConfigError, match="this model draws grey images"):
        restoring(folder, 1, measure="grey", init="photo.png")


@pytest.mark.parametrize(
    "restoration",
    ["measure=blur blur_width=1", "measure=downsample init=half.png", "measure=mask mask=mask.png"],
)
def test_an_unconditional_model_draws_what_agrees_with_the_measurement(folder: Path, restoration: str) -> None:
    def missed(*more: str) -> float:
        arguments = ("init=photo.png", *restoration.split(), "noise=0.05", *more)
        plain = {text.partition("=")[0]: text for text in arguments}
        outcome = call(sample, folder, MODEL, *plain.values(), "n=2", "sampler=ddim", "steps=8", "out=x.npz")
        assert outcome.code == 0, outcome.err
        with np.load(folder / "x.npz") as file:
            x = torch.from_numpy(file["arr_0"]).permute(0, 3, 1, 2) / 127.5 - 1
        settings = dict(text.split("=") for text in plain.values())
        settings["noise"] = float(settings["noise"])
        if "blur_width" in settings:
            settings["blur_width"] = float(settings["blur_width"])
        found = restoring(folder, 1, **settings)
        return (found.measurement(x) - found.measured).square().mean().sqrt().item()

    # A few steps of an untrained network: the noise that is stated decides how near it has to come.
    assert missed() < 0.5 * missed("noise=10")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("measure=blur", "measure=blur restores an image: add init=photo.png"),
        ("measure=blur init=photo.png", "measure=blur needs blur_width: add blur_width=1.5"),
        ("measure=mask init=photo.png", "measure=mask needs mask: add mask=mask.png"),
        ("measure=sharpen init=photo.png", "measure must be one of blur, downsample, mask, grey, got 'sharpen'"),
        ("measure=downsample init=half.png noise=-0.1", "noise must be a standard deviation, at least 0"),
        ("measure=downsample init=half.png noise=inf", "noise must be a standard deviation, at least 0"),
        ("measure=downsample init=half.png noise=much", "noise"),
        ("measure=blur init=photo.png blur_width=0", "blur_width must be a positive number of pixels, got 0"),
        ("measure=downsample init=half.png blur_width=1", "blur_width= does nothing for measure=downsample"),
        ("measure=blur init=photo.png blur_width=1 mask=mask.png", "mask= does nothing for measure=blur"),
        ("noise=0.1", "noise=0.1 belongs to restoration: add measure=blur, say"),
        ("init=photo.png t_start=0.6 blur_width=1", "blur_width=1 belongs to restoration"),
        ("measure=downsample init=half.png t_start=0.6", "t_start=0.6 does not go with measure=downsample"),
        ("measure=mask init=photo.png mask=mask.png resample=3", "resample=3 does not go with measure=mask"),
        ("measure=downsample init=half.png invert=true", "invert=True does not go with measure=downsample"),
        ("measure=downsample init=half.png resize=true", "resize=true does nothing for measure=downsample"),
        ("measure=downsample init=photo.png",
         "photo.png is 8x8 pixels (width x height), and measure=downsample restores 8x8 from 4x4, 2x2, 1x1"),
        ("measure=downsample init=odd.png", "odd.png is 4x3 pixels"),
        ("measure=downsample init=wide.png", "wide.png is 4x8 pixels"),
        ("measure=downsample init=large.png", "large.png is 16x16 pixels"),
        ("measure=blur blur_width=1 init=half.png", "half.png is 4x4 pixels (width x height), the model draws 8x8"),
        ("measure=mask init=photo.png mask=half.png", "half.png is 4x4 pixels"),
        ("measure=mask init=photo.png mask=white.png", "mask=white.png is all white, which keeps nothing"),
        ("measure=mask init=photo.png mask=black.png", "mask=black.png is all black"),
        ("measure=grey init=photo.png", "this model draws grey images"),
        ("measure=blur blur_width=1 init=none.png", "init=none.png cannot be read as an image"),
        (f"{POINTS} measure=blur blur_width=1 init=photo.png", "is an image, and this model draws points"),
        (f"{POINTS} measure=grey init=photo.png", "is an image, and this model draws points"),
        (f"{POINTS} measure=downsample init=photo.png", "is an image, and this model draws points"),
        (f"ckpt={FIXTURES}/latent.ckpt measure=blur blur_width=1 init=photo.png",
         "measure=blur restores pixels, and this model draws latents"),
        (f"ckpt=[{FIXTURES}/base.ckpt,{FIXTURES}/enlarging.ckpt] measure=downsample init=half.png",
         "belongs to a single model"),
    ],
)  # fmt: skip
def test_what_cannot_be_restored_gets_one_line_and_leaves_nothing(folder: Path, arguments: str, said: str) -> None:
    before = sorted(folder.rglob("*"))
    own = () if "ckpt=" in arguments else (MODEL,)
    assert_refused(call(sample, folder, *own, *arguments.split(), "out=never.png"), said)
    assert sorted(folder.rglob("*")) == before
