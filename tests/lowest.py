"""The lowest version of each dependency that pyproject.toml allows, as requirements for pip; see `make lowest`."""

import tomllib
from pathlib import Path

from packaging.requirements import Requirement

PROJECT = Path(__file__).parents[1] / "pyproject.toml"


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


def requirements() -> list[str]:
    """Those of the project and of all its extras."""
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    return [lowest(line) for line in lines]


if __name__ == "__main__":
    print("\n".join(requirements()))
