"""Training speed of networks and memory layouts, side by side.

    python benchmarks/training_speed.py                  # every variant in turn, several rounds; medians and ratios
    python benchmarks/training_speed.py --device cuda --precision bf16

Each round times every variant once, one after the other, so that a machine that slows down slows all of them. A figure
is the median over the rounds; a ratio is the median of the rounds' ratios to the first variant. Run nothing else
meanwhile.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from diffusion.denoisers import EDMPreconditioner, NetworkDenoiser
from diffusion.networks.tutorial import TutorialUNet
from diffusion.networks.unet import UNet
from diffusion.noise import Noise
from diffusion.objectives import DenoisingObjective, LognormalTimes, SimpleWeighting
from diffusion.schedules import VarianceExplodingSchedule

SHAPE = (1, 32, 32)
NETWORKS: dict[str, Callable[[], torch.nn.Module]] = {
    "fast: patch 2, 32-64-64": lambda: UNet(SHAPE, widths=(32, 64, 64), blocks=1, attention=(2,), patch=2),
    "default: 64-128-128": lambda: UNet(SHAPE, widths=(64, 128, 128), attention=(1, 2)),
    "tutorial: 12.9 M": lambda: TutorialUNet(SHAPE),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="adds compiled variants")
    arguments = parser.parse_args()

    variants: dict[str, Callable[[], None]] = {}
    for name, make in NETWORKS.items():
        for layout in (torch.contiguous_format, torch.channels_last):
            for compiled in (False, True) if arguments.compile else (False,):
                label = f"{name}, {'channels-last' if layout is torch.channels_last else 'contiguous'}"
                variants[label + (", compiled" if compiled else "")] = stepper(make, layout, compiled, arguments)
    for step in variants.values():
        step()
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(arguments.rounds):
        for name, step in variants.items():
            begun = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - begun)
    threads = torch.get_num_threads()
    print(
        f"torch {torch.__version__}, {arguments.device}, {threads} threads, "
        f"{arguments.precision}, batch {arguments.batch}"
    )
    first = next(iter(seconds.values()))
    for name, times in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(first, times, strict=True))
        print(f"{arguments.batch / statistics.median(times):9.1f} images/s  {ratio:6.2f} x  {name}")


def stepper(
    make: Callable[[], torch.nn.Module], layout: torch.memory_format, compiled: bool, arguments: argparse.Namespace
) -> Callable[[], None]:
    """One optimizer step of a new model, as training does it."""
    network = make().to(arguments.device).to(memory_format=layout)
    if compiled:
        network.compile()
    model = NetworkDenoiser(network, VarianceExplodingSchedule(), EDMPreconditioner())
    objective = DenoisingObjective(LognormalTimes(), SimpleWeighting())
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    index = torch.arange(arguments.batch, device=arguments.device)
    batch = {"x": torch.rand(arguments.batch, *SHAPE, device=arguments.device) * 2 - 1}

    def step() -> None:
        with torch.autocast(arguments.device, torch.bfloat16, enabled=arguments.precision == "bf16"):
            loss = objective(model, batch, Noise(0, index))["loss"].mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()  # waits for the device

    return step


if __name__ == "__main__":
    main()
