"""Each network with each denoiser, data set, schedule and objective trains a step, or is refused in one line."""

import contextlib
from itertools import product

import pytest
import torch
from hydra import compose, initialize_config_dir

import cli
from diffusion.denoisers import ResidualDenoiser
from diffusion.noise import TRAINING, Noise
from diffusion.runs.parts import Parts
from diffusion.training.setup import resolved

# What makes each small; `network=digits` and the like are the U-Net or the MLP in a data set's size.
SMALL = {
    "unet": ("network.widths=[4]", "network.blocks=1", "network.attention=[]"),
    "encoder": ("network.widths=[4]", "network.blocks=1"),
    "autoencoder": ("network.widths=[4,4]", "network.patch=1"),
    "mlp": ("network.width=8",),
    "heads": ("network.width=8",),
    "tutorial": (),
    "dit": ("network.width=8", "network.heads=2", "network.depth=1"),
    "diffusers": (
        *("network.block_out_channels=[4,4,4]", "network.layers_per_block=1", "network.attention_head_dim=2"),
        *("network.norm_num_groups=2", "network.attn_norm_num_groups=2"),
    ),
}
SETS = {"digits": (1, 8, 8), "swissroll": (2,)}
SCHEDULES = ("linear", "vp")
CASES = list(product(SMALL, cli.choices_of("denoiser"), SETS, SCHEDULES))


def test_every_network_that_is_offered_is_tried() -> None:
    sizes = {"dit_mini", "dit_tiny"}  # of network=dit
    assert set(cli.choices_of("network")) - sizes == set(SMALL)


def loss(parts: Parts) -> torch.Tensor:
    """That of two samples."""
    model, objective = parts.model, parts.objective
    objective.check(model)
    shape = parts.config["dataset"]["shape"]
    batch = {"x": torch.rand(2, *shape) * 2 - 1, "label": torch.tensor([0, 1])}
    if isinstance(model, ResidualDenoiser):
        model.prepare(torch.rand(80, *shape), {"label": torch.zeros(80, dtype=torch.long)})
    out: torch.Tensor = objective(model, batch, Noise(0, torch.arange(2), TRAINING))["loss"]
    return out


@pytest.mark.parametrize(
    ("network", "denoiser", "dataset", "schedule"),
    [pytest.param(*case, marks=[] if case in CASES[::58] else pytest.mark.slow) for case in CASES],
)
def test_parts_train_together_or_are_refused(network: str, denoiser: str, dataset: str, schedule: str) -> None:
    chosen = [f"network={network}", f"denoiser={denoiser}", f"dataset={dataset}", f"schedule={schedule}"]
    with initialize_config_dir(version_base="1.3", config_dir=str(cli.CONFIGS)):
        for objective in cli.choices_of("objective"):
            composed = compose("train", [*chosen, *SMALL[network], f"objective={objective}"])
            with contextlib.suppress(ValueError):  # any other exception is a traceback in a terminal
                assert loss(resolved(composed)).isfinite().all()
