"""Images through an autoencoder and back, as samples that evaluate.py scores: the best that diffusion in its latents,
if it were perfect, could draw.

    python docs/reconstructions.py lightning_logs/fashion/version_0 reconstructions.npz
    python evaluate.py samples=reconstructions.npz dataset=fashion split=val

They are training images, so that none is judged by itself, and go through draws from q(z | x), which is what is
diffused.
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from data.stream import Source
from diffusion import media
from diffusion.build import build
from diffusion.evaluation.table import random_rows
from diffusion.models import Autoencoder, Codec
from diffusion.runs.checkpoints import find
from diffusion.runs.codecs import BATCH, draws
from diffusion.runs.trained import load_model


def main(spec: str, out: str, n: int = 2000) -> None:
    """Writes n of them."""
    checkpoint = find(spec)
    codec = Codec(load_model(checkpoint, Autoencoder), checkpoint.config["dataset"]["clip"])
    source: Source = build(checkpoint.config["dataset"]["source"])
    train = source.load().train
    x = train.get(random_rows(len(train))[:n])
    z = draws(codec, x, torch.device("cpu"), seed=0)
    media.save(out, torch.cat([codec.decode(part) for part in z.split(BATCH)]))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(f"usage:{__doc__}")
    main(*sys.argv[1:])
