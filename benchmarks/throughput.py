"""How fast networks train and draw: ours and those of other libraries, side by side in one run.

    python benchmarks/throughput.py                       # every network in turn, several rounds
    python benchmarks/throughput.py --device cuda --precision bf16 --modes eager captured "compiled, captured"
    python benchmarks/throughput.py --layouts channels-last contiguous    # each network in two layouts of its memory
    python benchmarks/throughput.py --scaling             # how time and memory grow with size, batch and width
    python benchmarks/throughput.py --whole               # train.py beside its bare step, and its start
    python benchmarks/throughput.py --operations          # what a step of each network consists of
    python benchmarks/throughput.py --out run.json        # keeps the run; --against run.json compares ratios with it

Each round times every row once, one after the other, so that a machine that slows down slows all of them; a ratio is
the median of the rounds' ratios to the first row. All networks have the same step: the objective with its random
numbers, backward pass, clipping, fused AdamW, an average of the weights. Run nothing else meanwhile. diffusers is a
development requirement; for lucidrains' network: pip install denoising-diffusion-pytorch
"""

import argparse
import csv
import gc
import json
import platform
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from network_steps import MODES, Subject, mean_seconds, peak_gigaflops
from subjects import LAYOUTS, Shape, default, missing, there
from timing import fallen, power_law, ratios, table

from diffusion.machine import heap

ALLOWED = 0.15  # a ratio that falls by more is a regression
STEPS_ALONE = ("preview_every=0", "trainer.limit_val_batches=0")  # no pictures and no validation


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--shape", type=int, nargs=3, default=(1, 32, 32), metavar=("C", "H", "W"))
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each row in each round")
    parser.add_argument("--networks", nargs="+", choices=list(there()), default=list(there()))
    parser.add_argument("--modes", nargs="+", choices=MODES, default=["eager"])
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=["channels-last"])
    parser.add_argument("--scaling", action="store_true")
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--operations", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--against", type=Path)
    options = parser.parse_args()
    check(options)
    heap.keep()
    print(f"{machine(options.device)}, {options.precision}, batch {options.batch} of {tuple(options.shape)}")
    if options.scaling:
        print(scaling(options))
    elif options.whole:
        print(whole(options))
    elif options.operations:
        print(operations(options))
    else:
        compare(options)


def check(options: argparse.Namespace) -> None:
    """Ends with one line if something cannot be measured here."""
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("error: PyTorch finds no CUDA device on this machine: leave --device out")
    if options.device == "cpu" and any("captured" in mode for mode in options.modes):
        sys.exit("error: CUDA graphs need --device cuda: choose eager or compiled of --modes")
    if options.against is not None and not options.against.is_file():
        sys.exit(
            f"error: there is no stored run {options.against}: make one on an idle machine, "
            f"python benchmarks/throughput.py --out {options.against}"
        )
    if options.out is not None and not options.out.parent.is_dir():
        sys.exit(f"error: --out={options.out} lies in no folder that exists")


def machine(device: str) -> str:
    """The device, versions and threads."""
    if device == "cuda":
        name = torch.cuda.get_device_name()
    else:
        found = Path("/proc/cpuinfo")
        lines = found.read_text(encoding="utf-8").splitlines() if found.is_file() else []
        models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        name = f"{models[0] if models else platform.processor()}, {torch.get_num_threads()} threads"
    return f"{name}, torch {torch.__version__}, Python {platform.python_version()}"


def compare(options: argparse.Namespace) -> None:
    """Prints the table of all networks in all modes and layouts; writes and compares the run."""
    if absent := missing():
        print(f"not installed, so not measured: {', '.join(absent)}", file=sys.stderr)
    peak = peak_gigaflops(options.device, options.precision == "bf16")
    subjects: dict[str, Subject] = {}
    costs: dict[str, tuple[float, int]] = {}
    memory: dict[str, str] = {}
    for name in options.networks:
        for layout, mode in product(options.layouts, options.modes):
            label, before = f"{name}, {mode}, {layout}", forget(options.device)
            subjects[label] = made(name, options, mode, layout)
            subjects[label].train()
            memory[label] = peak_memory(options.device, before)
        for layout in options.layouts:
            eager = subjects.get(f"{name}, eager, {layout}") or made(name, options, "eager", layout)
            cost = eager.gigaflops(), eager.launches()
            costs |= dict.fromkeys((f"{name}, {mode}, {layout}" for mode in options.modes), cost)
    training: dict[str, list[float]] = {label: [] for label in subjects}
    drawing: dict[str, list[float]] = {label: [] for label in subjects}
    for _ in range(options.rounds):
        for label, subject in subjects.items():
            training[label].append(mean_seconds(subject.train, options.seconds))
            drawing[label].append(mean_seconds(subject.call, options.seconds / 4))
    first = next(iter(subjects))
    times, calls = ratios(training, first), ratios(drawing, first)
    rows = []
    for label, subject in subjects.items():
        flops, launches = costs[label]
        speed, drawn = (options.batch / sorted(seconds[label])[options.rounds // 2] for seconds in (training, drawing))
        rows.append(
            (label, f"{sum(p.numel() for p in subject.model.parameters()) / 1e6:.2f}", f"{speed:.1f}",
             f"{times[label]:.2f}", f"{drawn:.1f}", f"{calls[label]:.2f}", f"{flops:.3f}",
             f"{100 * speed * flops / peak:.0f} %", str(launches), memory[label], f"{subject.first_s:.1f}")
        )  # fmt: skip
    heads = ("network", "M", "images/s", "ratio", "drawn/s", "ratio", "GFLOP", "of peak", "launches", "GiB", "first s")
    print(f"the device's own matrix product: {peak:.0f} GFLOP/s; drawn/s counts single calls of the denoiser")
    print(table(heads, rows))
    run = {"machine": machine(options.device), "training": times, "drawing": calls}
    if options.out is not None:
        options.out.write_text(json.dumps(run, indent=1) + "\n", encoding="utf-8")
    if options.against is not None:
        guard(options.against, run)


def guard(path: Path, run: dict[str, Any]) -> None:
    """Ends with exit status 1 if a ratio fell behind a stored run."""
    stored = json.loads(path.read_text(encoding="utf-8"))
    behind = [
        f"{what}, {line}" for what in ("training", "drawing") for line in fallen(stored[what], run[what], ALLOWED)
    ]
    for line in behind:
        print(f"slower: {line}", file=sys.stderr)
    if behind:
        sys.exit(1)
    print(f"no ratio fell by more than {100 * ALLOWED:.0f} % against {path} ({stored['machine']})")


def made(name: str, options: argparse.Namespace, mode: str, layout: str) -> Subject:
    """A network ready to be timed."""
    network = there()[name](tuple(options.shape)).to(memory_format=LAYOUTS[layout])  # type: ignore[call-overload]
    return Subject(network, tuple(options.shape), options.batch, options.device, options.precision == "bf16", mode)


def scaling(options: argparse.Namespace) -> str:
    """Seconds and memory of a step of the default network, by size, batch and width, with the laws that fit them."""
    sides, batches, widths = ((8, 16, 32, 64, 128, 256), (1, 4, 16, 64), (16, 32, 64, 128))
    shape, rows = tuple(options.shape), []
    sweeps: dict[str, list[tuple[int, Shape, int, int]]] = {
        "side": [(side, (shape[0], side, side), max(1, 4096 // side**2), 32) for side in sides],
        "batch": [(count, shape, count, 32) for count in batches],
        "width": [(width, shape, 4, width) for width in widths],
    }
    for what, points in sweeps.items():
        found = []
        for value, size, count, width in points:
            before = forget(options.device)
            network = default(size, (width, 2 * width, 2 * width))
            network = network.to(memory_format=LAYOUTS[options.layouts[0]])  # type: ignore[call-overload]
            subject = Subject(network, size, count, options.device, options.precision == "bf16", options.modes[0])
            seconds = mean_seconds(subject.train, options.seconds) / (count if what == "side" else 1)
            found.append((value, seconds))
            rows.append((what, str(value), str(count), f"{seconds:.4g}", peak_memory(options.device, before)))
        # Small steps cost what launching them costs: the law is that of the upper half.
        law = power_law(*zip(*found[len(found) // 2 :], strict=True))
        rows.append((what, "law", "", f"{law.factor:.3g} x^{law.exponent:.2f}, off by {100 * law.error:.0f} %", ""))
    return table(("by", "x", "batch", "s a step; by side, an image", "GiB"), rows)


def operations(options: argparse.Namespace, shown: int = 10) -> str:
    """The operations that take most of an eager step, for each network."""
    rows = []
    for name in options.networks:
        subject = made(name, options, "eager", options.layouts[0])
        mean_seconds(subject.train, options.seconds)  # warm
        found = sorted(subject.operations(steps=10).items(), key=lambda item: -item[1][1])
        total = sum(milliseconds for _, (_, milliseconds) in found)
        lines = [(operation, f"{calls:.0f}", milliseconds) for operation, (calls, milliseconds) in found[:shown]]
        rest = sum(milliseconds for _, (_, milliseconds) in found[shown:])
        for operation, calls, milliseconds in (*lines, ("all others", "", rest)):
            rows.append((name, operation, calls, f"{milliseconds:.2f}", f"{100 * milliseconds / total:.0f} %"))
    return table(("network", "operation", "calls", "ms a step", "share"), rows)


def whole(options: argparse.Namespace) -> str:
    """`train.py` beside its bare step, and the seconds that a run of one step takes."""
    from bare_step import bare_images_per_s
    from hydra import compose, initialize_config_dir

    rows = []
    for name, settings in {"digits": ["dataset=digits"], "fast_digits": ["experiment=fast_digits"]}.items():
        settings = [*settings, f"trainer.precision={'bf16-mixed' if options.precision == 'bf16' else '32-true'}"]
        with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "configs")):
            composed = compose("train", settings)
        bare = bare_images_per_s(composed, options.device, options.precision == "bf16", 5 * options.seconds)
        steps = max(20, int(bare * 5 * options.seconds / composed.batch_size))
        alone = [*STEPS_ALONE, f"accelerator={options.device}"]
        with tempfile.TemporaryDirectory() as folder:
            start = command(folder, [*settings, *alone, "trainer.max_steps=1"])[0]
            _, speed = command(folder, [*settings, *alone, f"trainer.max_steps={steps}", f"log_every={steps // 2}"])
        rows.append((name, f"{bare:.0f}", f"{speed:.0f}", f"{100 * speed / bare:.0f} %", f"{start:.1f}"))
    return table(("run", "bare images/s", "train.py images/s", "share", "s of a run of one step"), rows)


def command(folder: str, settings: list[str]) -> tuple[float, float]:
    """Seconds of a `train.py`, and the images/s that it logged last."""
    begun = time.perf_counter()
    subprocess.run([sys.executable, ROOT / "train.py", *settings], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - begun
    newest = max(Path(folder).glob("lightning_logs/*/version_*/metrics.csv"), key=lambda path: path.stat().st_mtime)
    with newest.open(encoding="utf-8") as file:
        speeds = [row["watch/images_per_s"] for row in csv.DictReader(file) if row.get("watch/images_per_s")]
    return seconds, float(speeds[-1])


def forget(device: str) -> int:
    """Frees what is not used, and begins a new peak of memory; returns the bytes that stay taken."""
    gc.collect()
    if device != "cuda":
        return 0
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def peak_memory(device: str, before: int) -> str:
    """GiB beyond what was taken before, on a GPU; a CPU does not say."""
    return f"{(torch.cuda.max_memory_allocated() - before) / 2**30:.2f}" if device == "cuda" else "-"


if __name__ == "__main__":
    main()
