"""Pictures of a trained model: its samples beside real images, and their way from noise.

    python docs/pictures/model.py beside lightning_logs/fashion/version_0 docs/images/fast_fashion.png
    python docs/pictures/model.py strip lightning_logs/fashion/version_0 docs/images/strip_fashion.png
    python docs/pictures/model.py complete lightning_logs/fashion/version_0 docs/images/inpaint_fashion.png
    python docs/pictures/model.py vary lightning_logs/fashion/version_0 docs/images/start_fashion.png
    python docs/pictures/model.py steps lightning_logs/fashion/version_0 docs/images/noise_samplers.png

`beside` draws samples on the left and real test images on the right, of a class-conditional model a row of each class;
`strip` draws a few images in the columns of their way from noise, and real test images after them; `complete` draws
test images, what of them is kept, and completions; `vary` test images and what is drawn from them noised; `steps` one
sample from the same noise by several samplers in several numbers of steps.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))

import style

import cli
from data.stream import Examples, Source
from diffusion import media
from diffusion.build import build
from diffusion.runs.checkpoints import Checkpoint, find
from diffusion.sampling import Pipeline
from diffusion.settings.sampling import Steering

GUIDANCE = 2.0  # of class-conditional models
GAP = 24  # pixels of white between samples and real images
SHOWN = (1, 23, 28)  # test images
NUMBER = 9  # of the sample that several samplers draw
STARTS = (0.45, 0.6, 0.75)
SAMPLERS = ("ddim", "euler_ancestral", "heun", "dpmpp_2m", "unipc")
STEPS = (2, 3, 5, 10, 20, 50)


def real_data(checkpoint: Checkpoint) -> Examples:
    """The test data of the model's data set; its training data if it is a small folder, which holds out a few."""
    source: Source = build(checkpoint.config["dataset"]["source"])
    splits = source.load()
    return splits.test if len(splits.test) >= 100 else splits.train


def loaded(spec: str, **changes: Any) -> tuple[Pipeline, Examples]:
    """A run's model, with a little guidance if it knows classes, and the test data of its data set."""
    checkpoint = find(spec)
    pipeline = Pipeline.from_checkpoint(checkpoint, **changes)
    if pipeline.num_classes:
        pipeline = Pipeline.from_checkpoint(checkpoint, steering=Steering(guidance=GUIDANCE), **changes)
    return pipeline, real_data(checkpoint)


def real_images(test: Examples, labels: list[int] | None, n: int) -> Tensor:
    """n test images: the first ones, or the first that have these labels."""
    if labels is None:
        return test.get(torch.arange(n))
    rows = {label: iter((test.labels == label).nonzero()[:, 0].tolist()) for label in set(labels)}
    return test.get(torch.tensor([next(rows[label]) for label in labels]))


def beside(spec: str, out: str, n: int = 8) -> None:
    """Samples beside as many test images: n of each class in a row, or n rows of n."""
    pipeline, test = loaded(spec)
    rows = pipeline.num_classes or n
    labels = [row for row in range(rows) for _ in range(n)] if pipeline.num_classes else None
    samples, real = pipeline.sample(rows * n, 0, labels), real_images(test, labels, rows * n)
    media.save_picture(out, joined(media.picture(samples, rows), media.picture(real, rows)))


def strip(spec: str, out: str, n: int = 4, frames: int = 9, real: int = 3, steps: int = 40) -> None:
    """n samples from noise to data, a row each, and n rows of test images."""
    pipeline, test = loaded(spec, steps=steps)
    classes = pipeline.num_classes
    labels = [classes * row // n for row in range(n)] if classes else None
    states = pipeline.frames(n, label=labels, keep=pipeline.shown(frames)).transpose(0, 1)  # (n, frames, *S)
    others = real_images(test, None if labels is None else [label for label in labels for _ in range(real)], n * real)
    media.save_picture(out, joined(media.picture(states.flatten(0, 1), n), media.picture(others, n)))


def joined(left: media.Pixels, right: media.Pixels) -> media.Pixels:
    """Two pictures of one height side by side."""
    gap = np.full((left.shape[0], GAP, *left.shape[2:]), 255, np.uint8)
    return np.concatenate((left, gap, right), axis=1)


def complete(spec: str, out: str, n: int = 6) -> None:
    """A row for each test image: itself, its upper half, and n completions by RePaint in five rounds a step."""
    checkpoint, rows = find(spec), []
    for number in SHOWN:
        image, label = _example(checkpoint, number)
        mask = torch.full_like(image, -1.0)
        mask[..., image.shape[-2] // 2 :, :] = 1.0
        with tempfile.TemporaryDirectory() as folder:
            paths = [_saved(Path(folder, name), x) for name, x in (("image.png", image), ("mask.png", mask))]
            steering = Steering(init=paths[0], mask=paths[1], resample=5)
            completed = Pipeline.from_checkpoint(checkpoint, steering=steering).sample(n, seed=0, label=label)
        kept = torch.where(mask > 0, torch.zeros_like(image), image)  # grey where it is repainted
        rows += [image[None], kept[None], completed]
    media.save_picture(out, media.picture(torch.cat(rows), rows=len(SHOWN)))


def vary(spec: str, out: str, n: int = 6) -> None:
    """A row for each time to begin at: a test image, that image noised, and n samples that begin there."""
    checkpoint, rows = find(spec), []
    image, label = _example(checkpoint, SHOWN[0])
    for t_start in STARTS:
        with tempfile.TemporaryDirectory() as folder:
            steering = Steering(init=_saved(Path(folder, "image.png"), image), t_start=t_start)
            pipeline = Pipeline.from_checkpoint(checkpoint, steering=steering)
        states = list(pipeline.states(torch.arange(n), seed=0, label=label))
        rows += [image[None], states[0].x_t[:1].clamp(-1, 1), pipeline.sample(n, seed=0, label=label)]
    media.save_picture(out, media.picture(torch.cat(rows), rows=len(STARTS)))


def steps(spec: str, out: str) -> None:
    """Sample `NUMBER` from the same noise: a row a sampler, a column a number of steps."""
    checkpoint = find(spec)
    grid = yaml.safe_load((cli.CONFIGS / "grid" / "karras.yaml").read_text())
    figure = Figure(figsize=(style.WIDTH, style.WIDTH * len(SAMPLERS) / (len(STEPS) + 1)))
    for row, name in enumerate(SAMPLERS):
        sampler = yaml.safe_load((cli.CONFIGS / "sampler" / f"{name}.yaml").read_text())
        for column, count in enumerate(STEPS):
            pipeline = Pipeline.from_checkpoint(checkpoint, sampler=sampler, grid=grid, steps=count)
            axis = figure.add_subplot(len(SAMPLERS), len(STEPS), row * len(STEPS) + column + 1)
            axis.imshow(media.picture(pipeline.sample([NUMBER], seed=0)).squeeze(), cmap="gray", vmin=0, vmax=255)
            axis.set(xticks=[], yticks=[], title=f"{count} steps" if row == 0 else "")
            if column == 0:
                axis.set_ylabel(name)
    style.save(figure, Path(out).parent, Path(out).name)


def _example(checkpoint: Checkpoint, number: int) -> tuple[Tensor, int | None]:
    """A test image (C, H, W), and its label if the model knows classes."""
    data, index = real_data(checkpoint), torch.tensor([number])
    classes = checkpoint.config["network"].get("num_classes")
    return data.get(index)[0], int(data.labels[number]) if classes else None


def _saved(path: Path, image: Tensor) -> str:
    """Writes an image pixel by pixel; its path."""
    pixels = media.to_uint8(image[None])[0]
    Image.fromarray(pixels.squeeze()).save(path)
    return str(path)


VERBS = {"beside": beside, "strip": strip, "complete": complete, "vary": vary, "steps": steps}


if __name__ == "__main__":
    if len(sys.argv) != 4 or sys.argv[1] not in VERBS:
        sys.exit(f"usage:{__doc__}")
    try:
        VERBS[sys.argv[1]](sys.argv[2], sys.argv[3])
    except cli.USER_ERRORS as error:
        cli.fail(cli.one_line(error))
