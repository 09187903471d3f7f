"""Scores of many runs in one table, averaged over those that differ by seed alone, with intervals.

Examples:
    python compare.py runs=[0,1,2]                       what evaluate.py has saved of these runs
    python compare.py runs=lightning_logs/digits samplers=[own]   score each run of a folder by its own sampler first
    python compare.py runs=[0,1,2] samplers=[ddim,heun] steps=[10,50] out=table   to Markdown, LaTeX, CSV and a picture
    python compare.py runs=[0,1,2] scores=[frechet,coverage]   other columns
    python compare.py runs=results/a scores=all          all that evaluate.py out=results/a/... has written
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import choices
import cli
from diffusion.settings import comparison as settings
from diffusion.terminal import streams

if TYPE_CHECKING:
    from omegaconf import DictConfig


def described(group: str, name: str) -> dict[str, Any]:
    """What a choice of a group sets; values that follow from others stay as they are written."""
    from omegaconf import OmegaConf

    plain: Any = OmegaConf.to_container(choices.choice(group, name))
    return dict(plain)


def choice_of(group: str, part: Mapping[str, Any]) -> str | None:
    """The choice whose class a described part has, of several that with the fewest other values; None without one."""
    from diffusion.build import canonical

    if "." in group or group not in cli.groups_of("train"):
        return None
    part = canonical(part)
    wanted = str(part["_target_"]).rpartition(".")[2]
    found = {}
    for name in cli.choices_of(group):
        content = canonical(described(group, name))
        if str(content.pop("_target_", "")).rpartition(".")[2] == wanted:
            found[name] = differences(content, part)
    return min(found, key=lambda name: found[name]) if found else None


def differences(content: Mapping[str, Any], part: Mapping[str, Any]) -> int:
    """How many values of a choice a described part has otherwise, those inside its parts too; what follows from other
    settings is no value of the choice."""
    count = 0
    for key, value in content.items():
        if key == "_target_":  # another class inside tells more than any value
            count += 100 * (part.get(key) != value)
        elif isinstance(value, Mapping) and isinstance(part.get(key), Mapping):
            count += differences(value, part[key])
        elif key in part and not (isinstance(value, str) and "${" in value):
            count += part[key] != value
    return count


def main(config: "DictConfig") -> None:
    """Scores what lacks, prints the tables and writes them down."""
    from omegaconf import OmegaConf

    plain: Any = OmegaConf.to_container(config, resolve=True)
    options, grid = settings.read(plain, cli.typed(), cli.choices_of("sampler"))

    # Only now what imports torch, which takes seconds.
    from diffusion.evaluation import comparison, scoring
    from diffusion.evaluation.results import folders, is_run, results_of, saved
    from diffusion.evaluation.seeds import comparisons
    from diffusion.media import check_writable

    out = None if options.out is None else Path(options.out)
    if out is not None:
        check_writable(out)
    places = folders(options.named_runs())
    if options.named_samplers():
        methods = scoring.methods(options, grid, lambda name: described("sampler", name))
        if no_runs := [place for place in places if not is_run(place)]:
            raise ValueError(f"{no_runs[0]} has scores and no run to score: leave samplers= out, or name runs alone")
        files = list(scoring.files(places, methods, options))
        results = [result for file in files for result in results_of(file, choice_of)]
    else:
        results = [result for place in places for result in saved(place, choice_of)]
    if not results:
        raise ValueError(
            f"no scores were saved of {', '.join(map(str, places[:3]))}{' ...' if len(places) > 3 else ''}: add "
            f"samplers=[own] to score each run by its own sampler, or python evaluate.py ckpt=..."
        )
    found = comparison.shown(comparisons(results), options.named_scores())
    streams.result("\n\n".join(comparison.markdown(one) for one in found))
    if out is not None:
        print("\n".join(f"written: {file}" for file in comparison.write(out, found)), file=sys.stderr)


def entry() -> None:
    """The command line."""
    cli.run(main, "compare", __doc__ or "", "lower batch_size= (samples at a time) or n=")


if __name__ == "__main__":
    entry()
