"""The two lists of dependencies agree, and the test command is the one that the README shows."""

import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


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
    """Name and range of each dependency in pyproject.toml, extras included."""
    lines = [*PROJECT["dependencies"], *(line for extra in PROJECT["optional-dependencies"].values() for line in extra)]
    return {canonicalize_name(Requirement(line).name): Requirement(line) for line in lines}


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


def test_packages_and_modules_of_the_distribution_exist() -> None:
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert set(setup["packages"]) == {
        ".".join(path.parent.relative_to(ROOT).parts)
        for top in ("diffusion", "data")
        for path in ROOT.glob(f"{top}/**/__init__.py")
    }
    assert set(setup["py-modules"]) == {path.stem for path in ROOT.glob("*.py")}


def test_continuous_integration_runs_the_readme_test_command() -> None:
    assert (ROOT / ".ci" / "run").read_text().splitlines()[-1] == "make test"
    assert "make test" in (ROOT / "README.md").read_text()
