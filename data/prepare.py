"""Fetch and check a data set ahead of training: `python -m data.prepare dataset=cifar [data_dir=...]`.

dataset=NAME     which one
data_dir=FOLDER  where data sets are looked for and downloaded to; data/raw if left out
download=false   fetches nothing
dataset.KEY=     any setting of that data set
"""

import difflib
import importlib
import io
import sys
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from data.stream import Source

PATHS = ("data_dir", "dataset.path", "dataset.source.path", "dataset.source.data_dir")
CONFIGS = Path(__file__).parent.parent / "configs" / "dataset"


def nearest(name: str, choices: list[str]) -> str:
    """Return `; did you mean 'x'?` for the choice nearest to `name`, or nothing where none is near."""
    close = difflib.get_close_matches(name, choices, n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def _options(config: DictConfig) -> dict[str, Any]:
    """The class of a data set and its arguments."""
    options: Any = OmegaConf.to_container(config.dataset.source, resolve=True)
    return options


def build(arguments: list[str]) -> tuple[str, Source]:
    """Return the name and the source of the data set that `key=value` arguments describe.

    The keys are `dataset`, `data_dir`, `download` and `dataset.<key>` for any key of the data set's YAML file.

    Raises:
        ValueError: an argument is unknown or malformed.
    """
    choices = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
    for argument in arguments:
        if "=" not in argument:
            raise ValueError(f"'{argument}': write key=value, for example dataset=fashion")
    name = ([argument.partition("=")[2] for argument in arguments if argument.startswith("dataset=")] or [""])[-1]
    if name not in choices:
        raise ValueError(f"dataset={name}: must be one of {', '.join(choices)}{nearest(name, choices)}")
    config = OmegaConf.create(
        {"data_dir": "data/raw", "download": True, "dataset": OmegaConf.load(CONFIGS / f"{name}.yaml")}
    )
    OmegaConf.set_struct(config, True)
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key == "dataset":
            continue
        before = config.copy()
        try:
            if key in PATHS:  # whose names may have any character, and mean no YAML
                OmegaConf.update(config, key, value.replace("${", "\\${"))
            else:
                config.merge_with_dotlist([argument])
        except (OmegaConfBaseException, YAMLError):
            keys = ["dataset", "data_dir", "download", *(f"dataset.{key}" for key in config.dataset)]
            raise ValueError(
                f"{argument}: unknown key or malformed value; the keys are {', '.join(keys)}{nearest(key, keys)}"
            ) from None
        # What stands there already may be repeated.
        if config != before and _options(config) == _options(before):
            raise ValueError(f"{argument} changes nothing of what dataset={name} has: leave it out")
    options = _options(config)
    _, module, class_name = options.pop("_target_").split(".")
    return name, getattr(importlib.import_module(f"{__package__}.{module}"), class_name)(**options)


def main(arguments: list[str]) -> int:
    """Load a data set and print what it has, or what can be chosen (`--help`); return the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names that the terminal's encoding lacks are escaped
            stream.reconfigure(errors="backslashreplace")
    if not {"--help", "-h"}.isdisjoint(arguments):
        print(f"{__doc__}\nData sets: {' '.join(sorted(path.stem for path in CONFIGS.glob('*.yaml')))}")
        return 0
    try:
        name, source = build(arguments)
        splits = source.load()
    except (ValueError, OSError, OmegaConfBaseException) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    sizes = ", ".join(f"{len(part):,} {split}" for split, part in zip(splits._fields, splits, strict=True))
    print(f"{name}: {sizes}; each of shape {tuple(source.shape)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
