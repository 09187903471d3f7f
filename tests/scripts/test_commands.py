"""A printed command does what it says when it is pasted into a shell."""

import shlex

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

import cli
from diffusion.terminal.commands import pasted

NAMES = (
    "lightning_logs/digits/version_0",
    "my runs/digits/version_0",
    "Fotos über uns/version_1",
    "a,b/version_1",
    "[old]/version_1",
    "it's/version_1",
    'a "b" c/version_1',
    "back\\slash/version_1",
    "ends with a backslash\\",
    "cost $HOME `x` $(y) !/version_1",
    "${name}/version_1",
    "a=b;c&d|e>f/version_1",
    "#1 (copy)/version_1",
    "{x}: *?/version_1",
)


@pytest.mark.parametrize("name", NAMES)
def test_a_pasted_path_passes_the_shell_and_hydra_unchanged(name: str) -> None:
    words = shlex.split(f"python train.py resume={pasted(name)} trainer.max_steps=8")
    assert words[-1] == "trainer.max_steps=8"
    (argument, _) = cli.checked(words[2:], "train")
    (override,) = OverridesParser.create().parse_overrides([argument])
    assert not override.is_sweep_override()
    assert str(OmegaConf.create({"resume": override.value()}).resume) == name


def test_a_plain_path_is_pasted_without_quotes() -> None:
    assert pasted("lightning_logs/digits/version_0") == "lightning_logs/digits/version_0"
