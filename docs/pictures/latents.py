"""The picture of docs/latents.md: what an autoencoder makes of images and of its prior, and diffusion in its latents.

python train.py experiment=autoencoder_fashion
python train.py experiment=latent_fashion autoencoder=lightning_logs/fashion/version_0
python docs/pictures/latents.py lightning_logs/fashion/version_0 lightning_logs/fashion/version_1
"""

import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))

import style

from data.stream import Source
from diffusion import media
from diffusion.build import build
from diffusion.runs.checkpoints import find
from diffusion.sampling import Pipeline


def panels(autoencoder: str, latent: str, n: int) -> dict[str, Tensor]:
    """By their titles n test images, these encoded and decoded, n samples of the prior and n of the diffusion model.

    Raises:
        ValueError: the second model is one of pixels.
    """
    checkpoint = find(autoencoder)
    source: Source = build(checkpoint.config["dataset"]["source"])
    x = source.load().test.get(torch.arange(n))
    trained = Pipeline.load(latent)
    if trained.codec is None:
        raise ValueError(f"{latent} is a model of pixels: train one with python train.py experiment=latent_fashion")
    return {
        "test images": x,
        "encoded and decoded": trained.codec.decode(trained.codec.latents(x)),
        "the autoencoder's prior": Pipeline.from_checkpoint(checkpoint).sample(n),
        "diffusion in its latents": trained.sample(n),
    }


def draw(autoencoder: str, latent: str, folder: Path, n: int = 36) -> None:
    """Writes latents.png to a folder."""
    figure = Figure(figsize=(style.WIDTH, style.WIDTH / 4 + 0.3))
    found = panels(autoencoder, latent, n)
    for axis, (title, images) in zip(figure.subplots(1, len(found)), found.items(), strict=True):
        axis.imshow(media.picture(images).squeeze(-1) if images.shape[1] == 1 else media.picture(images), cmap="gray")
        axis.set(title=title, xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    style.save(figure, folder, "latents.png")


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(f"usage:{__doc__}")
    draw(sys.argv[1], sys.argv[2], Path(sys.argv[3]) if len(sys.argv) == 4 else Path(__file__).parents[1] / "images")
