"""What the tests compose from memory is what Hydra composes."""

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from support import composing

import cli

HYDRAS = composing.originals()


def compose_anew(name: str, typed: str) -> DictConfig:
    with initialize_config_dir(version_base="1.3", config_dir=str(cli.CONFIGS)):
        return compose(name, typed.split(), return_hydra_config=True)


def composed(name: str, typed: str) -> tuple[str, bool | None]:
    """All of it as text, and whether names that it lacks are refused."""
    config = compose_anew(name, typed)
    return OmegaConf.to_yaml(config), OmegaConf.is_struct(config)


@pytest.mark.parametrize(
    ("name", "typed"),
    [
        ("train", "experiment=fast_digits lr=1e-3 network.widths=[8,16]"),
        ("train", "dataset=moons ~network +trainer.max_epochs=2 ema=none lr=1e-3"),
        ("train", "dataset=digits dataset/condition=lowres optimizer=muon"),
        ("sample", "ckpt=last sampler=ddim sampler.eta=0.5"),
    ],
)
def test_what_is_composed_from_memory_is_what_hydra_composes(
    name: str, typed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = composed(name, typed)
    changed = compose_anew(name, typed)
    changed.hydra.job.name = "another"
    again = composed(name, typed)
    for owner, attribute, original in HYDRAS:
        monkeypatch.setattr(owner, attribute, original)
    assert first == again == composed(name, typed)
