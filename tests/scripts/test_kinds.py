"""What a class takes, read from its source, is what the class takes."""

import inspect
import math
import re
import types
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, Union, get_args, get_origin, get_type_hints

import pytest
from omegaconf import OmegaConf

import choices
import cli
from diffusion.build import ConfigError, resolve
from diffusion.settings.kinds import check_kinds, parameters

PLAIN = (bool, int, float, str, type(None))


def targets(node: Any) -> set[str]:
    """The classes that a configuration names."""
    if isinstance(node, dict):
        own = {node["_target_"]} if "_target_" in node else set()
        return own.union(*(targets(value) for value in node.values()))
    return set()


def is_plain(hint: Any) -> bool:
    if get_origin(hint) in (Union, types.UnionType):
        return all(is_plain(option) for option in get_args(hint))
    if get_origin(hint) in (Sequence, list, tuple):
        return is_plain(get_args(hint)[0])
    return hint in PLAIN


NAMED = sorted(
    set().union(
        *(
            targets(OmegaConf.to_container(choices.choice(group, name)))
            for group in cli.groups_of("train")
            if group != "experiment"
            for name in cli.choices_of(group)
        )
    )
)


@pytest.mark.parametrize("target", NAMED)
def test_a_class_takes_what_its_source_says(target: str) -> None:
    cls = resolve(target, "part")
    hints = get_type_hints(cls.__init__)  # type: ignore[misc]
    taken = {name: p for name, p in inspect.signature(cls).parameters.items() if is_plain(hints.get(name, Any))}
    found = parameters(target)
    assert found.keys() == taken.keys()
    for name, parameter in taken.items():
        kind, default = found[name]
        assert kind == hints[name], name
        if parameter.default not in (inspect.Parameter.empty, None) and default is not None:
            assert default == (list(parameter.default) if isinstance(default, list) else parameter.default)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("part.rho", math.nan, "part.rho must be a finite number, got nan"),
        ("part.rho", math.inf, "part.rho must be a finite number, got inf"),
        ("part.rho", "x", "part.rho must be a number, got 'x'"),
        ("part.rho", "${lr}", ""),
        ("part.nobody", 1, ""),
        ("part.log_snr_max", math.inf, ""),
        ("rho", math.nan, ""),
    ],
)
def test_only_a_wrong_kind_is_refused(name: str, value: Any, said: str) -> None:
    config = {"part": {"_target_": "diffusion.samplers.KarrasGrid", name.rpartition(".")[2]: value}, "rho": 1.0}
    with pytest.raises(ConfigError, match=f"^{re.escape(said)}$") if said else nullcontext():
        check_kinds(config, [name])
