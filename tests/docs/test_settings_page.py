"""docs/settings.md has every setting, each with what it does, as the configurations have them."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

import cli

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "settings.md"
SCRIPTS = ("train", "sample", "evaluate", "compare", "export")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """docs/settings.py, which writes the page."""
    spec = importlib.util.spec_from_file_location("settings_page", ROOT / "docs" / "settings.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_what_its_command_writes(script: ModuleType) -> None:
    assert script.page() == PAGE.read_text(), "write it again: python docs/settings.py docs/settings.md"


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_page_has_every_setting_and_choice_that_a_script_takes(name: str, script: ModuleType) -> None:
    named = set(re.findall(r"^\| `([\w.]+)` \|", PAGE.read_text(), re.MULTILINE))
    groups = cli.groups_of(name)
    # What is chosen by name has no value of its own; what holds settings is not one.
    holders = {key.rpartition(".")[0] for key in cli.keys_of(name)}
    # A dataset's own network is no choice that is listed.
    assert set(cli.keys_of(name)) - holders - named == set()
    assert {choice for group in groups for choice in cli.choices_of(group)} - {"default"} <= named
    assert set(groups) <= script.GROUPS.keys(), "docs/settings.py says nothing of a group"


def test_every_setting_and_choice_says_what_it_is() -> None:
    rows = re.findall(r"^\| `.*\|$", PAGE.read_text(), re.MULTILINE)
    assert len(rows) > 400
    assert [row for row in rows if row.endswith("|  |")] == []


def test_settings_are_described_by_their_comment_or_else_by_their_class(script: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("_target_: diffusion.samplers.DDIMSampler\neta: 0.0\nother: 1 # first\n")
    (tmp_path / "x.yaml").write_text(
        "# What | it is,\n# in two lines.\ndefaults:\n  - base\n\neta: 1.0\nother: 2\n  # more\n"
    )
    found = script.entries(tmp_path / "x.yaml")
    assert {name: entry.default for name, entry in found.items()} == {"eta": "1.0", "other": "2"}
    assert script.described("eta", found["eta"]) == "scales the noise of each step, in [0, 1]."
    assert script.described("other", found["other"]) == "first more"
    assert script.summary(tmp_path / "x.yaml") == "What | it is, in two lines."
