"""The lowest version of each dependency that pyproject.toml allows, as requirements for pip; see `make lowest`."""

import tomllib
from pathlib import Path

from packaging.requirements import Requirement

PROJECT = Path(__file__).parents[1] / "pyproject.toml"
APART = ("docs", "loggers", "sweeps")  # extras that the suite does without: few people need them


def lowest(line: str) -> str:
    """`torch>=2.6` becomes `torch==2.6`.

    Raises:
        ValueError: the requirement has no lower bound.
    """
    requirement = Requirement(line)
    bounds = [specifier.version for specifier in requirement.specifier if specifier.operator == ">="]
    if len(bounds) != 1:
        raise ValueError(f"{line}: give one lower bound, {requirement.name}>=...")
    return f"{requirement.name}=={bounds[0]}"


def dependencies() -> list[str]:
    """The lines of pyproject.toml, those of its extras included but for `APART`."""
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    extras = [lines for name, lines in project["optional-dependencies"].items() if name not in APART]
    return [*project["dependencies"], *(line for lines in extras for line in lines)]


def requirements() -> list[str]:
    """The lowest versions of all of them."""
    return [lowest(line) for line in dependencies()]


if __name__ == "__main__":
    print("\n".join(requirements()))
