"""Every setting of the scripts, as a page.

    python docs/settings.py                      prints the page
    python docs/settings.py docs/settings.md     writes it

Names, defaults and comments are those of configs/; what has no comment there is described by its class's docstring.
"""

import ast
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import yaml

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import cli

HEAD = """# Every setting

With this page you can look up any setting of the scripts: its name, its default and what it does.
`python train.py --help` prints the same in short. A command with `--cfg job` at its end prints the values that it
would use.

A setting is typed as `name=value`. A group is chosen by name (`sampler=ddim`), and its settings follow a dot
(`sampler.eta=0.5`). `null` means no value; the comment says what then happens. A default like `${lr}` is the value of
another setting.

*This page is generated from `configs/` and the docstrings: `python docs/settings.py docs/settings.md`.*
"""
DOES = {
    "train": "trains a model",
    "sample": "draws from a model",
    "evaluate": "scores a model",
    "compare": "puts the scores of several runs beside each other",
    "export": "takes a model elsewhere",
}
GROUPS = {
    "dataset": "What is learned.",
    "dataset.condition": "What of an image the model is conditioned on; null: nothing.",
    "network": "What computes. Each dataset has a default network of a fitting size.",
    "schedule": "How much data and how much noise there is at each time.",
    "denoiser": "What the network predicts.",
    "objective": "What training minimises.",
    "optimizer": "How weights change.",
    "ema": "The average of the weights, from which samples are drawn.",
    "sampler": "How samples are drawn.",
    "grid": "Which times a sampler visits.",
    "wrapper": "What goes around a model's denoiser: a guidance of your own.",
    "trainer": "Limits and options of Lightning's trainer.",
    "experiment": "Settings that were chosen together. What is typed beside an experiment replaces its value.",
    "debug": "Short runs that look for mistakes.",
}


GLOBAL = "# @package _global_\n"


class Entry(NamedTuple):
    """A setting as it stands in a file: its default as text, its comment, and the class that it is an argument of."""

    default: str
    comment: str
    owner: str


def entries(path: Path) -> dict[str, Entry]:
    """The settings of a configuration by their names, with those of the configurations that it begins from."""
    text = path.read_text(encoding="utf-8")
    found: dict[str, Entry] = {}
    if text.startswith(GLOBAL):  # it has no settings of its own
        return found
    for other in (yaml.safe_load(text) or {}).get("defaults", ()):
        if isinstance(other, str) and (path.parent / f"{other}.yaml").exists():
            found |= entries(path.parent / f"{other}.yaml")
    levels: list[tuple[int, str]] = []
    owners = {name.rpartition(".")[0]: entry.owner for name, entry in found.items()}
    last = ""
    for line in text.splitlines():
        if last and (more := re.match(r"\s+# (.*)", line)):
            found[last] = found[last]._replace(comment=f"{found[last].comment} {more[1]}")
            continue
        parts = re.match(r"(\s*)([\w.]+):(.*)", line)
        if parts is None:
            last = ""
            continue
        indent, key = len(parts[1]), parts[2]
        value, _, comment = (part.strip() for part in parts[3].partition(" #"))
        levels = [*((depth, name) for depth, name in levels if depth < indent), (indent, key)]
        name = ".".join(name for _, name in levels)
        parent = name.rpartition(".")[0]
        last = ""
        if levels[0][1] in ("defaults", "hydra"):
            continue
        if key == "_target_":
            owners[parent] = value
        elif value:
            last = name
            kept = found[name].comment if name in found and not comment else comment
            found[name] = Entry(value, kept, owners.get(parent, ""))
    return found


@cache
def docstring(target: str) -> str:
    """The docstring of the class with this full name, that of its module or of a module of its package."""
    module, _, name = target.rpartition(".")
    place = ROOT / module.replace(".", "/")
    for path in [place.with_suffix(".py"), *sorted(place.glob("*.py"))]:
        if path.is_file():
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.ClassDef) and node.name == name:
                    return ast.get_docstring(node) or ""
    return ""


@cache
def arguments(target: str) -> dict[str, str]:
    """What the class's docstring says of its arguments, by their names."""
    _, _, section = docstring(target).partition("Args:\n")
    section = section.partition("\n\n")[0]
    found = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", section, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in found}


def described(name: str, entry: Entry, others: Iterable[dict[str, Entry]] = ()) -> str:
    """What a setting does: its comment, or what its class says of it, or its comment in other choices of its group, or
    what is said of the setting that its default refers to."""
    own = entry.comment or arguments(entry.owner).get(name.rpartition(".")[2], "")
    if own:
        return own
    referred = re.fullmatch(r"\$\{\w+\.(\w+)\}", entry.default)
    names = [name, *([referred[1]] if referred else [])]
    comments = [other[each].comment for each in names for other in others if each in other]
    return next(filter(None, comments), "")


def summary(path: Path) -> str:
    """What a choice of a group is, in one sentence: the comment at its file's top, or else its class's first words."""
    text = path.read_text(encoding="utf-8").replace(GLOBAL, "")
    if head := re.match(r"(?:# .*\n)+", text):
        return " ".join(line.removeprefix("# ") for line in head[0].splitlines())
    plain = yaml.safe_load(text) or {}
    target = plain.get("_target_") or (plain.get("source") or {}).get("_target_")
    if target is None:
        parents = [path.parent / f"{name}.yaml" for name in plain.get("defaults", ()) if isinstance(name, str)]
        inside = [value["_target_"] for value in plain.values() if isinstance(value, dict) and "_target_" in value]
        target = inside[0] if inside else None
        if target is None:
            return summary(parents[0]) if parents else ""
    return " ".join(docstring(target).partition("\n\n")[0].split())


def _cell(text: str) -> str:
    """Text that ends no cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")


def _code(text: str) -> str:
    return f"`{_cell(text)}`" if text else ""


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """In Markdown."""
    head = list(head)
    lines = [head, ["---"] * len(head), *map(list, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def settings_table(found: dict[str, Entry], prefix: str = "", others: Sequence[dict[str, Entry]] = ()) -> str:
    """The settings of a file; `others` are those of the other choices of its group."""
    rows = [
        (_code(prefix + name), _code(entry.default), _cell(described(name, entry, others)))
        for name, entry in found.items()
    ]
    return table(("setting", "default", "what it does"), rows)


def defaults(script: str) -> dict[str, str]:
    """The choice of each group of a script that nothing else was typed for."""
    plain = yaml.safe_load((cli.CONFIGS / f"{script}.yaml").read_text(encoding="utf-8"))
    chosen = [item for item in plain["defaults"] if isinstance(item, dict)]
    found = {
        name.removeprefix("optional ").replace("/", "."): str(value) for item in chosen for name, value in item.items()
    }
    groups = cli.groups_of(script)
    return {name: "null" if value == "None" else value for name, value in found.items() if name in groups}


def script_part(script: str) -> Iterator[str]:
    """The groups and the plain settings of a script."""
    yield f"## {script}.py\n\n`{script}.py` {DOES[script]}."
    groups = defaults(script)
    if groups:
        rows = [
            (f"[`{name}`](#{name.replace('.', '')})", _code(value), " ".join(map(_code, cli.choices_of(name))))
            for name, value in groups.items()
        ]
        yield table(("group", "default", "choices"), rows)
    yield settings_table(entries(cli.CONFIGS / f"{script}.yaml"))


def group_part(group: str) -> Iterator[str]:
    """The choices of a group, and the settings of each."""
    folder = cli.CONFIGS / group.replace(".", "/")
    yield f"### {group}\n\n{GROUPS[group]}"
    choices = cli.choices_of(group)
    if choices != ["default"]:
        rows = [(_code(name), _cell(summary(folder / f"{name}.yaml"))) for name in choices]
        yield table(("choice", "what it is"), rows)
    if group in ("experiment", "debug"):
        return
    tables: dict[str, list[str]] = {}
    every = {name: entries(folder / f"{name}.yaml") for name in choices}
    for name, found in every.items():
        if found:
            tables.setdefault(settings_table(found, f"{group}.", list(every.values())), []).append(name)
    for text, names in tables.items():
        yield f"**{', '.join(f'`{group}={name}`' for name in names)}**"
        yield text


def page() -> str:
    """The whole page."""
    parts = [HEAD.strip()]
    for script in DOES:
        parts += script_part(script)
    parts.append("## The groups")
    for group in GROUPS:
        parts += group_part(group)
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    if len(sys.argv) > 2 or sys.argv[-1].startswith("-"):
        sys.exit(f"usage:{__doc__}")
    if len(sys.argv) == 2:
        Path(sys.argv[1]).write_text(page(), encoding="utf-8")
    else:
        print(page(), end="")
