"""Runs the notebook and stores what its cells show, so that it can be read without running it.

    python docs/notebook.py        docs/sampling.ipynb, with the newest run of lightning_logs/

Only what a cell's last line gives is stored: its text, and of a picture the picture.
"""

import ast
import base64
import io
import json
import sys
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
NOTEBOOK = ROOT / "docs" / "sampling.ipynb"


def ran(code: str, names: dict[str, Any]) -> Any:
    """Runs a cell's code with these names; the value of its last line if that is an expression, else None."""
    tree = ast.parse(code)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), names)
    return eval(compile(ast.Expression(last.value), "cell", "eval"), names) if isinstance(last, ast.Expr) else None


def shown(value: Any) -> dict[str, Any]:
    """A value as a notebook stores it, by type."""
    found: dict[str, Any] = {"text/plain": repr(value).splitlines(keepends=True)}
    if isinstance(value, Image.Image):
        content = io.BytesIO()
        value.save(content, "PNG", optimize=True)
        found = {"image/png": base64.b64encode(content.getvalue()).decode(), "text/plain": ["<a picture>"]}
    return found


def executed(notebook: dict[str, Any]) -> dict[str, Any]:
    """The notebook with the outputs of its cells, each run after the ones before it."""
    names: dict[str, Any] = {}
    count, cells = 0, []
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            count += 1
            value = ran("".join(cell["source"]), names)
            result = {"output_type": "execute_result", "execution_count": count, "metadata": {}, "data": shown(value)}
            cell = cell | {"execution_count": count, "outputs": [] if value is None else [result]}
        cells.append(cell)
    return notebook | {"cells": cells}


if __name__ == "__main__":
    found = executed(json.loads(NOTEBOOK.read_text(encoding="utf-8")))
    NOTEBOOK.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
