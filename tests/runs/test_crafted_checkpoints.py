"""A checkpoint with one entry of another kind is refused in one line by every command that reads one, or taken."""

import signal
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.odd import Reached, begun, late
from support.scripts import call
from test_validation import BAD, changed

import evaluate
import sample
import train
from diffusion.evaluation import commands, likelihoods
from diffusion.sampling import drawing
from diffusion.training import estimate, run

FIXTURES = Path(__file__).parents[1] / "fixtures"
UNET = ("network.widths=[4]", "network.blocks=1", "network.attention=[]")
SMALL = (*UNET, "denoiser.clusters=2", "denoiser.components=4")
CODED = ("experiment=autoencoder_fashion", "dataset=digits")
CODE = ("network.patch=1", "network.latent=2", "network.widths=[4,4]")
# A command for each use of each kind of checkpoint; {} is the crafted one.
COMMANDS: dict[str, tuple[ModuleType, str, tuple[str, ...]]] = {
    "scores": (evaluate, "digits", ("ckpt={}", "n=100", "cache=null", "out=scores")),
    "scores of points": (evaluate, "swissroll", ("ckpt={}", "n=100", "out=scores")),
    "scores of latents": (evaluate, "latent", ("ckpt={}", "n=100", "cache=null", "out=scores")),
    "scores of a prior": (evaluate, "autoencoder", ("ckpt={}", "n=100", "cache=null", "out=scores")),
    "bound": (evaluate, "learned", ("ckpt={}", "likelihood=vlb", "n=2", "out=scores")),
    "samples of latents": (sample, "latent", ("ckpt={}", "n=2", "out=x.png")),
    "samples of a prior": (sample, "autoencoder", ("ckpt={}", "n=2", "out=x.png")),
    "a wide average": (sample, "power", ("ckpt={}", "n=2", "weights=0.1", "out=x.png")),
    "a classifier": (sample, "digits", ("ckpt=" + str(FIXTURES / "digits.ckpt"), "classifier={}", "n=2", "out=x.png")),
    "begin": (train, "digits", ("timesteps=50", *UNET, "init_from={}")),
    "begin a classifier": (train, "classifier", ("experiment=classifier_digits", *UNET, "init_from={}")),
    "begin an autoencoder": (train, "autoencoder", (*CODED, *CODE, "budget_minutes=null", "init_from={}")),
    "latents of it": (train, "autoencoder", ("experiment=latent_fashion", "dataset=digits", *SMALL, "autoencoder={}")),
}


@pytest.fixture
def only_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """What would take long raises `Reached`."""
    for owner, name in (
        *((run.Run, "fit"), (drawing, "frames_on")),
        *((commands, "draw_samples"), (likelihoods, "evaluated")),
    ):
        monkeypatch.setattr(owner, name, begun)
    monkeypatch.setattr(estimate, "step_seconds", lambda *_, **__: 0.01)
    signal.signal(signal.SIGALRM, late)


def crafted(name: str, data: st.DataObject, file: Path) -> str:
    """Writes such a checkpoint; says what is changed in it."""
    contents, keys = torch.load(FIXTURES / f"{name}.ckpt", weights_only=True), ()
    node: Any = contents
    while isinstance(node, dict | list) and node and (not keys or data.draw(st.integers(0, 4))):
        choices = list(node) if isinstance(node, dict) else range(len(node))
        keys = (*keys, data.draw(st.sampled_from(choices)))
        node = node[keys[-1]]
    value = data.draw(st.sampled_from(BAD))
    torch.save(changed(contents, keys, value), file)
    return f"{keys} = {value}"


def check(use: str, data: st.DataObject, folder: Path) -> None:
    script, name, arguments = COMMANDS[use]
    file = folder / "crafted.ckpt"
    what = crafted(name, data, file)
    signal.alarm(60)
    try:
        outcome = call(script, folder, *(argument.format(file) for argument in arguments), "accelerator=cpu")
    except Reached:
        return
    finally:
        signal.alarm(0)
    lines = [line for line in outcome.err.splitlines() if not line.startswith("warning: ")]
    if outcome.code:
        assert (outcome.code, len(lines)) == (1, 1), f"{use}, {what}: {outcome.err}"
        assert lines[0].startswith("error: "), lines
        assert [path.name for path in folder.iterdir()] == ["crafted.ckpt"]


@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(use=st.sampled_from(sorted(COMMANDS)), data=st.data())
def test_some_crafted_checkpoints_are_refused_in_one_line_or_taken(
    use: str, data: st.DataObject, only_checks: None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    check(use, data, tmp_path_factory.mktemp("crafted"))


@pytest.mark.slow
@pytest.mark.parametrize("use", COMMANDS)
@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_crafted_checkpoints_are_refused_in_one_line_or_taken(
    use: str, data: st.DataObject, only_checks: None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    check(use, data, tmp_path_factory.mktemp("crafted"))
