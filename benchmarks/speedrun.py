"""Time to quality on Fashion-MNIST at 32x32: networks and recipes that train in turns, a minute each.

    python benchmarks/speedrun.py                       # on the CPU; goes on if it was stopped
    python benchmarks/speedrun.py --device cuda --marks 0.25 0.5 1 2 4
    python benchmarks/speedrun.py --report              # the tables of what is there so far

Turns keep the comparison fair where a machine slows down. An arm's clock counts all that its training takes, fitting
data and capturing included; drawing and scoring stop it. Raw and averaged weights are scored, and the better ones
count. All arms draw by the same solver in the same number of steps, each on its own schedule.
"""

import argparse
import copy
import math
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from hydra import compose, initialize_config_dir
from race import Row, append, picture, read, report
from subjects import Peer, call_plain, call_sample
from throughput import machine

from data.stream import Batches, Stream
from diffusion.denoisers import ClippedDenoiser
from diffusion.evaluation import classifiers, extractors, metrics, table
from diffusion.evaluation.cache import Cache
from diffusion.machine import heap
from diffusion.media import quantised
from diffusion.media.atomic import atomic
from diffusion.noise import EVALUATION, Noise
from diffusion.objectives import optimizer_of
from diffusion.runs.models import build_model
from diffusion.samplers import prior
from diffusion.training.previews import quick_method
from diffusion.training.run import Run
from diffusion.training.setup import resolved
from diffusion.training.static import StaticStep

TARGETS = (4.0, 2.0, 1.0, 0.75)
DDPM = ("schedule=linear", "denoiser=eps", "objective=simple", "batch_size=128", "lr=2e-4", "ema_decay=0.9999")


class Arm(NamedTuple):
    """Settings of a run, and a network in the place of theirs: its package, and what makes it of its input channels."""

    settings: tuple[str, ...]
    package: str = ""
    network: Callable[[int], nn.Module] | None = None


def small_diffusers(channels: int) -> nn.Module:
    """diffusers' UNet2DModel with 1.7 M parameters."""
    from diffusers import UNet2DModel

    network = UNet2DModel(
        sample_size=32,
        in_channels=channels,
        out_channels=1,
        layers_per_block=2,
        block_out_channels=(32, 64, 64),
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    )
    return Peer(network, call_sample)


def lucidrains(channels: int) -> nn.Module:
    """The Unet of denoising-diffusion-pytorch as its README makes it."""
    from denoising_diffusion_pytorch import Unet

    return Peer(Unet(dim=64, dim_mults=(1, 2, 4, 8), channels=channels), call_plain)


FAST = ("experiment=fast_fashion", "budget_minutes=null")
ARMS = {
    "tutorial": Arm(("experiment=tutorial_fashion",)),
    "lucidrains": Arm(
        ("dataset=fashion", "schedule=sigmoid", "denoiser=v", "batch_size=16", "lr=1e-4", "ema_decay=0.995",
         "optimizer.betas=[0.9,0.99]", "dataset.flip=true"),
        "denoising_diffusion_pytorch", lucidrains,
    ),
    "diffusers, DDPM's recipe": Arm(("dataset=fashion", *DDPM), "diffusers", small_diffusers),
    "diffusers, our recipe": Arm(FAST, "diffusers", small_diffusers),
    "ours, DDPM's recipe": Arm(
        ("dataset=fashion", *DDPM, "network=unet", "network.widths=[32,64,64]", "network.blocks=1",
         "network.attention=[2]", "network.patch=2"),
    ),
    "ours": Arm(FAST),
}  # fmt: skip


class Racer:
    """An arm on its way; its state is kept in a file after each turn.

    Args:
        name: of the arm.
        options: of the command line.
        seconds: how long it trains in all, which its learning rate's decay has to know.
    """

    def __init__(self, name: str, options: argparse.Namespace, seconds: float) -> None:
        self.name, self.seconds, self.device = name, seconds, torch.device(options.device)
        self.path = options.out / f"{name.replace(' ', '_').replace(',', '')}.pt"
        arm = ARMS[name]
        with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "configs")):
            config = compose("train", [*arm.settings, f"data_dir={options.data_dir}", "download=false"])
        parts = resolved(config)
        if arm.network is not None:
            model = build_model(parts.config)
            model.network = arm.network(model.inputs * parts.shape[0])
            vars(parts)["model"] = model
        begun = time.perf_counter()
        self.run = Run.begun(parts, None, self.device, ())
        self.module = self.run.module.to(self.device).train()
        self.optimizer = optimizer_of(self.module.optimizer, self.module.denoiser, self.module.objective, fused=True)
        self.peaks = [group["lr"] for group in self.optimizer.param_groups]
        self.batches = Batches(self.run.data.splits.train)  # type: ignore[union-attr]
        self.size, self.flip = parts.settings.batch_size, bool(parts.config["dataset"]["flip"])
        self.steps, self.clock = 0, time.perf_counter() - begun
        self._step: StaticStep | None = None
        if self.path.is_file():
            self._load()

    def train_until(self, seconds: float) -> None:
        """Trains until its clock shows so many seconds."""
        stream = Stream(self.run.data.train_size, self.size, 0, flip=self.flip, start=lambda: self.steps)
        begun, before = time.perf_counter(), self.clock
        for request in stream:
            batch = {name: value.to(self.device) for name, value in self.batches[request].items()}  # type: ignore[attr-defined]
            step = self._made(batch)
            factor = self._factor()
            self.steps += 1
            averaging = self.module.averaging
            weights = [] if averaging is None else averaging.weights(self.steps)
            torch.manual_seed(self.steps)
            step.fill_batch(batch)
            step.fill(self.steps, [factor * peak for peak in self.peaks], weights)
            step.accumulate()
            step.update()
            if self.device.type == "cpu" or self.steps % 20 == 0:
                step.loss.item()  # waits for the device
                self.clock = before + time.perf_counter() - begun
                if self.clock >= seconds:
                    break
        self._save()

    def _made(self, batch: dict[str, Tensor]) -> StaticStep:
        if self._step is None:
            module = self.module
            self._step = StaticStep(
                module.denoiser, module.objective, self.optimizer, module.averages, batch, 1, 1.0, 0,
                lambda: torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda",
                                       cache_enabled=False),
            )  # fmt: skip
            self._step.capture() if self.device.type == "cuda" else self._step.find_trained()
        return self._step

    def _factor(self) -> float:
        """The learning rate's course over the images that fit into the time at the speed so far."""
        images, share = self.steps * self.size, min(self.clock / self.seconds, 1.0)
        total = max(int(images / share), images + 1) if share > 0 and images else None
        return self.module.learning_rate(images, total)

    def weights(self) -> dict[str, nn.Module]:
        """Raw and averaged."""
        return {"raw": self.module.denoiser, **({} if self.module.ema is None else {"ema": self.module.ema})}

    def _save(self) -> None:
        state = {"module": self.module.state_dict(), "optimizer": self.optimizer.state_dict()}
        with atomic(self.path) as file:
            torch.save(state | {"steps": self.steps, "clock": self.clock}, file)

    def _load(self) -> None:
        state: dict[str, Any] = torch.load(self.path, map_location=self.device, weights_only=True)
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.steps, self.clock = state["steps"], state["clock"]


class Scorer:
    """Scores models by validation images, in both extractors.

    Args:
        racer: any, for its data.
        count: samples, and images to compare with.
        steps: of the solver.
    """

    def __init__(self, racer: Racer, count: int, steps: int) -> None:
        data, config = racer.run.data, racer.run.parts.config
        assert data.splits is not None
        self.count, self.steps, self.device, self.shape = count, steps, racer.device, racer.run.parts.shape
        reference = table.reference(data.splits, "val", count).real
        pixels, labels = table.everything(data.splits.train)
        self.extractors = {
            "classifier": classifiers.classifier(config["dataset"], pixels, labels, Cache(None)),
            "random": extractors.untrained(extractors.RANDOM, self.shape[0]),
        }
        self.real = {name: extractors.features(module, reference) for name, module in self.extractors.items()}

    @torch.no_grad()
    def __call__(self, model: Any) -> list[float]:
        """frechet_classifier and frechet_random; infinite where a sample is not finite."""
        training = model.training
        denoiser = ClippedDenoiser(model.eval())
        sampler, times = quick_method(denoiser, self.steps)
        parts = []
        for index in torch.arange(self.count, device=self.device).split(100):
            noise = Noise(0, index, EVALUATION)
            parts.append(sampler.sample(denoiser, prior(denoiser.schedule, noise, self.shape), times, noise).cpu())
        model.train(training)
        fake = torch.cat(parts)
        if not fake.isfinite().all():
            return [math.inf, math.inf]
        pixels = quantised(fake)
        return [
            metrics.frechet_distance(extractors.features(module, pixels), self.real[name], replicates=0).value
            for name, module in self.extractors.items()
        ]


def turns(marks: list[float], each: float) -> list[float]:
    """The minutes at which turns end: multiples of `each` up to the last mark, and the marks."""
    last = max(marks)
    whole = [k * each for k in range(1, int(last / each) + 1)]
    return sorted({*whole, *marks})


def race(options: argparse.Namespace) -> None:
    """All arms in turns; what is in the file already is not done again."""
    rows = options.out / "scores.csv"
    seconds = 60 * max(options.marks)
    racers = {name: Racer(name, options, seconds) for name in options.arms}
    scorer = Scorer(next(iter(racers.values())), options.samples, options.steps)
    for minute in turns(options.marks, options.turn):
        for name, racer in racers.items():
            if racer.clock < 60 * minute:
                racer.train_until(60 * minute)
            done = {(row.arm, row.minute) for row in read(rows)}
            if minute in options.marks and (name, minute) not in done:
                found = [
                    Row(name, minute, racer.steps * racer.size, which, *scorer(copy.copy(model)))
                    for which, model in racer.weights().items()
                ]
                append(rows, found)
                print(*found, sep="\n", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=[])
    parser.add_argument("--marks", type=float, nargs="+", default=[1, 2, 4, 8, 10], help="minutes that are scored")
    parser.add_argument("--turn", type=float, default=1.0, help="minutes")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=12, help="of the solver")
    parser.add_argument("--data-dir", type=Path, default=ROOT / "data/raw")
    parser.add_argument("--out", type=Path, default=Path("lightning_logs/speedrun"))
    parser.add_argument("--report", action="store_true")
    options = parser.parse_args()
    if not options.report:
        if options.device == "cuda" and not torch.cuda.is_available():
            sys.exit("error: PyTorch finds no CUDA device on this machine: leave --device out")
        absent = [name for name, arm in ARMS.items() if arm.package and not find_spec(arm.package)]
        if chosen := [name for name in options.arms if name in absent]:
            sys.exit(f"error: {chosen[0]} needs the package {ARMS[chosen[0]].package}, which is not installed")
        options.arms = options.arms or [name for name in ARMS if name not in absent]
        options.out.mkdir(parents=True, exist_ok=True)
        heap.keep()
        race(options)
    found = read(options.out / "scores.csv")
    if not found:
        sys.exit(f"error: {options.out} has no scores.csv: nothing was measured there yet")
    picture(found, options.out / "scores.png")
    print(f"{machine(options.device)}\n{report(found, TARGETS)}")


if __name__ == "__main__":
    main()
