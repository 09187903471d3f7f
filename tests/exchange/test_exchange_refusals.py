"""Folders of diffusers that are refused, by the name of what is not supported, and models that are not exported."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion.build import ConfigError
from diffusion.exchange import diffusers as folders
from diffusion.exchange import safetensors, schedulers
from diffusion.exports import export_folder
from diffusion.media.atomic import WriteError
from diffusion.networks.diffusers import DiffusersUNet
from diffusion.runs.checkpoints import Checkpoint, find
from diffusion.runs.models import build_model
from diffusion.runs.trained import load_model

SMALL: dict[str, Any] = {
    "block_out_channels": [4],
    "down_block_types": ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"],
    "norm_num_groups": 2,
    "layers_per_block": 1,
    "attention_head_dim": 2,
}
NETWORK = {"_class_name": "UNet2DModel", "sample_size": 4, "in_channels": 1, "out_channels": 1, **SMALL}
NOISING = {"_class_name": "DDPMScheduler", "num_train_timesteps": 10, "beta_end": 0.5}


def written(folder: Path, **changes: Any) -> Path:
    """A folder as diffusers writes it; a change to a file's settings, or None for no such file."""
    state = DiffusersUNet((1, 4, 4), **SMALL).state_dict()
    files = {
        "model_index": {"_class_name": "DDPMPipeline", "unet": ["diffusers", "UNet2DModel"]},
        "unet/config": NETWORK,
        "scheduler/scheduler_config": NOISING,
    }
    for name, content in files.items():
        change = changes.get(Path(name).name, {})
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if change is not None:
            text = change if isinstance(change, str) else json.dumps(content | change)
            (folder / f"{name}.json").write_text(text)
    safetensors.save(folder / "unet" / folders.WEIGHTS, state, {"format": "pt"})
    return folder


def refusal(path: Path) -> str:
    with pytest.raises(ConfigError) as error:
        find(str(path))
    text = str(error.value)
    assert str(path) in text and "\n" not in text and len(text) < 1500
    return text


def test_an_ordinary_folder_is_found(tmp_path: Path) -> None:
    checkpoint = find(str(written(tmp_path / "model")))
    assert checkpoint.folder == tmp_path / "model" and checkpoint.config["dataset"]["shape"] == [1, 4, 4]
    load_model(checkpoint)


def test_files_may_lie_side_by_side_as_in_the_first_public_models(tmp_path: Path) -> None:
    written(tmp_path / "model")
    flat = tmp_path / "flat"
    flat.mkdir()
    for file in (tmp_path / "model").rglob("*.*"):
        if file.is_file():
            file.rename(flat / file.name)
    assert find(str(flat)).config["schedule"]["timesteps"] == 10


@pytest.mark.parametrize(
    ("name", "change", "what"),
    [
        ("config", {"time_embedding_type": "fourier"}, "time_embedding_type='fourier'"),
        ("config", {"time_embedding_type": "learned"}, "time_embedding_type='learned'"),
        ("config", {"class_embed_type": "timestep"}, "class_embed_type='timestep'"),
        ("config", {"down_block_types": ["SkipDownBlock2D"]}, "down_block_types: 'SkipDownBlock2D'"),
        ("config", {"up_block_types": ["AttnSkipUpBlock2D"]}, "up_block_types: 'AttnSkipUpBlock2D'"),
        ("config", {"resnet_time_scale_shift": "ada_group"}, "resnet_time_scale_shift: 'ada_group'"),
        ("config", {"act_fn": "tanh"}, "act_fn: 'tanh'"),
        ("config", {"downsample_padding": 2}, "downsample_padding: 2"),
        ("config", {"mid_block_type": "UNetMidBlock2DCrossAttn"}, "mid_block_type"),
        ("config", {"cross_attention_dim": 1280}, "cross_attention_dim=1280"),
        ("config", {"_class_name": "UNet2DConditionModel"}, "UNet2DConditionModel"),
        ("config", {"out_channels": 3}, "out_channels=3"),
        ("config", {"sample_size": None}, "sample_size=None"),
        ("config", {"sample_size": 2**40}, "memory"),
        ("config", {"sample_size": -4}, "sample_size=-4"),
        ("config", {"block_out_channels": [2**40]}, "memory"),
        ("config", {"layers_per_block": 10**9}, "layers"),
        ("config", {"layers_per_block": 1.5}, "layers_per_block"),
        ("config", {"norm_num_groups": 0}, "norm_num_groups"),
        ("config", {"norm_eps": -1}, "norm_eps"),
        ("config", {"mid_block_scale_factor": 10**30}, "mid_block_scale_factor"),
        ("config", {"dropout": "a"}, "dropout"),
        ("config", "[]", "JSON"),
        ("config", '{"a": NaN}', "JSON"),
        ("config", None, "missing"),
        ("scheduler_config", None, "scheduler_config.json is missing"),
        ("scheduler_config", {"_class_name": "ScoreSdeVeScheduler"}, "ScoreSdeVeScheduler"),
        ("scheduler_config", {"_class_name": "FlowMatchEulerDiscreteScheduler"}, "FlowMatch"),
        ("scheduler_config", {"_class_name": ["DDPMScheduler"]}, "scheduler is"),
        ("scheduler_config", {"timestep_type": "continuous"}, "timestep_type='continuous'"),
        ("scheduler_config", {"prediction_type": "flow_prediction"}, "prediction_type='flow_prediction'"),
        ("scheduler_config", {"beta_schedule": "laplace"}, "beta_schedule='laplace'"),
        ("scheduler_config", {"variance_type": "learned"}, "variance_type='learned'"),
        ("scheduler_config", {"variance_type": "fixed_large_log"}, "variance_type='fixed_large_log'"),
        ("scheduler_config", {"variance_type": "learned_range"}, "out_channels=1"),
        ("scheduler_config", {"thresholding": True}, "thresholding=True"),
        ("scheduler_config", {"clip_sample_range": 2.0}, "clip_sample_range=2.0"),
        ("scheduler_config", {"num_train_timesteps": 0}, "num_train_timesteps=0"),
        ("scheduler_config", {"num_train_timesteps": 10**12}, "million"),
        ("scheduler_config", {"beta_end": 2.0}, "beta"),
        ("scheduler_config", {"beta_end": "2"}, "beta_end"),
        ("scheduler_config", {"trained_betas": [0.1, 0.2]}, "trained_betas"),
        ("scheduler_config", {"trained_betas": [0.1] * 9 + ["a"]}, "betas"),
        ("scheduler_config", {"rescale_betas_zero_snr": True}, "zero terminal SNR"),
        ("scheduler_config", {"invented": 3}, "invented=3"),
        ("model_index", {"vqvae": ["diffusers", "VQModel"]}, "vqvae"),
        ("model_index", {"unet": ["diffusers", "UNet2DConditionModel"]}, "parts"),
        ("model_index", "[" * 100_000, "JSON"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_this_project_does_not_have_is_named(name: str, change: Any, what: str, tmp_path: Path) -> None:
    assert what in refusal(written(tmp_path / "model", **{name: change}))


KEY = "conv_in.weight"


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda state: state.pop(KEY), "lacks"),
        (lambda state: state.update(extra=torch.ones(1)), "extra"),
        (lambda state: state.update({KEY: state[KEY][:1].clone()}), "shape"),
        (lambda state: state.update({KEY: state[KEY] * float("inf")}), "not finite"),
        (lambda state: state.update({KEY: state[KEY].long()}), "int64"),
        (lambda state: state.update({"../../x": torch.ones(1)}), "../../x"),
    ],
)
def test_weights_that_are_not_those_of_the_network_are_refused(change: Any, what: str, tmp_path: Path) -> None:
    path = written(tmp_path / "model") / "unet" / folders.WEIGHTS
    state, metadata = safetensors.load(path)
    change(state)
    safetensors.save(path, state, metadata)
    assert what in refusal(tmp_path / "model")


def test_half_precision_and_the_old_names_of_attention_are_read(tmp_path: Path) -> None:
    attended = {"down_block_types": ["AttnDownBlock2D"], "attention_head_dim": None}
    folder = written(tmp_path / "model", config=attended)
    state = DiffusersUNet((1, 4, 4), **SMALL | attended).state_dict()
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def named(name: str) -> str:
        for new, before in old.items():
            name = name.replace(f".{new}.", f".{before}.")
        return name

    safetensors.save(folder / "unet" / folders.WEIGHTS, {named(k): v.half() for k, v in state.items()}, {})
    checkpoint = find(str(folder))
    for name, value in state.items():
        found = checkpoint.state[f"denoiser.network.{name}"]
        assert torch.equal(found, value.half().float())


def test_pickled_weights_are_never_opened(tmp_path: Path) -> None:
    folder = written(tmp_path / "model")
    (folder / "unet" / folders.WEIGHTS).unlink()
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n")
    assert "diffusion_pytorch_model.bin" in refusal(folder)


def test_a_file_that_would_hang_its_reader_is_refused(tmp_path: Path) -> None:
    folder = written(tmp_path / "model")
    for name in (f"unet/{folders.WEIGHTS}", "unet/config.json"):
        (folder / name).unlink()
        os.mkfifo(folder / name)
        assert "no regular file" in refusal(folder)


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from([*NETWORK, "freq_shift", "time_embedding_dim", "num_class_embeds", "attn_norm_num_groups"]),
    value=st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.lists(st.integers(-9, 9)),
    of_scheduler=st.booleans(),
)
def test_odd_settings_make_a_model_or_one_line(
    name: str, value: Any, of_scheduler: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = written(tmp_path_factory.mktemp("odd") / "model")
    file = folder / ("scheduler/scheduler_config.json" if of_scheduler else "unet/config.json")
    name = sorted(schedulers.DEFAULTS)[len(name) % len(schedulers.DEFAULTS)] if of_scheduler else name
    file.write_text(json.dumps(json.loads(file.read_text()) | {name: value}))
    try:
        load_model(find(str(folder)))
    except ConfigError as error:
        message = str(error)
    else:
        message = ""
    assert "\n" not in message


def run_of(network: dict[str, Any] | None = None, **changes: Any) -> Checkpoint:
    config = {
        "dataset": {"name": "digits", "shape": [1, 8, 8]},
        "network": {
            "_target_": "diffusion.networks.unet.UNet", "shape": [1, 8, 8], "widths": [8], "blocks": 1,
            "attention": [0], "patch": 1, "num_classes": 0, "dropout": 0.0, "head_channels": 32, "embedding": 0,
            "groups": 2,
        } | (network or {}),
        "schedule": {"_target_": "diffusion.schedules.LinearSchedule", "timesteps": 50},
        "denoiser": {
            "_target_": "diffusion.denoisers.NetworkDenoiser", "variance": "beta",
            "precond": {"_target_": "diffusion.denoisers.EpsPreconditioner"},
        },
        "clip": True, "ema": None,
    } | changes  # fmt: skip
    return Checkpoint(Path("x.ckpt"), 3, config, build_model(config).state_dict(prefix="denoiser."), None)


@pytest.mark.parametrize(
    ("run", "what"),
    [
        (lambda: run_of({"widths": [32, 64], "attention": [], "groups": None}), "network.groups=32"),
        (lambda: run_of({"widths": [12, 64], "attention": [], "groups": None}), "network.groups=4"),
        (lambda: run_of({"widths": [32, 48], "attention": [0, 1], "groups": 4}), "attention heads of one size"),
        (lambda: run_of({"patch": 2}), "network.patch=2"),
        (lambda: run_of({"embedding": 3}), "network.embedding=3"),
        (lambda: run_of(schedule={"_target_": "diffusion.schedules.VPSchedule"}), "VPSchedule"),
        (
            lambda: run_of(
                denoiser={
                    "_target_": "diffusion.denoisers.NetworkDenoiser",
                    "precond": {"_target_": "diffusion.denoisers.FlowPreconditioner"},
                }
            ),
            "FlowPreconditioner",
        ),
    ],
)
def test_a_model_that_diffusers_lacks_is_not_exported(run: Any, what: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=what):
        export_folder(run(), "ema", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_an_export_that_would_not_equal_the_model_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusion.exchange import unet2d

    right = unet2d.settings
    monkeypatch.setattr(unet2d, "settings", lambda *given: right(*given) | {"flip_sin_to_cos": True})
    run = run_of()
    for value in run.state.values():
        torch.nn.init.normal_(value, std=0.2)
    with pytest.raises(ConfigError, match="nothing was written"):
        export_folder(run, "ema", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_holds_something_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(WriteError, match="is there already"):
        export_folder(run_of(), "ema", tmp_path / "out")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(WriteError, match="No space left"):
        export_folder(run_of(), "ema", tmp_path / "out")
    assert not list(tmp_path.iterdir())
