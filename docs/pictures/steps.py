"""Frechet distance against calls of the network, for samplers and time grids: a plot, a table, and every figure.

    python docs/pictures/steps.py ckpt=lightning_logs/fashion/version_0
    python docs/pictures/steps.py ckpt=last samplers=[dpmpp_2m,heun] calls=[5,10] n=500 out=lightning_logs/few
    python docs/pictures/steps.py ckpt=last samplers=[dpmpp_2m] calls=[8,10] rho=[3,5,7] log_snr_max=[4,6,8,null]
    python docs/pictures/steps.py ckpt=last samplers=[dpmpp_2m] calls=[2,4] start_level=2.5
    python docs/pictures/steps.py ckpt=1 samplers=[consistency] grid=levels calls=[1,2,4] beside=[lightning_logs/few]

Written to out= (default: steps/ in the run's folder): steps.json after each pair, so that the command can be stopped
and given again; steps.md and steps.png at the end. Pairs come in the order of their calls, the dear ones last. The
picture also has the methods of the folders beside=, which this command wrote for other models of the same data.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import yaml
from matplotlib.figure import Figure
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))

import style

import cli
from diffusion.build import build, construct
from diffusion.evaluation.cache import Cache
from diffusion.evaluation.classifiers import classifier
from diffusion.evaluation.extractors import CLASSIFIER, RANDOM, RandomConvolutions, features
from diffusion.evaluation.loading import draw_samples, loaded
from diffusion.evaluation.metrics import frechet_distance
from diffusion.evaluation.table import everything, reference
from diffusion.machine.devices import devices
from diffusion.media.atomic import atomic
from diffusion.runs.checkpoints import find
from diffusion.sampling import Pipeline

# Below so many calls these are not worth drawing: they add noise that few steps cannot undo.
FEWEST = {"ddpm": 20, "euler_ancestral": 20}
MARKERS = "os^vDPX*"


@dataclass
class Options:
    """What can be typed, as name=value."""

    ckpt: str | int
    out: str | None = None
    samplers: list[str] = field(
        default_factory=lambda: ["dpmpp_2m", "dpmpp_3m", "unipc", "ipndm", "ddim", "heun", "euler_ancestral", "ddpm"]
    )
    calls: list[int] = field(default_factory=lambda: [5, 8, 10, 15, 20, 50, 1000])
    grid: str = "karras"
    rho: list[float] = field(default_factory=lambda: [7.0])  # of grid=karras
    log_snr_max: list[float | None] = field(default_factory=lambda: [None])  # likewise
    start_level: float | None = None  # of the samples; null is the model's own
    beside: list[str] = field(default_factory=list)  # folders with a steps.json
    n: int = 2000
    split: str = "val"
    seed: int = 0
    weights: str | float = "ema"
    batch_size: int = 64
    devices: int | str | list[int] = "auto"
    data_dir: str | None = None

    def __post_init__(self) -> None:
        for group, names in (("sampler", self.samplers), ("grid", [self.grid])):
            for name in names:
                if name not in cli.choices_of(group):
                    raise ValueError(f"{group} {name!r} does not exist: choose {', '.join(cli.choices_of(group))}")
        if min(self.calls, default=0) < 1:
            raise ValueError(f"calls must name at least one number, each at least 1, got {self.calls}")
        if self.split not in ("train", "val", "test"):
            raise ValueError(f"split must be train or val or test, got {self.split!r}")
        for folder in self.beside:
            if not (Path(folder) / "steps.json").exists():
                raise ValueError(f"beside={folder}: it has no steps.json; this command writes one")


def typed(arguments: list[str]) -> Options:
    """The options of a command line; raises ValueError for what is none."""
    pairs = [argument.partition("=") for argument in arguments]
    if any(not equals for _, equals, _ in pairs):
        raise ValueError(f"options have the form name=value, got {' '.join(arguments)}")
    options: Options = construct(Options, {name: yaml.safe_load(value) for name, _, value in pairs})
    return options


def grids(options: Options) -> Iterator[tuple[str, dict[str, Any]]]:
    """The time grids that were asked for: their names here, and their configurations."""
    config = yaml.safe_load((cli.CONFIGS / "grid" / f"{options.grid}.yaml").read_text())
    if options.grid != "karras":
        yield options.grid, config
        return
    for rho, most in product(options.rho, options.log_snr_max):
        ended = {} if most is None else {"log_snr_max": most}
        name = f"karras {rho:g}" + ("" if most is None else f" to {most:g}")
        yield name, config | {"rho": rho} | ended


def steps_for(calls: int, each: int) -> int:
    """Most steps with at most so many calls of the network, `each` a step but one for the last, which is to data."""
    return (calls - 1) // each + 1


class Scorer:
    """Frechet distances of samples to real images, by two extractors.

    Args:
        dataset: of the run.
        options: what was typed.
        device: for features.
    """

    def __init__(self, dataset: Mapping[str, Any], options: Options, device: str) -> None:
        dataset, splits = loaded(dataset, options.data_dir, download=False)
        if len(dataset["shape"]) != 3:
            raise ValueError(f"this scores images, and {dataset['name']} has none")
        self.data = getattr(splits, options.split)
        self.device, real = device, reference(splits, options.split, options.n)
        self.conditioning = real.conditioning
        known = classifier(dataset, *everything(splits.train), Cache(Path(".cache")))
        self.extractors = {CLASSIFIER: known, RANDOM: RandomConvolutions(dataset["shape"][0]).eval()}
        self._real = {name: features(module, real.real, device) for name, module in self.extractors.items()}
        self.n = len(real)
        self.yardsticks = {"real training data": self(real.train), "with noise 0.1": self(real.noisy)}

    def __call__(self, pixels: Tensor) -> dict[str, list[float]]:
        """Value, low and high by extractor, of bytes (n, C, H, W)."""
        found = {
            name: frechet_distance(features(module, pixels, self.device), self._real[name])
            for name, module in self.extractors.items()
        }
        return {name: [score.value, score.low, score.high] for name, score in found.items()}


def measured(options: Options) -> tuple[Path, dict[str, Any]]:
    """Scores each pair of a method and a number of calls that steps.json lacks; its folder and contents."""
    checkpoint = find(str(options.ckpt))
    folder = Path(options.out) if options.out is not None else checkpoint.folder / "steps"
    places = devices(options.devices)
    settings = {name: asdict(options)[name] for name in ("n", "split", "seed", "weights")}
    settings |= {"checkpoint": str(checkpoint.path), "step": checkpoint.step}
    file = folder / "steps.json"
    record = json.loads(file.read_text()) if file.exists() else {"settings": settings, "scores": {}}
    if record["settings"] != settings:
        raise ValueError(f"{file} holds scores of {record['settings']}, not of {settings}: choose another out=")
    scorer = Scorer(checkpoint.config["dataset"], options, places[0])
    record["yardsticks"], record["found_n"] = scorer.yardsticks, scorer.n
    for calls, (grid_name, grid), name in product(sorted(options.calls), list(grids(options)), options.samplers):
        if calls < FEWEST.get(name, 1):
            continue
        sampler = yaml.safe_load((cli.CONFIGS / "sampler" / f"{name}.yaml").read_text())
        each = build(sampler, "sampler").calls
        begun = "" if options.start_level is None else f" from {options.start_level:g}"
        of_method = record["scores"].setdefault(f"{name}, {grid_name}{begun}", {})
        if str(calls) in of_method:
            continue
        try:
            steps = steps_for(calls, each)
            asked = {"sampler": sampler, "grid": grid, "steps": steps, "start_level": options.start_level}
            pipeline = Pipeline.from_checkpoint(checkpoint, options.weights, **asked)
            pixels, _ = draw_samples(
                pipeline, scorer.data, scorer.conditioning, options.seed, places, options.batch_size
            )
        except ValueError as error:  # this sampler cannot go there, or did not arrive: the others can
            print(f"{name}, {grid_name}, {calls} calls: left out ({cli.one_line(error)})")
            continue
        of_method[str(calls)] = {"calls": each * (steps - 1) + 1} | scorer(pixels)
        with atomic(file) as opened:
            opened.write(json.dumps(record, indent=1).encode())
        values = ", ".join(f"{key} {of_method[str(calls)][key][0]:.3g}" for key in scorer.extractors)
        print(f"{name}, {grid_name}, {calls} calls: {values}", flush=True)
    return folder, record


def together(record: Mapping[str, Any], folders: list[str]) -> dict[str, Any]:
    """The record with the methods of other folders' records; raises ValueError unless all have the same real images."""
    scores = dict(record["scores"])
    for folder in folders:
        file = Path(folder) / "steps.json"
        other = json.loads(file.read_text())
        if other["yardsticks"] != record["yardsticks"]:
            raise ValueError(f"beside={folder}: its scores are against other images, or features: score it anew")
        if twice := scores.keys() & other["scores"].keys():
            raise ValueError(f"beside={folder}: {', '.join(sorted(twice))} would be two lines of one name")
        scores |= other["scores"]
    return {**record, "scores": scores}


def table(record: Mapping[str, Any]) -> str:
    """Methods by calls in Markdown, each cell the distances of both extractors; under it what is good enough."""
    columns = sorted({int(calls) for found in record["scores"].values() for calls in found})
    lines = [f"| {CLASSIFIER} / {RANDOM} | {' | '.join(map(str, columns))} |", "|---" * (1 + len(columns)) + "|"]
    for name, found in record["scores"].items():
        cells = [_cell(found[str(calls)]) if str(calls) in found else "" for calls in columns]
        if any(cells):
            lines.append(f"| {name} | {' | '.join(cells)} |")
    lines.append("")
    lines += [f"{name}: {_cell(scores)}." for name, scores in record["yardsticks"].items()]
    for extractor in (CLASSIFIER, RANDOM):
        every = [
            (scores["calls"], scores[extractor][0], name)
            for name, found in record["scores"].items()
            for scores in found.values()
        ]
        best = min(value for _, value, _ in every)
        calls, _, name = min(entry for entry in every if entry[1] <= 1.05 * best)
        lines.append(f"By {extractor}: best {best:.3g}; within 5 % of it with the fewest calls: {name} at {calls}.")
    return "\n".join(lines)


def _cell(scores: Mapping[str, Any]) -> str:
    return " / ".join(f"{scores[extractor][0]:.3g}" for extractor in (CLASSIFIER, RANDOM))


def plot(record: Mapping[str, Any]) -> Figure:
    """Distance against calls, a line a method, a panel an extractor."""
    figure = Figure(figsize=(style.WIDTH, style.WIDTH * 0.45))
    axes = figure.subplots(1, 2)
    for axis, extractor in zip(axes, (CLASSIFIER, RANDOM), strict=True):
        for i, (name, found) in enumerate(record["scores"].items()):
            points = sorted((scores["calls"], scores[extractor][0]) for scores in found.values())
            if points:
                line = ("-", "--", ":")[i // len(style.COLOURS) % 3]
                axis.plot(*zip(*points, strict=True), line, marker=MARKERS[i % len(MARKERS)], markersize=4, label=name)
        for (name, scores), side in zip(record["yardsticks"].items(), ("top", "bottom"), strict=True):
            height, across = scores[extractor][0], axis.get_yaxis_transform()
            axis.axhline(height, color=style.GREY, linewidth=0.8, linestyle=":")
            axis.text(1, height, name, transform=across, ha="right", va=side, fontsize=8)
        axis.set(xscale="log", yscale="log", xlabel="calls of the network", ylabel=f"frechet_{extractor}")
        ticks = sorted({int(calls) for found in record["scores"].values() for calls in found})
        axis.set_xticks(ticks, labels=map(str, ticks), minor=False)
        axis.minorticks_off()
    axes[0].legend()
    figure.suptitle(f"{record['found_n']} samples against as many of split {record['settings']['split']}")
    return figure


def main() -> None:
    options = typed(sys.argv[1:])
    folder, record = measured(options)
    if not any(record["scores"].values()):
        raise ValueError("nothing was scored: none of these samplers can go along these grids")
    with atomic(folder / "steps.md") as file:
        file.write((table(record) + "\n").encode())
    print(table(record))
    style.save(plot(together(record, options.beside)), folder, "steps.png")


if __name__ == "__main__":
    if len(sys.argv) == 1:
        sys.exit(f"usage:{__doc__}")
    try:
        main()
    except cli.USER_ERRORS as error:
        cli.fail(cli.one_line(error))
