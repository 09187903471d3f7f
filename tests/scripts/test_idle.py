"""Settings that someone typed and that nothing reads are refused by name; those of an experiment's file are not."""

from typing import Any

import pytest

from diffusion.build import ConfigError
from diffusion.settings.idle import GO_TO, refuse, refuse_idle_training


def config(**changes: Any) -> dict[str, Any]:
    """A resolved configuration, of points and a denoiser, as far as this looks at it."""
    return {
        "batch_size": 64, "lr": 1e-3, "timesteps": 50, "ema_decay": 0.9, "val_every": 10, "preview_every": 10,
        "data_dir": "raw", "download": True, "autoencoder": None, "clip": False,
        "dataset": {
            "name": "moons", "shape": [2], "clip": False, "source": {"n": 10},
            "recipe": {"batch_size": 64, "lr": 1e-3, "warmup_images": 5, "max_steps": 7, "val_every": 10,
                       "sigma_data": 0.5, "sigma_max": 9.0},
        },
        "denoiser": {"_target_": "diffusion.denoisers.NetworkDenoiser", "precond": {"sigma_data": 0.5}},
        "network": {"num_classes": 0}, "schedule": {"timesteps": 50, "sigma_max": 9.0}, "optimizer": {"lr": 1e-3},
        "objective": {}, "ema": {"decay": 0.9}, "learning_rate": {"warmup_images": 5}, "trainer": {"max_steps": 7},
    } | changes  # fmt: skip


CLASSIFIER = {"_target_": "diffusion.models.NoisyClassifier"}
AUTOENCODER = {"_target_": "diffusion.models.Autoencoder"}


@pytest.mark.parametrize(
    ("typed", "changes", "said"),
    [
        ({"sampler": "ddim"}, {"denoiser": CLASSIFIER}, "does nothing for a classifier, which draws no"),
        ({"sampler.eta": 1}, {"denoiser": CLASSIFIER}, "sampler.eta= does nothing for a classifier"),
        ({"steps": 9}, {"denoiser": CLASSIFIER}, "steps= does nothing for a classifier"),
        ({"clip": True}, {"denoiser": AUTOENCODER}, "clip= does nothing for an autoencoder, which has dataset.clip"),
        ({"clip": True}, {}, "clip=true brings pixels into"),
        ({"dataset.clip": True}, {"autoencoder": {}}, "dataset.clip= does nothing for a model of latents"),
        ({"objective.sigma_data": 1}, {"objective": {"weighting": "gap"}}, "does nothing for objective.weighting=gap"),
        ({"val_every": 3}, {"trainer": {"limit_val_batches": 0}}, "does nothing for trainer.limit_val_batches=0"),
        ({"network.head_channels": 8}, {"network": {"attention": []}}, "does nothing for network.attention=[]"),
        ({"data_dir": "x"}, {}, "data_dir= does nothing for dataset=moons: leave it out"),
        ({"dataset.num_classes": 2}, {}, "dataset.num_classes=2 alone trains an unconditional model"),
        ({"ema_decay": 0.5}, {"ema": None}, "ema_decay=0.5 does nothing here: only ema=exponential reads it"),
        ({"dataset.recipe.sigma_max": 9.0}, {"schedule": {}}, "only schedule=ve reads it"),
        ({"lr": 1.0, "optimizer.lr": 2.0}, {}, "lr=1.0 and optimizer.lr=2.0: give one of them"),
        ({"timesteps": 50, "schedule.timesteps": 40}, {}, "timesteps=50 and schedule.timesteps=40: give one of them"),
        (
            {"dataset.recipe.batch_size": 8},
            {},
            "dataset.recipe.batch_size=8 does nothing here, where batch_size is 64: set batch_size=8",
        ),
        (
            {"dataset.recipe.max_steps": 9},
            {"trainer": {"max_steps": None}},
            "does nothing here, where trainer.max_steps is null: set trainer.max_steps=9",
        ),
    ],
)
def test_what_nothing_reads_is_refused_where_it_is_typed_and_not_where_it_stands(
    typed: dict[str, Any], changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError) as error:
        refuse_idle_training(config(**changes), typed)
    assert said in str(error.value)
    refuse_idle_training(config(**changes), {})


@pytest.mark.parametrize("name", sorted(name for name in GO_TO if name.startswith("dataset.recipe.")))
def test_a_default_that_goes_where_it_should_is_taken(name: str) -> None:
    assert refusal({name: config()["dataset"]["recipe"][name.rpartition(".")[2]]}) == ""


def test_an_interpolation_is_compared_by_its_value() -> None:
    assert refusal({"lr": "${dataset.recipe.lr}"}) == ""
    assert refusal({"lr": "${dataset.recipe.lr}"}, optimizer={"lr": 2e-3}).startswith("lr=")


def refusal(typed: dict[str, Any], **changes: Any) -> str:
    """What is said of settings that were typed; nothing where they are taken."""
    try:
        refuse_idle_training(config(**changes), typed)
    except ConfigError as error:
        return str(error)
    return ""


def test_a_name_stands_for_all_that_is_inside_it_and_for_no_other() -> None:
    refuse(["samplers", "grid"], ["sampler"], "a test")
    with pytest.raises(ConfigError, match=r"^sampler\.eta= does nothing for a test: leave it out, or write more$"):
        refuse(["sampler.eta"], ["sampler"], "a test", "write more")
