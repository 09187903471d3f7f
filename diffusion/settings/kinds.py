"""Kinds of values in the parts of a configuration, checked before torch is imported, which takes seconds.

What a class takes stands in its source, which is parsed and not imported. The class itself checks again when it is
built, ranges too: see `diffusion.build`.
"""

import ast
import functools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusion.build import INSTALLED, MOVED, ConfigError, described, fits

_PACKAGE = Path(__file__).parents[1]
_NAMES = {"bool": bool, "int": int, "float": float, "str": str, "list": list, "tuple": tuple, "Sequence": Sequence}


def check_kinds(config: Mapping[str, Any], typed: Iterable[str]) -> None:
    """Raises ConfigError if a setting that was typed is of a kind that its class does not take, is NaN, or is infinite
    and no end of a range.

    Args:
        config: plain; what follows from other settings may stand there as it is written.
        typed: full names of settings.
    """
    for name in typed:
        where, _, last = name.rpartition(".")
        part: Any = config
        for key in where.split(".") if where else ():
            part = part.get(key) if isinstance(part, Mapping) else None
        if not isinstance(part, Mapping) or not isinstance(part.get("_target_"), str) or last not in part:
            continue
        taken, value = parameters(part["_target_"]), part[last]
        follows = "${" in str(value)
        if last not in taken or follows or isinstance(value, Mapping):
            continue
        kind, default = taken[last]
        if not fits(value, kind):
            raise ConfigError(f"{name} must be {described(kind)}, got {value!r}")
        open_end = default == value or "max" in last  # a range may have no upper end
        if isinstance(value, float) and (math.isnan(value) or (math.isinf(value) and not open_end)):
            raise ConfigError(f"{name} must be a finite number, got {value}")


@functools.cache
def parameters(target: str) -> dict[str, tuple[Any, Any]]:
    """What a class of this project takes: name -> kind and default; those of other than plain kinds are left out."""
    module, _, name = target.rpartition(".")
    module = MOVED.get(module, module)
    root = _PACKAGE if INSTALLED and module.startswith("data") else _PACKAGE.parent
    place = root.joinpath(*module.split("."))
    files = sorted(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]
    classes = {node.name: node for file in files if file.is_file() for node in _classes(file)}
    while name in classes:
        found = classes[name]
        if (own := _own(found)) is not None:
            return own
        name = next((base.id for base in found.bases if isinstance(base, ast.Name)), "")
    return {}


def _classes(file: Path) -> Iterator[ast.ClassDef]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return (node for node in tree.body if isinstance(node, ast.ClassDef))


def _own(found: ast.ClassDef) -> dict[str, tuple[Any, Any]] | None:
    """The parameters of a class's `__init__`, or its fields if it is a dataclass; None where it has neither."""
    for node in found.body:
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            given = node.args
            late = [None] * (len(given.args) - len(given.defaults))
            pairs = [*zip(given.args, [*late, *given.defaults], strict=True)]
            pairs += zip(given.kwonlyargs, given.kw_defaults, strict=True)
            return _plain((a.arg, a.annotation, default) for a, default in pairs)
    if any("dataclass" in ast.unparse(decorator) for decorator in found.decorator_list):
        fields = (node for node in found.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name))
        return _plain((node.target.id, node.annotation, node.value) for node in fields)  # type: ignore[union-attr]
    return None


def _plain(
    given: Iterable[tuple[str, ast.expr | None, ast.expr | None]],
) -> dict[str, tuple[Any, Any]]:
    found = {}
    for name, annotation, default in given:
        try:
            kind = None if annotation is None else _kind(annotation)
        except LookupError:
            continue
        if kind is not None:
            found[name] = kind, _value(default)
    return found


def _kind(node: ast.expr) -> Any:
    """The type that an annotation of plain kinds means; LookupError for any other."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return _kind(node.left) | _kind(node.right)
    if isinstance(node, ast.Constant) and node.value is None:
        return type(None)
    if isinstance(node, ast.Name):
        return _NAMES[node.id]
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
        inner = node.slice.elts[0] if isinstance(node.slice, ast.Tuple) else node.slice
        return _NAMES[node.value.id][_kind(inner)]  # type: ignore[index]
    raise KeyError(ast.unparse(node))


def _value(node: ast.expr | None) -> Any:
    """A default that is written out; `math.inf` is one."""
    if node is not None and ast.unparse(node) in ("math.inf", 'float("inf")', "float('inf')"):
        return math.inf
    try:
        return None if node is None else ast.literal_eval(node)
    except ValueError:
        return None
