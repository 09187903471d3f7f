"""What a comparison takes: which runs, which of their scores, and how they are scored where they are not yet."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusion.build import construct, nearest
from diffusion.settings.evaluation import Options as Evaluation
from diffusion.settings.idle import refuse
from diffusion.settings.kinds import check_kinds
from diffusion.settings.several import listed

OWN = "own"  # the sampler that a run has chosen


@dataclass
class Options:
    """The plain values of configs/compare.yaml with their types and ranges."""

    runs: str | int | list[str | int] | None
    scores: str | list[str] | None
    out: str | None
    samplers: str | list[str] | None
    steps: int | list[int] | None
    split: str
    n: int | None
    extractors: str | list[str] | None
    seed: int
    weights: str | float
    batch_size: int | None
    devices: int | str | list[int]
    accelerator: str
    cache: str | None
    data_dir: str | None

    def __post_init__(self) -> None:
        if self.runs in (None, "", []):
            raise ValueError(
                "runs= is missing: give version numbers, run folders, or a folder of runs: runs=[0,1,2], "
                "runs=lightning_logs/digits"
            )
        if "" in self.named_runs() or self.out == "":
            raise ValueError(f"{'out' if self.out == '' else 'runs'}= has an empty name: give the name of a folder")
        for name in ("samplers", "steps", "scores"):
            values = listed(vars(self)[name])
            if vars(self)[name] == [] or len(set(values)) < len(values):
                raise ValueError(f"{name} must name at least one, and each once, got {vars(self)[name]}")
        for steps in self.each_steps():
            self.evaluation(".", ".", steps)

    def named_runs(self) -> list[str]:
        """What was typed for the runs, one by one."""
        return [str(spec) for spec in listed(self.runs)]

    def named_scores(self) -> list[str] | None:
        """How the names of the columns begin; None where nobody chose."""
        return None if self.scores is None else listed(self.scores)

    def named_samplers(self) -> list[str]:
        """Those to score the runs by; none to read what there is."""
        return listed(self.samplers)

    def each_steps(self) -> list[int | None]:
        """The numbers of steps to sample with."""
        return [None] if self.steps is None else listed(self.steps)

    def evaluation(self, run: str, out: str, steps: int | None) -> Evaluation:
        """The settings by which `evaluate.py` scores a run; raises ValueError for values that cannot be.

        Args:
            run: its folder.
            out: the folder to write to.
            steps: of the sampler.
        """
        taken = ("split", "n", "extractors", "seed", "weights", "batch_size", "devices", "accelerator", "cache")
        values = {name: vars(self)[name] for name in (*taken, "data_dir")}
        others = dict.fromkeys(("conditioning_noise", "start_level", "samples", "likelihood", "tolerance", "probes"))
        plain = {"ckpt": run, "out": out, "steps": steps, "download": True, "train_classifier": False}
        made: Evaluation = construct(Evaluation, values | others | plain)
        return made

    def refuse_idle(self, typed: Iterable[str]) -> None:
        """Raises ConfigError, one line, if something was typed that only a run that is scored takes up."""
        reading = ("runs", "scores", "out", "samplers")
        if not self.samplers:
            idle = ["grid", *(name for name in vars(self) if name not in reading)]
            refuse(typed, idle, "scores that are read", "say by which samplers= to score the runs")


def read(
    config: Mapping[str, Any], typed: Iterable[str], samplers: Iterable[str]
) -> tuple[Options, dict[str, Any] | None]:
    """The checked values of a composed configuration, and the grid that was asked for.

    Args:
        config: as it was composed.
        typed: names of the settings that a person wrote.
        samplers: names that exist.

    Raises:
        ConfigError: a value that cannot be, or changes nothing, or a missing one.
    """
    plain = dict(config)
    check_kinds(plain, typed)
    grid = plain.pop("grid", None)
    options: Options = construct(Options, plain)
    options.refuse_idle(typed)
    choices = [OWN, *samplers]
    for name in options.named_samplers():
        if name not in choices:
            raise ValueError(f"samplers={name} does not exist{nearest(name, choices)}; there are {', '.join(choices)}")
    if options.out is not None and Path(options.out).is_file():
        raise ValueError(f"out={options.out} is a file, and out= is a folder")
    return options, grid
