"""Every experiment trains, validates and draws on a device that refuses to mix with the CPU; see `support.meta`."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.configs import resolved
from support.meta import DeviceError, Net, no_autocast  # noqa: F401
from torch import Tensor, nn

import cli
from diffusion.build import build
from diffusion.denoisers import EpsPreconditioner, NetworkDenoiser
from diffusion.models import Autoencoder, Codec
from diffusion.networks.autoencoder import AutoencoderNetwork
from diffusion.networks.mlp import MLP
from diffusion.noise import PREVIEW, Noise
from diffusion.runs.parts import Parts
from diffusion.schedules import LinearSchedule
from diffusion.training.module import DiffusionModule
from diffusion.training.previews import preview_pipeline
from diffusion.training.run import Run

# network=heads sorts samples by head and denoiser=step checks times: both have to know numbers. They are for points.
ASKING = {"swissroll"}
COPIES = 4
FOLDER = "dataset=folder dataset.path=x dataset.image_size=[9,14]"


def made(*overrides: str) -> tuple[DiffusionModule, dict[str, Any], dict[str, Tensor]]:
    """The module of a run, moved to the device, its configuration, and a batch there."""
    latent = "experiment=latent_fashion" in overrides
    config = resolved(*overrides)
    if "blocks" in config["network"]:
        config["network"]["blocks"] = 1  # a second one of a level is like the first
    if "widths" in config["network"]:  # devices do not depend on it, and a third level is like the second
        config["network"]["widths"] = [8, 8]
        if config["network"].get("attention"):
            config["network"]["attention"] = [1]
    shape, codec = config["dataset"]["shape"], None
    if latent:
        codec = Codec(Autoencoder(AutoencoderNetwork(shape, widths=(8, 8))), clip=True)
        config["network"]["shape"] = list(codec.latent_shape)
        config["network"]["patch"] = 1
        config["denoiser"]["shape"] = list(codec.latent_shape)
        config["autoencoder"] = {"digest": "0"}
    module = Run(Parts(config, codec), None).module  # type: ignore[arg-type]
    module.to("meta")
    batch = {"x": torch.zeros(COPIES, *shape), "label": torch.zeros(COPIES, dtype=torch.int64)}
    batch["serial"] = torch.arange(COPIES)
    if config["dataset"].get("condition") is not None:
        batch |= build(config["dataset"]["condition"]).augmented(batch["x"], 0, batch["serial"])
    if length := config["network"].get("augmentation"):
        batch["augmentation"] = torch.zeros(COPIES, length)
    if module.denoiser.embedding:
        batch["embedding"] = torch.zeros(COPIES, module.denoiser.embedding)
    progress = SimpleNamespace(total=SimpleNamespace(ready=1))
    epoch_loop = SimpleNamespace(batch_progress=progress)
    module._trainer = SimpleNamespace(  # type: ignore[assignment]
        **{"fit_loop": SimpleNamespace(epoch_loop=epoch_loop), "global_step": 3, "global_rank": 0, "max_steps": 10},
        **{"precision": "32-true", "world_size": 1, "sanity_checking": False, "strategy": SimpleNamespace()},
    )
    if not isinstance(module.denoiser, Autoencoder):
        module.denoiser.schedule.log_snr(torch.ones((), device="meta"))  # a table of noise levels comes there once
    return module, config, {name: value.to("meta") for name, value in batch.items()}


def devices_of_a_step(module: DiffusionModule, batch: dict[str, Tensor]) -> set[str]:
    """All that Lightning calls in an optimizer step; where the gradients, their norm and the loss are."""
    optimizer: Any = module.configure_optimizers()
    module.denoiser.zero_grad()

    def closure() -> Tensor:
        loss = module.training_step(batch, 0)
        loss.backward()
        module.configure_gradient_clipping(optimizer, 1.0)
        return loss

    module.optimizer_step(0, 0, optimizer, closure)
    trained = [p for p in module.denoiser.network.parameters() if p.requires_grad]
    gradients = [p.grad for p in trained if p.grad is not None]
    assert len(gradients) == len(trained) > 0
    return {tensor.device.type for tensor in (*gradients, module.last_loss, module.grad_norm)}


@pytest.mark.parametrize("experiment", cli.choices_of("experiment"))
def test_every_experiment_trains_validates_and_previews(experiment: str) -> None:
    module, config, batch = made(f"experiment={experiment}")
    asking = experiment in ASKING
    with Net(answers=asking):
        assert devices_of_a_step(module, batch) == {"meta"}
    with Net(copies=True, answers=asking):
        module.on_validation_epoch_start()
        with torch.no_grad():
            module.validation_step(batch, 0)
        _preview(module, config, batch)


def test_several_calls_of_a_generator_are_trained_without_a_copy_to_the_device() -> None:
    module, _, batch = made("experiment=few_step_matching", "objective.steps=3")
    with Net():
        assert devices_of_a_step(module, batch) == {"meta"}


def _preview(module: DiffusionModule, config: dict[str, Any], batch: dict[str, Tensor]) -> None:
    model = module.evaluated
    if not model.draws:
        assert model.shown(batch["x"], batch["label"], Noise(0, batch["serial"], PREVIEW))
        return
    splits = SimpleNamespace(val=_Examples(tuple(config["dataset"]["shape"])))
    condition = config["dataset"].get("condition")
    condition = None if condition is None else build(condition)
    module.trainer.datamodule = SimpleNamespace(splits=splits, condition=condition)  # type: ignore[attr-defined]
    conditioned = None if condition is None else torch.arange(2)
    pipeline = preview_pipeline(module, tuple(config["dataset"]["shape"]), bool(config["clip"]), 3, conditioned)
    for state in pipeline.states(batch["serial"]):
        assert pipeline.decoded(state.x_t, state.t).shape[1:] == tuple(config["dataset"]["shape"])


class _Examples:
    """Black images without end."""

    embeddings = None

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape, self.labels = shape, torch.zeros(COPIES, dtype=torch.int64)

    def __len__(self) -> int:
        return COPIES

    def get(self, indices: Tensor) -> Tensor:
        return torch.zeros(len(indices), *self.shape)


@pytest.mark.parametrize(
    "overrides",
    [
        *("ema=power optimizer=muon", "ema=none", "network.dropout=0.1"),
        "network.num_classes=10 condition_dropout=0.5",
        *(f"dataset/condition={name}" for name in ("lowres", "augmented", "edges", "masked")),
        "dataset.augment=0.12 optimizer=muon",
    ],
)
def test_every_part_around_a_unet_stays_on_the_device(overrides: str) -> None:
    module, _, batch = made("dataset=digits", "network.widths=[8,16]", "network.blocks=1", *overrides.split())
    with Net():
        assert devices_of_a_step(module, batch) == {"meta"}


@pytest.mark.parametrize(
    "overrides",
    [
        *(f"schedule={name} objective=simple steps=5" for name in cli.choices_of("schedule") if name != "geometric"),
        *(f"objective={name} denoiser=eps" for name in ("min_snr", "lognormal", "logit_normal", "simple")),
        "objective=likelihood schedule=vp steps=5",
        *(f"objective={name} denoiser=learned" for name in ("hybrid", "vlb")),
        *(f"denoiser={name}" for name in ("x0", "v", "score", "flow", "edm", "residual")),
        "objective.distance=huber",
    ],
)
def test_every_part_around_any_network_stays_on_the_device(overrides: str) -> None:
    module, _, batch = made("dataset=moons", "network.width=8", "network.depth=1", *overrides.split())
    with Net():
        assert devices_of_a_step(module, batch) == {"meta"}


@pytest.mark.parametrize(
    "overrides",
    [
        "network=dit_mini denoiser=learned objective=hybrid",
        "network=dit_mini network.num_classes=10 condition_dropout=0.5 optimizer=muon",
        "network=dit_mini dataset/condition=augmented",
        *(
            f"network={name} network.pad=true dataset=folder dataset.path=x"
            for name in ("dit_mini", "unet", "tutorial")
        ),
    ],
)
def test_other_networks_stay_on_the_device(overrides: str) -> None:
    sizes = ["network.depth=1"] if "dit" in overrides else []
    module, _, batch = made(*overrides.split(), *sizes)
    with Net():
        assert devices_of_a_step(module, batch) == {"meta"}


def test_the_bounds_step_draws_by_a_full_history_without_asking() -> None:
    module, _, batch = made(
        "dataset=digits",
        "network.widths=[8,16]",
        "denoiser=learned",
        "objective=vlb",
        "timesteps=25",
        "objective.history=1",
    )
    with Net():
        for _ in range(2):
            assert devices_of_a_step(module, batch) == {"meta"}


class Mixing(MLP):
    """A network with a mistake."""

    def __init__(self, fault: str) -> None:
        super().__init__((2,), width=8, depth=1)
        self.fault, self.left = fault, torch.ones(2, 2)  # no buffer, so it does not move

    def forward(self, x: Tensor, c_noise: Tensor, cond: dict[str, Tensor]) -> Tensor:
        if self.fault == "product":
            x = x @ self.left
        elif self.fault == "row":
            x = x * torch.tensor(0.5).reshape(1, 1)
        elif self.fault == "convolution":
            x = nn.functional.conv1d(x[:, None], self.left[None, :1, :1])[:, 0]
        elif self.fault == "item":
            x = x * c_noise.mean().item()
        elif self.fault == "bool":
            x = x if (c_noise > 0).all() else -x
        elif self.fault == "selection":
            x = x + x[x > 0].sum()
        else:
            x = x + torch.tensor([1.0, 2.0], device=x.device)
        return super().forward(x, c_noise, cond)


@pytest.mark.parametrize("fault", ["product", "row", "convolution", "item", "bool", "selection", "copy"])
def test_the_net_catches_each_mistake_in_a_training_step(fault: str) -> None:
    denoiser = NetworkDenoiser(Mixing(fault), LinearSchedule(), EpsPreconditioner()).to("meta")
    x, t = torch.zeros(3, 2, device="meta"), torch.full((3,), 0.5, device="meta")
    with pytest.raises((DeviceError, RuntimeError, NotImplementedError)), Net():
        denoiser(x, t)
