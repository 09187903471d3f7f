"""Test images, what was measured of them, and what a model restores from that.

    python docs/pictures/restoration.py lightning_logs/fashion/version_0 docs/images/restoration.png

A row for each measurement: the image, its measurement as `sample.py` reads it, and six restorations.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[2]))

import cli
from data.stream import Source
from diffusion import media
from diffusion.build import build
from diffusion.runs.checkpoints import find
from diffusion.sampling import Pipeline
from diffusion.sampling.measurements import Blur, Downsample, Known
from diffusion.settings.sampling import Steering

NOISE, RESTORED, STEPS = 0.05, 6, 20


def rows(spec: str, folder: Path) -> Tensor:
    """(3 (2 + RESTORED), C, H, W), the rows one after the other; measured images are written into the folder."""
    checkpoint = find(spec)
    source: Source = build(checkpoint.config["dataset"]["source"])
    images = source.load().test.get(torch.tensor([1, 0, 2]))
    side = images.shape[-1]
    generator = torch.Generator().manual_seed(0)
    known = (torch.rand(1, side, side, generator=generator) < 0.2).float()
    mask = written(folder / "mask.png", 1 - 2 * known)
    measurements: list[tuple[str, nn.Module, dict[str, Any]]] = [
        ("blur", Blur(2.0), {"blur_width": 2.0}),
        ("downsample", Downsample(4), {}),
        ("mask", Known(known), {"mask": mask}),
    ]
    found = []
    for image, (name, measurement, settings) in zip(images, measurements, strict=True):
        exact = measurement(image[None])
        measured = exact + NOISE * torch.randn(exact.shape, generator=generator)
        path = written(folder / f"measured_{name}.png", measured[0])
        steering = Steering(measure=name, init=path, noise=NOISE, **settings)
        restored = Pipeline.from_checkpoint(checkpoint, steering=steering, steps=STEPS).sample(RESTORED)
        found += [image[None], F.interpolate(measured, (side, side)), restored]
    return torch.cat(found)


def written(path: Path, image: Tensor) -> str:
    """Where an image (C, H, W) is then, pixel for pixel."""
    media.save_picture(path, media.to_uint8(image[None])[0])
    return str(path)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(f"usage:{__doc__}")
    try:
        with tempfile.TemporaryDirectory() as place:
            media.save_picture(sys.argv[2], media.picture(rows(sys.argv[1], Path(place)), rows=3))
    except cli.USER_ERRORS as error:
        cli.fail(cli.one_line(error))
