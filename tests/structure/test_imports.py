"""The direction of imports, read from the source: who may know of whom."""

import ast
import re
import sys
from pathlib import Path

import pytest
from import_order import ROOMS

ROOT = Path(__file__).parents[2]
DIFFUSION, DATA = sorted((ROOT / "diffusion").rglob("*.py")), sorted((ROOT / "data").rglob("*.py"))
LIGHTNING = {"pytorch_lightning", "lightning", "lightning_fabric", "torchmetrics"}

PLACES = {name: (line, place) for line, names in enumerate(ROOMS) for place, name in enumerate(names.split())}
# What is mathematics: torch, torchdiffeq and each other.
CORE = {"ranges", "schedules", "noise", "networks", *" ".join(ROOMS[2:8]).split()}
MODULES = [path for path in DIFFUSION if path.name != "__main__.py" and path != ROOT / "diffusion/__init__.py"]


def imports(path: Path) -> set[str]:
    """The absolute names of all that a file imports outside the standard library."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} has a relative import"
            # `from package import module` counts as the module.
            is_package = (ROOT / (node.module or "").replace(".", "/")).is_dir()
            names.update(f"{node.module}.{alias.name}" if is_package else str(node.module) for alias in node.names)
    return {name for name in names if name.split(".")[0] not in sys.stdlib_module_names}


def _tops(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(path)}


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def room(path: Path) -> str:
    """`diffusion/samplers/base.py` is of `samplers`."""
    return path.relative_to(ROOT / "diffusion").parts[0].removesuffix(".py")


def rooms(path: Path) -> set[str]:
    """Those that a module of diffusion imports from."""
    return {name.split(".")[1] for name in imports(path) if name.startswith("diffusion.")}


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_imports_go_down(path: Path) -> None:
    own = room(path)
    assert {other for other in rooms(path) if other != own and PLACES[other] >= PLACES[own]} == set()


@pytest.mark.parametrize("path", [path for path in MODULES if room(path) in CORE], ids=_name)
def test_mathematics_imports_torch_and_each_other_alone(path: Path) -> None:
    assert {name.split(".")[0] for name in imports(path)} <= {"torch", "torchdiffeq", "diffusion"}
    assert rooms(path) <= set(CORE)


@pytest.mark.parametrize("path", sorted((ROOT / "diffusion/networks").glob("*.py")), ids=_name)
def test_networks_import_torch_and_each_other_alone(path: Path) -> None:
    assert {name for name in imports(path) if not name.startswith(("torch", "diffusion.networks."))} == set()


@pytest.mark.parametrize("path", DATA, ids=_name)
def test_data_knows_nothing_of_diffusion(path: Path) -> None:
    assert not {"diffusion", "hydra", "train", "sample", "evaluate", "export", "compare"} & _tops(path)


@pytest.mark.parametrize("path", DIFFUSION, ids=_name)
def test_only_what_runs_are_made_of_knows_data_and_nothing_the_scripts_or_hydra(path: Path) -> None:
    assert not {"hydra", "choices", "cli", "hints", "train", "sample", "evaluate", "export", "compare"} & _tops(path)
    own = path.relative_to(ROOT / "diffusion").parts[0]
    assert "data" not in _tops(path) or own in ("runs", "sampling", "evaluation", "training")


@pytest.mark.parametrize("path", DIFFUSION, ids=_name)
def test_lightning_stays_with_the_training_code(path: Path) -> None:
    assert path.is_relative_to(ROOT / "diffusion/training") or not LIGHTNING & _tops(path)


CHOICES = re.compile(rf"\b({'|'.join(sorted(path.name for path in (ROOT / 'configs').iterdir() if path.is_dir()))})=\w")


@pytest.mark.parametrize(
    "path", [path for path in MODULES if room(path) in CORE or room(path) == "optimizers"], ids=_name
)
def test_mathematics_says_facts_and_names_no_choice_of_the_command_line(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    assert [text for text in texts if CHOICES.search(text)] == []
