"""What the structure is measured by.

python tests/structure/counts.py            of this checkout
python tests/structure/counts.py FOLDER     of another one, to compare
"""

import ast
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
# The kinds of models, and the classes that tell them apart.
KINDS = {
    **dict.fromkeys(("Denoiser", "TrainableDenoiser", "RegressionDenoiser", "ResidualDenoiser"), "denoiser"),
    "NoisyClassifier": "classifier",
    "Autoencoder": "autoencoder",
}
# Names under which a run's configuration is held.
CONFIGS = {"config", "plain", "stored", "options"}
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


class Place(NamedTuple):
    """A function, or a module's top level, and a line in it."""

    file: str
    function: str
    line: int


def sources(root: Path = ROOT) -> list[Path]:
    """The scripts, `data` and `diffusion`."""
    return sorted([*root.glob("*.py"), *root.glob("data/**/*.py"), *root.glob("diffusion/**/*.py")])


@cache
def _nodes(root: Path) -> list[tuple[Place, ast.AST]]:
    found = []
    for path in sources(root):
        stack: list[tuple[str, ast.AST]] = [("", ast.parse(path.read_text(encoding="utf-8")))]
        while stack:
            name, node = stack.pop()
            found.append((Place(str(path.relative_to(root)), name, getattr(node, "lineno", 0)), node))
            inside = f"{name}.{node.name}".strip(".") if isinstance(node, (*FUNCTIONS, ast.ClassDef)) else name
            stack += [(inside, child) for child in ast.iter_child_nodes(node)]
    return found


def kind_checks(root: Path = ROOT) -> list[tuple[Place, set[str]]]:
    """Where isinstance tells kinds of models apart, and which; an assert, which tells the type checker, is none."""
    asserted = {id(call) for _, node in _nodes(root) if isinstance(node, ast.Assert) for call in ast.walk(node.test)}
    found = []
    for place, node in _nodes(root):
        called = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "isinstance"
        if called and id(node) not in asserted:
            names = {leaf.id for leaf in ast.walk(node.args[1]) if isinstance(leaf, ast.Name)}
            if kinds := {KINDS[name] for name in names & KINDS.keys()}:
                found.append((place, kinds))
    return found


def ladders(root: Path = ROOT) -> list[str]:
    """Functions that tell more than one kind of models from others."""
    kinds: dict[str, set[str]] = {}
    for place, found in kind_checks(root):
        kinds.setdefault(f"{place.file}:{place.function}", set()).update(found)
    return sorted(function for function, found in kinds.items() if len(found) > 1)


def open_dicts(root: Path = ROOT) -> list[Place]:
    """Where something is a dict, or a mapping, from names to anything."""
    return [
        place
        for place, node in _nodes(root)
        if isinstance(node, ast.Subscript) and ast.unparse(node) in ("dict[str, Any]", "Mapping[str, Any]")
    ]


def config_changes(root: Path = ROOT) -> list[Place]:
    """Where a value is put into a configuration."""
    found = []
    for place, node in _nodes(root):
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AugAssign) else []
        )
        for target in (leaf for each in targets for leaf in (each.elts if isinstance(each, ast.Tuple) else [each])):
            base: ast.AST = target
            while isinstance(base, ast.Subscript | ast.Attribute):
                held = base.attr if isinstance(base, ast.Attribute) else ""
                base = base.value
                if held in CONFIGS and isinstance(target, ast.Subscript):
                    break
            else:
                held = base.id if isinstance(base, ast.Name) else ""
            if held in CONFIGS and isinstance(target, ast.Subscript | ast.Attribute) and place.file != "cli.py":
                found.append(place)
    return found


def calls(name: str, root: Path = ROOT) -> list[Place]:
    """Where a function or class of this name is called."""
    return [
        place
        for place, node in _nodes(root)
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == name
    ]


def built_parts(root: Path = ROOT) -> dict[str, int]:
    """In how many places each part of a run is built from its configuration."""
    found: dict[str, int] = {}
    for _, node in _nodes(root):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("build", "built", "self._built", "self._part"):
            names = [leaf.value for leaf in node.args if isinstance(leaf, ast.Constant) and isinstance(leaf.value, str)]
            for name in names[:1]:
                found[name] = found.get(name, 0) + 1
    return dict(sorted(found.items()))


def lines(root: Path = ROOT) -> int:
    """Of `diffusion` and `data`."""
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in sources(root) if path.parent != root)


if __name__ == "__main__":
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT
    print(f"isinstance over kinds of models: {len(kind_checks(root))}, ladders of them: {ladders(root)}")
    print(f"dict[str, Any] and Mapping[str, Any]: {len(open_dicts(root))}")
    print(f"values put into a configuration: {len(config_changes(root))}")
    print(f"places where a Trainer is made: {len(calls('Trainer', root))}")
    print(f"places where a part is built: {built_parts(root)}")
    print(f"lines of diffusion/ and data/: {lines(root)}")
