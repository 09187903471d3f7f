"""The lists of dependencies agree, and the suite runs by the README's command, also on another Python."""

import os
import subprocess
from pathlib import Path

import lowest
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]


def pins() -> dict[str, str]:
    """Name and exact version of each line of requirements.txt."""
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    requirements = [Requirement(line) for line in lines if line and not line.startswith("#")]
    found = {}
    for requirement in requirements:
        (specifier,) = requirement.specifier
        assert specifier.operator == "=="
        assert not requirement.url
        found[canonicalize_name(requirement.name)] = specifier.version
    return found


def ranges() -> dict[str, Requirement]:
    """Name and range of each dependency in pyproject.toml that requirements.txt pins."""
    return {canonicalize_name(Requirement(line).name): Requirement(line) for line in lowest.dependencies()}


def test_requirements_pin_exactly_what_pyproject_allows() -> None:
    assert pins().keys() == ranges().keys()
    for name, requirement in ranges().items():
        assert requirement.specifier.contains(pins()[name]), (
            f"{name}=={pins()[name]} is outside {requirement.specifier}"
        )


def test_published_malicious_versions_of_lightning_are_excluded() -> None:
    for version in ("2.6.2", "2.6.3"):
        assert not ranges()["pytorch-lightning"].specifier.contains(version)
    assert ranges()["pytorch-lightning"].specifier.contains(pins()["pytorch-lightning"])


def test_every_dependency_has_a_lowest_version_which_is_within_its_range() -> None:
    for line in lowest.requirements():
        requirement = Requirement(line)
        (pinned,) = requirement.specifier
        assert ranges()[canonicalize_name(requirement.name)].specifier.contains(pinned.version)
    with pytest.raises(ValueError, match=r"torch<3: give one lower bound, torch>="):
        lowest.lowest("torch<3")


def test_each_package_is_listed_once() -> None:
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line and line[0] != "#"]
    assert len(pins()) == len(lines)
    assert len(lowest.dependencies()) == len(ranges())


def program(path: Path, *lines: str) -> None:
    """A shell script that can be called by its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(("#!/bin/sh", *lines)) + "\n")
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("make", "status", "last"),
    [
        ('echo "$@"', 0, "test PYTHON={pyenv}/versions/3.13.0/bin/python3.13"),
        ("[ $# = 1 ] || exit 2", 2, ""),
        ("exit 3", 3, ""),
    ],
    ids=["both pass", "the second fails", "the first fails"],
)
def test_continuous_integration_runs_the_suite_on_the_newest_python_that_runs(
    make: str, status: int, last: str, tmp_path: Path
) -> None:
    """Here python3.13 and python3.14 are commands that fail, as those of a pyenv version that is not active."""
    commands, pyenv = tmp_path / "bin", tmp_path / "pyenv"
    program(commands / "make", make)
    program(commands / "python3", "echo 11")
    for name in ("python3.13", "python3.14"):
        program(commands / name, "exit 127")
    program(commands / "pyenv", f"echo {pyenv}")
    for version in ("3.12.1", "3.13.0"):
        program(pyenv / "versions" / version / "bin" / f"python{version[:4]}", "exit 0")
    done = subprocess.run(
        ["bash", str(ROOT / ".ci" / "run")],
        cwd=tmp_path,
        env={"PATH": f"{commands}:{os.defpath}"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == status, done.stderr
    assert (done.stdout.splitlines() or [""])[-1] == last.format(pyenv=pyenv)


def test_the_test_command_is_the_readmes() -> None:
    assert "\nmake test\n" in (ROOT / ".ci" / "run").read_text()
    assert "make test" in (ROOT / "README.md").read_text()
