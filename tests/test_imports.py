"""The direction of imports, read from the source: who may know of whom."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DIFFUSION, DATA = sorted((ROOT / "diffusion").rglob("*.py")), sorted((ROOT / "data").rglob("*.py"))
LIGHTNING = {"pytorch_lightning", "lightning", "lightning_fabric", "torchmetrics"}

# The core from the bottom up: a module imports what stands in lines above its own, or before it in its line.
CORE = (
    "ranges",
    "schedules noise",
    "forward",
    "denoisers steps residual",
    "ode guidance grids",
    "samplers multistep stochastic adaptive repaint trial likelihood",
    "objectives",
    "classifiers autoencoder",
)
PLACES = {name: (line, place) for line, names in enumerate(CORE) for place, name in enumerate(names.split())}


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


@pytest.mark.parametrize("name", PLACES)
def test_the_core_imports_downwards_and_nothing_else(name: str) -> None:
    found = imports(ROOT / f"diffusion/{name}.py")
    assert {other for other in found if not other.startswith("diffusion.")} <= {
        "torch",
        "torch.nn.functional",
        "torchdiffeq",
    }
    ours = {other.removeprefix("diffusion.") for other in found if other.startswith("diffusion.")}
    assert {other for other in ours if PLACES.get(other, PLACES[name]) >= PLACES[name]} == set()


@pytest.mark.parametrize("path", sorted((ROOT / "diffusion/networks").glob("*.py")), ids=_name)
def test_networks_import_torch_and_each_other_alone(path: Path) -> None:
    assert {name for name in imports(path) if not name.startswith(("torch", "diffusion.networks."))} == set()


@pytest.mark.parametrize("path", DATA, ids=_name)
def test_data_knows_nothing_of_diffusion(path: Path) -> None:
    assert not {"diffusion", "hydra", "train", "sample", "evaluate"} & _tops(path)


@pytest.mark.parametrize("path", DIFFUSION, ids=_name)
def test_diffusion_knows_nothing_of_data_or_of_hydra(path: Path) -> None:
    # What reads images that a person gives, for sampling and evaluation, reads them as data sets are read.
    readers = ("diffusion/given.py", "diffusion/evaluation/files.py")
    allowed = {"data.pictures"} if _name(path) in readers else set()
    found = imports(path) - allowed
    assert not {"data", "hydra", "train", "sample", "evaluate"} & {name.split(".")[0] for name in found}


@pytest.mark.parametrize("path", DIFFUSION, ids=_name)
def test_lightning_stays_with_the_training_code(path: Path) -> None:
    training = {"module.py", "callbacks.py", "watchers.py", "saving.py", "runlog.py", "training.py", "timing.py"}
    assert path.name in training or not LIGHTNING & _tops(path)
