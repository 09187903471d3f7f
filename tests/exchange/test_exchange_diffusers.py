"""Model folders of diffusers: read, they compute what diffusers computes; written, diffusers draws what we draw."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from diffusion.build import build
from diffusion.denoisers import ClippedDenoiser
from diffusion.exchange import diffusers as folders
from diffusion.exchange import schedulers, unet2d
from diffusion.noise import Noise
from diffusion.runs.models import build_model
from diffusion.samplers import DDIMSampler, DDPMSampler, TrailingGrid, prior

diffusers = pytest.importorskip("diffusers")


def test_betas_that_end_near_one_are_taken_over_for_any_number_of_steps() -> None:
    noising = {"_class_name": "DDPMScheduler", "num_train_timesteps": 4000, "beta_end": 0.5}
    ours = build(schedulers.process(noising)["schedule"])
    theirs = diffusers.DDPMScheduler(num_train_timesteps=4000, beta_end=0.5)
    torch.testing.assert_close(ours.betas.float(), theirs.betas)


SMALL: dict[str, Any] = {
    "block_out_channels": [8, 16],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "norm_num_groups": 4,
    "layers_per_block": 1,
}
ATTENDED = {"down_block_types": ["AttnDownBlock2D"] * 2, "up_block_types": ["AttnUpBlock2D"] * 2}
RESAMPLED = {
    "down_block_types": ["ResnetDownsampleBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["ResnetUpsampleBlock2D"] * 2,
}
# Of the public DDPM models of CIFAR-10, CelebA and LSUN.
PUBLIC = {
    "downsample_padding": 0,
    "freq_shift": 1,
    "flip_sin_to_cos": False,
    "norm_eps": 1e-6,
    "attention_head_dim": None,
    "mid_block_scale_factor": 1,
    "time_embedding_type": "positional",
    "act_fn": "silu",
    "center_input_sample": False,
}
OPTIONS: list[dict[str, Any]] = [
    {},
    PUBLIC,
    {"attention_head_dim": 3},
    {"resnet_time_scale_shift": "scale_shift"},
    {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 2},
    {"downsample_type": "resnet", "upsample_type": "resnet", **ATTENDED},
    RESAMPLED,
    {"mid_block_type": None},
    {"add_attention": False},
    {"mid_block_scale_factor": 2.0},
    {"act_fn": "mish"},
    {"act_fn": "gelu"},
    {"act_fn": "relu"},
    {"center_input_sample": True},
    {"time_embedding_dim": 12},
    {"num_class_embeds": 5},
    {"layers_per_block": 2},
    {"sample_size": [4, 8]},
    {
        "block_out_channels": [8, 16, 8],
        "down_block_types": ["AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D"],
    },
]


def randomised(network: nn.Module, scale: float = 0.2) -> nn.Module:
    """With weights that let every layer count; those that begin at zero hide what follows."""
    generator = torch.Generator().manual_seed(0)
    for weight in network.parameters():
        weight.data = scale * torch.randn(weight.shape, generator=generator)
    return network.eval()


def theirs(**options: Any) -> Any:
    return randomised(diffusers.UNet2DModel(**{"sample_size": 8, **SMALL, **options}))


def saved(folder: Path, scheduler: Any) -> Any:
    """A pipeline of diffusers, saved by it."""
    pipeline = diffusers.DDPMPipeline(theirs(), scheduler)
    pipeline.save_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def difference(options: dict[str, Any]) -> float:
    """The largest between our network's output and that of diffusers, with these options and the same weights."""
    wanted = theirs(**options)
    config = json.loads(wanted.to_json_string())
    network = build(unet2d.network_config(config), "network").eval()
    network.load_state_dict(wanted.state_dict())
    shape = (3, *(options.get("sample_size") or (8, 8)))
    x, t = torch.randn(4, *shape, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 500, 999])
    label = torch.tensor([0, 1, 2, 4]) if options.get("num_class_embeds") else None
    with torch.no_grad():
        expected = wanted(x, t, class_labels=label).sample
        found = network(x, t.float(), {} if label is None else {"label": label})
    assert found.shape == expected.shape
    return (found - expected).abs().max().item()


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: ",".join(options) or "defaults")
def test_the_network_computes_what_that_of_diffusers_does(options: dict[str, Any]) -> None:
    assert difference(options) <= 1e-5


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_the_network_computes_what_that_of_diffusers_does_for_any_options(data: st.DataObject) -> None:
    levels = data.draw(st.integers(1, 3))
    downs = ["DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D"]
    ups = ["UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"]
    choices = {
        "block_out_channels": st.lists(st.sampled_from([4, 8, 12]), min_size=levels, max_size=levels),
        "down_block_types": st.lists(st.sampled_from(downs), min_size=levels, max_size=levels),
        "up_block_types": st.lists(st.sampled_from(ups), min_size=levels, max_size=levels),
        "mid_block_type": st.sampled_from(["UNetMidBlock2D", None]),
        "layers_per_block": st.integers(1, 2),
        "mid_block_scale_factor": st.sampled_from([1, 1.5]),
        "downsample_padding": st.sampled_from([0, 1]),
        "downsample_type": st.sampled_from(["conv", "resnet"]),
        "upsample_type": st.sampled_from(["conv", "resnet"]),
        "act_fn": st.sampled_from(["silu", "swish", "mish", "gelu", "relu"]),
        "attention_head_dim": st.sampled_from([None, 1, 2, 3, 4]),
        "norm_num_groups": st.sampled_from([1, 2, 4]),
        "attn_norm_num_groups": st.sampled_from([None, 1, 4]),
        "norm_eps": st.sampled_from([1e-5, 1e-6]),
        "resnet_time_scale_shift": st.sampled_from(["default", "scale_shift"]),
        "add_attention": st.booleans(),
        "center_input_sample": st.booleans(),
        "time_embedding_dim": st.sampled_from([None, 6]),
        "freq_shift": st.sampled_from([0, 1]),
        "flip_sin_to_cos": st.booleans(),
        "num_class_embeds": st.sampled_from([None, 5]),
    }
    assert difference({name: data.draw(choice, name) for name, choice in choices.items()}) <= 1e-5


@pytest.mark.parametrize("kind", ["DDPMScheduler", "DDIMScheduler", "PNDMScheduler", "UniPCMultistepScheduler"])
@pytest.mark.parametrize(
    "noising",
    [
        {},
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
        {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"},
        {"num_train_timesteps": 200, "prediction_type": "sample"},
        {"trained_betas": [0.1, 0.2, 0.3], "num_train_timesteps": 3},
    ],
    ids=lambda noising: ",".join(noising) or "defaults",
)
def test_a_folder_is_a_denoiser_with_the_noising_of_its_scheduler(
    kind: str, noising: dict[str, Any], tmp_path: Path
) -> None:
    scheduler = getattr(diffusers, kind)(**noising)
    pipeline = saved(tmp_path / "model", scheduler)
    config, state = folders.load(tmp_path / "model")
    denoiser = build_model(config).eval()
    denoiser.load_state_dict({name.removeprefix("denoiser."): value for name, value in state.items()})
    steps = scheduler.config.num_train_timesteps
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    for i in (0, steps // 2, steps - 1):
        alpha = scheduler.alphas_cumprod[i].double().sqrt()
        torch.testing.assert_close(
            denoiser.schedule(torch.tensor((i + 1) / steps, dtype=torch.float64))[0], alpha, rtol=1e-5, atol=0
        )
        with torch.no_grad():
            raw = denoiser.predict(x, torch.tensor((i + 1) / steps, dtype=torch.float64), {}).raw
            torch.testing.assert_close(raw, pipeline.unet(x, i).sample, rtol=0, atol=2e-5)


def config_of(**changes: Any) -> dict[str, Any]:
    """What a run of our U-Net has in its configuration."""
    prediction, network = changes.pop("prediction", "Eps"), changes.pop("network", {})
    schedule = changes.pop("schedule", {"_target_": "diffusion.schedules.LinearSchedule", "timesteps": 50})
    return {
        "dataset": {"shape": [1, 8, 8]},
        "network": {
            "_target_": "diffusion.networks.unet.UNet", "shape": [1, 8, 8], "widths": [16, 32], "blocks": 1,
            "attention": [1], "patch": 1, "num_classes": 0, "dropout": 0.0, "head_channels": 32, "embedding": 0,
            "groups": 4,
        } | network,
        "schedule": schedule,
        "denoiser": {
            "_target_": "diffusion.denoisers.NetworkDenoiser", "variance": changes.pop("variance", "beta"),
            "precond": {"_target_": f"diffusion.denoisers.{prediction}Preconditioner"},
        },
        "clip": True,
    } | changes  # fmt: skip


def drawn_by_diffusers(monkeypatch: pytest.MonkeyPatch, pipeline: Any, noise: Noise, steps: int, **call: Any) -> Tensor:
    """Images by a pipeline whose draws are those of our noise, in their order."""
    draws = iter(range(steps + 1))

    def draw(shape: tuple[int, ...], **_: Any) -> Tensor:
        return noise.normal(tuple(shape[1:]), step=next(draws))

    for module in (
        diffusers.pipelines.ddpm.pipeline_ddpm, diffusers.pipelines.ddim.pipeline_ddim,
        diffusers.schedulers.scheduling_ddpm,
    ):  # fmt: skip
        monkeypatch.setattr(module, "randn_tensor", draw)
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(batch_size=2, num_inference_steps=steps, output_type="np", return_dict=False, **call)[0]
    return torch.from_numpy(images).permute(0, 3, 1, 2)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"prediction": "X0", "clip": False},
        pytest.param({"prediction": "V", "variance": "beta_tilde"}, marks=pytest.mark.slow, id="v"),
        pytest.param(
            {"prediction": "V", "schedule": {"_target_": "diffusion.schedules.CosineSchedule", "timesteps": 50}},
            marks=pytest.mark.slow,
            id="cosine",
        ),
        {"variance": "learned"},
        pytest.param({"network": {"attention": []}}, marks=pytest.mark.slow, id="no attention"),
        {"network": {"attention": [0, 1], "blocks": 2, "widths": [16, 32, 32], "head_channels": 8}},
        {
            "prediction": "V",
            "schedule": {
                "_target_": "diffusion.schedules.LinearSchedule",
                "timesteps": 50,
                "zero_terminal_snr": True,
            },
        },
        pytest.param(
            {"schedule": {"_target_": "diffusion.schedules.CosineSchedule", "timesteps": 50, "offset": 0.1}},
            marks=pytest.mark.slow,
            id="offset",
        ),
        pytest.param(
            {"schedule": {"_target_": "diffusion.schedules.QuadraticSchedule", "timesteps": 50}},
            marks=pytest.mark.slow,
            id="quadratic",
        ),
        pytest.param(
            {"schedule": {"_target_": "diffusion.schedules.SigmoidSchedule", "timesteps": 50}},
            marks=pytest.mark.slow,
            id="sigmoid",
        ),
    ],
    ids=str,
)
def test_diffusers_draws_the_images_that_we_draw(
    changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(**changes)
    denoiser = build_model(config)
    randomised(denoiser, 0.05)
    folders.save(tmp_path / "out", *folders.exported(config, denoiser.network), {})
    pipeline = diffusers.DDPMPipeline.from_pretrained(tmp_path / "out")
    noise = Noise(0, torch.arange(2))
    x, wrapped = prior(denoiser.schedule, noise, (1, 8, 8)), ClippedDenoiser(denoiser) if config["clip"] else denoiser
    with torch.no_grad():
        ours = DDPMSampler().sample(wrapped, x, TrailingGrid()(denoiser.schedule, 50), noise)
    found = drawn_by_diffusers(monkeypatch, pipeline, noise, 50)
    torch.testing.assert_close(found, (ours / 2 + 0.5).clamp(0, 1), rtol=0, atol=1e-4)
    if changes.get("variance") == "learned":  # DDIMScheduler takes no network with a second output
        return
    with torch.no_grad():
        ours = DDIMSampler().sample(wrapped, x, TrailingGrid()(denoiser.schedule, 10))
    pipeline = diffusers.DDIMPipeline.from_pretrained(tmp_path / "out")
    found = drawn_by_diffusers(monkeypatch, pipeline, noise, 10, use_clipped_model_output=config["clip"])
    torch.testing.assert_close(found, (ours / 2 + 0.5).clamp(0, 1), rtol=0, atol=1e-4)
