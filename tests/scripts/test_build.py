"""From configurations to objects: only this project's, and every mistake named as the user typed it."""

import pytest
import torch

from diffusion.build import ConfigError, build, construct, nearest
from diffusion.machine.devices import check_devices, devices
from diffusion.optimizers import EMA, AdamW
from diffusion.schedules import LinearSchedule

LINEAR = {"_target_": "diffusion.schedules.LinearSchedule"}
ADAMW = {"_target_": "diffusion.optimizers.AdamW"}


def test_a_configuration_becomes_the_object_that_it_names() -> None:
    schedule = build(LINEAR | {"timesteps": 50})
    assert isinstance(schedule, LinearSchedule)
    assert schedule.timesteps == 50


def test_nested_configurations_are_built_from_the_inside() -> None:
    built = build({"a": [LINEAR, 3], "b": {"ema": {"_target_": "diffusion.optimizers.EMA", "decay": 0.5}}})
    assert isinstance(built["a"][0], LinearSchedule)
    assert built["a"][1] == 3
    assert isinstance(built["b"]["ema"], EMA)


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "subprocess.Popen",
        "torch.nn.Linear",
        "diffusion.denoisers.nn.Linear",
        "diffusion.training.module.AdamW",  # somebody else's, imported there
        "diffusion.build.build",
        "diffusion.schedules.Missing",
        "diffusion.nowhere.Thing",
        "diffusion.schedules..LinearSchedule",
        "builtins.eval",
        5,
        None,
    ],
)
def test_nothing_but_the_projects_own_classes_can_be_named(target: object) -> None:
    with pytest.raises(ConfigError, match="not a class of this project"):
        build({"_target_": target}, "network")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (LINEAR | {"timestep": 5}, ["schedule.timestep does not exist", "did you mean timesteps?", "beta_start"]),
        (LINEAR | {"timesteps": "many"}, ["schedule.timesteps must be a whole number, got 'many'"]),
        (LINEAR | {"timesteps": 1.5}, ["schedule.timesteps must be a whole number, got 1.5"]),
        (LINEAR | {"timesteps": True}, ["schedule.timesteps must be a whole number, got True"]),
        (LINEAR | {"timesteps": 0}, ["schedule.timesteps must be from 1 to a million, got 0"]),
        (LINEAR | {"beta_end": None}, ["schedule.beta_end must be a number, got None"]),
        (ADAMW | {"betas": 0.9}, ["schedule.betas must be a list ([a,b,...])", "got 0.9"]),
        (ADAMW | {"betas": ["x"]}, ["schedule.betas must be a list", "each item a number"]),
        ({"_target_": "diffusion.networks.mlp.MLP"}, ["schedule.shape is missing"]),
    ],
)
def test_a_wrong_argument_is_named_with_its_path_and_what_is_allowed(config: object, said: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        build(config, "schedule")
    assert "\n" not in str(caught.value)
    for part in said:
        assert part in str(caught.value)


def test_a_whole_number_serves_where_a_number_is_wanted() -> None:
    assert construct(AdamW, {"lr": 1}).lr == 1


def test_the_nearest_choice_is_offered_only_if_one_is_near() -> None:
    assert nearest("cifa", ["cifar", "mnist"]) == " (did you mean cifar?)"
    assert nearest("zzz", ["cifar", "mnist"]) == ""


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ([0, 1], "names GPUs"),
        ([], "names GPUs"),
        (0, "at least 1"),
        (-2, "at least 1"),
        ("all", "must be auto"),
        (1000, "use at most 256"),
    ],
)
def test_devices_that_a_cpu_machine_lacks_are_refused(
    monkeypatch: pytest.MonkeyPatch, asked: int | str | list[int], said: str
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ValueError, match=said):
        check_devices(asked)


@pytest.mark.parametrize("asked", [[0, 2], [-1], [0, 0], 3, []])
def test_devices_that_a_two_gpu_machine_lacks_are_refused(
    monkeypatch: pytest.MonkeyPatch, asked: int | list[int]
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match="devices="):
        check_devices(asked)


def test_an_accelerator_that_is_not_there_is_refused_with_those_that_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for accelerator in ("gpu", "cuda", "mps"):
        with pytest.raises(ValueError, match=f"accelerator={accelerator}: .*; use one of auto, cpu$"):
            check_devices("auto", accelerator)


def test_devices_are_gpus_by_index_or_processes_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert devices("auto") == ["cpu"]
    assert devices(3) == ["cpu"] * 3
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert devices("auto") == ["cuda:0", "cuda:1"]
    assert devices(1) == ["cuda:0"]
    assert devices([1]) == ["cuda:1"]
