"""What long runs would cost on one GPU and on eight: estimates, from a rate that was measured.

    python benchmarks/costs.py                  # at 205 TFLOP/s, see docs/performance.md
    python benchmarks/costs.py --tflops 120     # your card's: GFLOP an image * images/s / 1000, by throughput.py

Nothing is trained. The operations of one image in a training step are counted on torch's `meta` device, and the rate at
which the card does them is held constant.
"""

import argparse
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from timing import table

from diffusion.networks.unet import UNet


class Training(NamedTuple):
    """A training of a U-Net.

    Args:
        name: of the run.
        shape: of one image.
        unet: arguments of the network.
        images: that it sees.
    """

    name: str
    shape: tuple[int, int, int]
    unet: dict[str, Any]
    images: float


DDPM = {"widths": (128, 256, 256, 256), "attention": (1,)}
TRAININGS = (
    Training("CIFAR-10 at 32x32, as long as EDM trains", (3, 32, 32), DDPM, 200e6),
    Training("64x64, the same network and length", (3, 64, 64), DDPM | {"attention": (2,)}, 200e6),
    Training(
        "256x256, DDPM's network and length for LSUN Church",
        (3, 256, 256),
        {"widths": (128, 128, 256, 256, 512, 512), "attention": (4,)},
        1.2e6 * 64,
    ),
)


def gigaflops(training: Training) -> float:
    """Of one image in one training step: multiplications and additions of convolutions and matrix products."""
    with torch.device("meta"):
        network, x = UNet(training.shape, **training.unet), torch.empty(1, *training.shape)
        with FlopCounterMode(display=False) as counter:
            network(x, torch.empty(1), {}).sum().backward()
    return float(counter.get_total_flops()) / 1e9


def hours(gigaflop: float, images: float, tflops: float, cards: int, share: float) -> float:
    """Of training on `cards` cards, each of which does `tflops`; more than one card do `share` of their sum."""
    rate = tflops * 1e3 * cards * (share if cards > 1 else 1)
    return gigaflop * images / rate / 3600


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tflops", type=float, default=205.0, help="what one card sustains in training, in TFLOP/s")
    parser.add_argument("--share", type=float, default=0.9, help="of eight cards' sum that is reached")
    options = parser.parse_args()
    rows = []
    for training in TRAININGS:
        each = gigaflops(training)
        one, eight = (hours(each, training.images, options.tflops, cards, options.share) for cards in (1, 8))
        millions = f"{training.images / 1e6:.0f} M"
        rows.append((training.name, f"{each:.0f}", millions, f"{one:.0f} h", f"{eight:.1f} h"))
    print(f"estimates at {options.tflops:g} TFLOP/s a card")
    print(table(("run", "GFLOP an image", "images", "one card", "eight cards"), rows))


if __name__ == "__main__":
    main()
