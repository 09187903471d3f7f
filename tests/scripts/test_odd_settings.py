"""Odd values of every setting of every script: refused in one line before anything is written, or taken.

The scripts run up to the first step of training, the first sample or the first score.
"""

import signal
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.odd import SECONDS, Reached, begun, late
from support.scripts import call

import cli
import evaluate
import sample
import train
from diffusion.evaluation import commands, likelihoods
from diffusion.sampling import drawing
from diffusion.training import estimate, run

CHECKPOINT = Path(__file__).parents[1] / "fixtures" / "digits.ckpt"
VALUES = (
    *("-1", "0", "0.5", "1e30", "1000000000000", "nan", "inf", "-inf", "true", "null"),
    *("[]", "[[1]]", "[1,2]", "[a]", "{}", "{a:1}", "''", "' '", "ü", "abc", "/dev/null", "x" * 3000),
)
SCRIPTS: dict[str, tuple[ModuleType, tuple[str, ...]]] = {
    "train": (train, ("accelerator=cpu", "dataset=digits", "network.widths=[8,8]", "network.blocks=1")),
    "sample": (sample, (f"ckpt={CHECKPOINT}", "accelerator=cpu", "out=x.png")),
    "evaluate": (evaluate, (f"ckpt={CHECKPOINT}", "accelerator=cpu", "n=100", "cache=null", "out=scores")),
}


@cache
def top_level(path: Path) -> set[str]:
    """The keys of a file of configs/."""
    return set(yaml.safe_load(path.read_text(encoding="utf-8")) or {})


def choices(script: str) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every setting with the choices that make it one: `("sampler=ddim",), "sampler.eta"`."""
    for name in cli.groups_of(script):
        yield (), name
    groups = cli.groups_of(script)
    for key in cli.keys_of(script):
        group = max((group for group in groups if key.startswith(f"{group}.")), key=len, default=None)
        if group is None:
            yield (), key
            continue
        inside = key.removeprefix(f"{group}.").split(".")[0]
        for path in sorted((cli.CONFIGS / group.replace(".", "/")).glob("*.yaml")):
            if inside in top_level(path):
                yield (f"{group}={path.stem}",), key
                break


CASES = [(script, *case) for script in SCRIPTS for case in choices(script)]


def fault(script: str, chosen: tuple[str, ...], key: str, value: str, folder: Path) -> str | None:
    """What is wrong with how a script answers one value; None if it refuses it in one line or takes it."""
    module, arguments = SCRIPTS[script]
    typed = {key, *(argument.partition("=")[0] for argument in chosen)}
    own = [argument for argument in arguments if argument.partition("=")[0] not in typed]
    if key == "network" or any(argument.startswith(("network=", "dataset=")) for argument in chosen):
        own = [argument for argument in own if not argument.startswith("network.")]
    signal.alarm(SECONDS)
    try:
        outcome = call(module, folder, *own, *chosen, f"{key}={value}")
    except Reached:
        return None
    # Whatever gets out of a script is a traceback in a terminal: it is what the caller fails by.
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    finally:
        signal.alarm(0)
    lines = [line for line in outcome.err.splitlines() if not line.startswith("warning: ")]
    if outcome.code == 0:
        return None
    if outcome.code != 1 or len(lines) != 1 or not lines[0].startswith("error: "):
        return f"exit status {outcome.code}: {outcome.err!r}"
    if "Error" in lines[0] or not lines[0].removeprefix("error: ").strip():
        return lines[0]
    return f"left behind: {left}" if (left := [path.name for path in folder.iterdir()]) else None


@pytest.fixture
def only_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """What would take long raises `Reached`."""
    monkeypatch.setattr(run.Run, "fit", begun)
    monkeypatch.setattr(run, "claim_folder", begun)
    monkeypatch.setattr(estimate, "step_seconds", lambda *_, **__: 0.01)
    monkeypatch.setattr(drawing, "frames_on", begun)
    monkeypatch.setattr(commands, "draw_samples", begun)
    monkeypatch.setattr(likelihoods, "evaluated", begun)
    signal.signal(signal.SIGALRM, late)


@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(case=st.sampled_from(CASES), value=st.sampled_from(VALUES))
def test_some_odd_values_are_refused_in_one_line_or_taken(
    case: tuple[str, tuple[str, ...], str], value: str, only_checks: None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    script, chosen, key = case
    assert fault(script, chosen, key, value, tmp_path_factory.mktemp("odd")) is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "chosen", "key"), CASES, ids=[f"{script} {' '.join(chosen)} {key}" for script, chosen, key in CASES]
)
def test_all_odd_values_of_a_setting_are_refused_in_one_line_or_taken(
    script: str, chosen: tuple[str, ...], key: str, only_checks: None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    faults = {}
    for value in VALUES:
        found = fault(script, chosen, key, value, tmp_path_factory.mktemp("odd"))
        if found is not None:
            faults[value[:20]] = found[:300]
    assert not faults, "\n".join(f"{key}={value}: {found}" for value, found in faults.items())


@pytest.mark.parametrize("value", ["true", "null", "3", "''"])
def test_a_value_in_the_place_of_a_data_set_is_named(value: str, tmp_path: Path) -> None:
    outcome = call(evaluate, tmp_path, f"ckpt={CHECKPOINT}", "dataset=checkerboard", f"dataset.source={value}")
    assert (outcome.code, outcome.out) == (1, "")
    assert "choose data by dataset=..., and set dataset.source.name=value" in outcome.err


@pytest.mark.parametrize("script", SCRIPTS)
def test_without_an_odd_value_each_script_begins(script: str, only_checks: None, tmp_path: Path) -> None:
    module, arguments = SCRIPTS[script]
    with pytest.raises(Reached):
        call(module, tmp_path, *arguments)
