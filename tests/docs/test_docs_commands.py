"""Every command of the documentation, of `make demo` and of the scripts' examples names what exists and passes the
early checks."""

import importlib.util
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

import cli
import compare
import evaluate
import export
import sample
import train
from diffusion.settings import comparison, evaluation, sampling
from diffusion.settings.training import check

ROOT = Path(__file__).parents[2]
SCRIPTS = {"train": train, "sample": sample, "evaluate": evaluate, "export": export, "compare": compare}
# Those of docs/extending.md need what the page adds; test_docs.py runs them.
PAGES = [ROOT / "README.md", *(page for page in sorted((ROOT / "docs").glob("*.md")) if page.stem != "extending")]


def demo() -> list[str]:
    """The commands of `make demo`, in their order."""
    return re.findall(r"^\t\$\(BIN\)/(python \w.*\.py.*)$", (ROOT / "Makefile").read_text().split("\ntest:")[0], re.M)


def commands() -> list[tuple[str, str]]:
    """(where it stands, command without its comment), in the order of the pages; each command once."""
    found: dict[str, str] = {}
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        blocks = re.findall(r"^```console\n(.*?)^```$", text, re.M | re.S)
        lines = [line for block in blocks for line in block.splitlines()] + re.findall(r"`(python [^`\n]+)`", text)
        for line in lines:
            if line.startswith("python "):
                found.setdefault(shlex.join(shlex.split(line, comments=True)), page.name)
    for line in demo():
        found.setdefault(line, "Makefile")
    for name, script in SCRIPTS.items():
        for example in re.findall(r"^    (python .+)$", script.__doc__ or "", re.M):
            found.setdefault(re.split(r" {3,}", example)[0], f"{name}.py")
    return [(where, command) for command, where in found.items()]


def composed(script: str, arguments: list[str]) -> dict[str, Any]:
    """The configuration that these arguments make; of the values of a sweep, the first."""
    mine = [argument for argument in cli.checked(arguments, script) if not argument.startswith("hydra")]
    arguments = [argument for argument in mine if argument not in ("-m", "--multirun")]
    chosen = []
    for override in OverridesParser.create().parse_overrides(arguments):
        if override.is_interval_sweep():
            first = override.value().start
        else:
            first = next(iter(override.sweep_string_iterator())) if override.is_sweep_override() else None
        chosen.append(override.input_line if first is None else f"{override.key_or_group}={first}")
    with initialize_config_dir(str(cli.CONFIGS), version_base="1.3"):
        config = compose(script, chosen)
    if script == "train":
        check(config)
    plain: Any = OmegaConf.to_container(config, resolve=script != "train")
    plain.pop("quiet", None)  # which the command line takes out
    return plain


def test_the_documentation_has_commands() -> None:
    assert len(commands()) > 80


@pytest.mark.parametrize(("where", "command"), commands(), ids=lambda value: value.replace(" ", "_"))
def test_a_documented_command_names_what_exists_and_passes_the_checks_before_the_data(
    where: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffusion.settings.training.check_loggers", lambda names: None)  # whatever is installed
    _, script, *arguments = shlex.split(command)
    if script == "-m":
        assert importlib.util.find_spec(arguments[0]) is not None
        return
    assert (ROOT / script).is_file()
    name = script.removesuffix(".py")
    if name not in SCRIPTS or "--help" in arguments or "sampler=mine" in arguments:  # which test_readme.py draws with
        return
    plain = composed(name, arguments)
    if name == "train":
        return
    typed = [argument.partition("=")[0] for argument in arguments]
    if name == "export":
        export.Options(**plain).refuse_idle(typed)
    elif name == "compare":
        comparison.read(plain, typed, cli.choices_of("sampler"))
    elif name == "evaluate":
        evaluation.read(plain, typed)
    else:
        options, *_ = sampling.read(plain)
        options.refuse_idle(typed, Path(options.out or "pred.gif"), (1, 28, 28))
