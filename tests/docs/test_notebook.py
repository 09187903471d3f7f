"""The notebook runs, and what it shows is stored in it."""

import importlib.util
import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def script() -> ModuleType:
    """docs/notebook.py, which runs it."""
    spec = importlib.util.spec_from_file_location("notebook", ROOT / "docs" / "notebook.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def outputs(notebook: dict[str, Any]) -> list[list[str]]:
    """The kinds of what each cell of code shows."""
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return [sorted(kind for output in cell["outputs"] for kind in output["data"]) for cell in cells]


def test_running_the_notebook_gives_the_outputs_that_are_stored_in_it(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = tmp_path / "lightning_logs" / "digits" / "version_0" / "checkpoints"
    checkpoints.mkdir(parents=True)
    shutil.copy(ROOT / "tests" / "fixtures" / "digits.ckpt", checkpoints / "last.ckpt")
    monkeypatch.chdir(tmp_path)
    stored = json.loads(script.NOTEBOOK.read_text(encoding="utf-8"))
    found = script.executed(stored)
    assert all(outputs(stored))
    assert outputs(found) == outputs(stored)
    assert [cell["source"] for cell in found["cells"]] == [cell["source"] for cell in stored["cells"]]
    counts = [cell["execution_count"] for cell in stored["cells"] if cell["cell_type"] == "code"]
    assert counts == list(range(1, len(counts) + 1))
    assert (tmp_path / "predicted.gif").stat().st_size > 1000


def test_the_last_line_of_a_cell_is_what_it_shows(script: ModuleType) -> None:
    names: dict[str, Any] = {}
    assert script.ran("a = 2\na + 1", names) == 3
    assert script.ran("b = a", names) is None
    assert names["b"] == 2
    assert script.shown((1, 2)) == {"text/plain": ["(1, 2)"]}
