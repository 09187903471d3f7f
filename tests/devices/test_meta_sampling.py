"""Every sampler, likelihood and extractor runs on a device that refuses to mix with the CPU; see `support.meta`."""

from typing import Any

import pytest
import torch
import yaml
from support.meta import Net, no_autocast  # noqa: F401
from torch import Tensor, nn

import cli
from data.conditions import LowRes
from diffusion.build import build
from diffusion.denoisers import (
    ClippedDenoiser,
    Conditioned,
    Denoiser,
    DynamicThreshold,
    EpsPreconditioner,
    GaussianMixtureDenoiser,
    NetworkDenoiser,
    Rescheduled,
    ResidualDenoiser,
    StepDenoiser,
)
from diffusion.evaluation.extractors import Classifier, RandomConvolutions
from diffusion.guidance import Autoguidance, ClassifierFreeGuidance, EnergyGuidance, Inpainting, MeasurementGuidance
from diffusion.likelihood import ode_log_density, prior_log_density, variational_bound
from diffusion.models import Autoencoder, Codec, LabelLogProb, NoisyClassifier
from diffusion.networks.autoencoder import AutoencoderNetwork
from diffusion.networks.embedding import LabelEmbedding
from diffusion.networks.encoder import Encoder
from diffusion.networks.heads import Heads
from diffusion.noise import Noise
from diffusion.samplers import (
    DDIMSampler,
    DDPMSampler,
    LogSNRGrid,
    RePaintSampler,
    Sampler,
    TrailingGrid,
    UniformGrid,
)
from diffusion.sampling import Pipeline
from diffusion.sampling.cascade import joined
from diffusion.sampling.conditions import Rows
from diffusion.sampling.interpolation import inverted
from diffusion.sampling.measurements import Blur
from diffusion.schedules import CosineSchedule, LinearSchedule, Schedule, VarianceExplodingSchedule, VPSchedule, expand

SHAPE = (1, 8, 8)
SCHEDULES = {"linear": LinearSchedule, "ve": VarianceExplodingSchedule}
SAMPLERS = cli.choices_of("sampler")
# A denoiser that is guided or conditioned meets one sampler of each way to call it: for a transition, for x0 at the
# times of the grid, at times between these, at times on the device.
ONE_OF_EACH = ("ddpm", "dpmpp_2m", "heun", "adaptive")
BARE = ("network", "learned", "residual")


class Small(nn.Module):
    """One convolution that is conditioned on all that a network can be: the large networks train in
    `test_meta_training`."""

    def __init__(
        self,
        shape: tuple[int, ...] = SHAPE,
        in_channels: int | None = None,
        out_channels: int | None = None,
        num_classes: int = 0,
        condition_channels: int = 0,
    ) -> None:
        super().__init__()
        self.num_classes, self.condition_channels = num_classes, condition_channels
        out = out_channels or shape[0]
        self.conv = nn.Conv2d((in_channels or shape[0]) + condition_channels, out, 3, padding=1)
        self.embed = LabelEmbedding(num_classes or 1, out)

    def forward(self, x: Tensor, c_noise: Tensor, cond: dict[str, Tensor]) -> Tensor:
        x = torch.cat((x, cond["image"]), dim=1) if self.condition_channels else x
        shift = c_noise[:, None] * self.embed(cond["label"] if self.num_classes else c_noise.long())
        moved: Tensor = self.conv(x) + shift[:, :, None, None]
        return moved


def network(schedule: Schedule, variance: str = "beta", **options: Any) -> NetworkDenoiser:
    return NetworkDenoiser(Small(**options), schedule, EpsPreconditioner(), variance)


def residual(schedule: Schedule, **options: Any) -> ResidualDenoiser:
    return ResidualDenoiser(Small(in_channels=2, **options), schedule, list(SHAPE), clusters=2, components=4)


def by_classifier(schedule: Schedule) -> Denoiser:
    classifier = NoisyClassifier(Encoder(SHAPE, classes=3, widths=(4,), blocks=1, attention=()), CosineSchedule(50))
    guided = EnergyGuidance(network(schedule), LabelLogProb(classifier, schedule), 2.0)
    guided.num_classes = 3
    return guided


def guided(schedule: Schedule, make: Any) -> Denoiser:
    return ClassifierFreeGuidance(make(schedule, num_classes=3), 2.0, interval=[0.1, 5.0], rescale=0.5)


def inpainted(schedule: Schedule, make: Any) -> Denoiser:
    mask = torch.zeros(1, 8, 8)
    mask[:, 4:] = 1
    return Inpainting(make(schedule), torch.zeros(SHAPE), mask)


def restored(schedule: Schedule, make: Any) -> Denoiser:
    return MeasurementGuidance(make(schedule), Blur(1.5), torch.zeros(SHAPE), 0.1)


def autoguided(schedule: Schedule) -> Denoiser:
    guide = Rescheduled(network(VPSchedule()), schedule)
    return DynamicThreshold(Autoguidance(network(schedule), guide, 2.0, interval=[0.1, 5.0]))


KINDS: dict[str, Any] = {
    "network": network,
    "learned": lambda schedule: network(schedule, "learned", out_channels=2),
    "residual": residual,
    "residual_classes": lambda schedule: guided(schedule, residual),
    "guided": lambda schedule: guided(schedule, network),
    "by_classifier": by_classifier,
    "autoguided": autoguided,
    "inpainted": lambda schedule: inpainted(schedule, network),
    "inpainted_residual": lambda schedule: inpainted(schedule, residual),
    "restored": lambda schedule: restored(schedule, network),
    "restored_residual": lambda schedule: restored(schedule, residual),
    "conditioned": lambda schedule: network(schedule, condition_channels=2),
    "conditioned_residual": lambda schedule: residual(schedule, condition_channels=2),
}


def sampler(name: str) -> Sampler:
    """The sampler of this name as it is offered, with few Langevin steps."""
    config = yaml.safe_load((cli.CONFIGS / "sampler" / f"{name}.yaml").read_text())
    if "corrections" in config:
        config["corrections"] = 2
    found: Sampler = build(config, "sampler")
    return found


def pipeline(denoiser: Denoiser, how: Sampler, **options: Any) -> Pipeline:
    times = UniformGrid()(denoiser.schedule, 3)
    given = None
    if denoiser.condition_channels:
        given = Rows({"image": torch.ones(2, denoiser.condition_channels, *SHAPE[1:])})
    clipped = ClippedDenoiser(denoiser)
    return Pipeline(clipped, how, times, SHAPE, denoiser.num_classes, given=given, **options)


@pytest.fixture(autouse=True)
def one_step_of_the_adaptive_solver(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's solver has to ask for each step's error: one step of Euler's method calls ours in its place."""

    def odeint(slope: Any, state: Any, times: Tensor, options: Any, **_: Any) -> Any:
        slopes = slope(times[0], state)
        options["norm"](slopes)
        moved = [x + (times[1] - times[0]) * v for x, v in zip(state, slopes, strict=True)]
        return tuple(torch.stack(pair) for pair in zip(state, moved, strict=True))

    monkeypatch.setattr("diffusion.ode.odeint", odeint)


@pytest.mark.parametrize(
    ("kind", "schedule"), [*((kind, "linear") for kind in KINDS), ("network", "ve"), ("residual", "ve")]
)
def test_every_sampler_draws_with_every_denoiser(kind: str, schedule: str) -> None:
    denoiser = KINDS[kind](SCHEDULES[schedule]())
    for name in SAMPLERS if kind in BARE else ONE_OF_EACH:
        how = sampler(name)
        # The adaptive solver's times are on the device, where guidance has to ask whether it acts at one.
        with Net(copies=True, answers=name == "adaptive"):
            assert pipeline(denoiser, how).sample(2, device="meta").shape == (2, *SHAPE)


@pytest.mark.parametrize("name", ["ddpm", "ddim", "heun", "unipc", "dpmpp_2m_sde", "churn"])
def test_repaint_draws(name: str) -> None:
    with Net(copies=True):
        how = RePaintSampler(sampler(name), 2)
        assert pipeline(inpainted(LinearSchedule(), residual), how).sample(2, device="meta").shape == (2, *SHAPE)


def test_a_start_and_labels_in_turn_come_to_the_device() -> None:
    denoiser = guided(LinearSchedule(), network)
    made = pipeline(denoiser, DDIMSampler(), init=torch.zeros(SHAPE))
    made.times = made.times[1:]
    for label in (None, 1, [0, 2]):
        with Net(copies=True):
            frames = made.frames(3, label=label, device="meta", keep=(0, -1), show="x0")
        assert frames.shape == (2, 3, *SHAPE)


@pytest.mark.parametrize("kind", ["residual", "residual_classes", "conditioned_residual"])
def test_sampling_begins_with_the_prior_on_the_device(kind: str) -> None:
    made = pipeline(KINDS[kind](LinearSchedule()), DDIMSampler())
    made.times = LogSNRGrid()(made.denoiser.schedule, 3, 0.5)
    with Net(copies=True):
        assert made.sample(2, device="meta").shape == (2, *SHAPE)


def test_latents_are_drawn_and_decoded() -> None:
    codec = Codec(Autoencoder(AutoencoderNetwork(SHAPE, latent=2, widths=(8,))), clip=True)
    denoiser = residual_of(codec.latent_shape)
    made = Pipeline(denoiser, DDPMSampler(), UniformGrid()(denoiser.schedule, 3), SHAPE, 0, codec=codec)
    with Net(copies=True):
        assert made.frames(2, device="meta", keep=(0, -1)).shape == (2, 2, *SHAPE)


def test_a_pipeline_for_another_process_is_on_the_cpu_and_this_one_stays_where_it_is() -> None:
    codec = Codec(Autoencoder(AutoencoderNetwork(SHAPE, latent=2, widths=(8,))), clip=True).to("meta")
    denoiser = residual_of(codec.latent_shape).to("meta")
    made = Pipeline(denoiser, DDIMSampler(), TrailingGrid()(LinearSchedule(), 3), SHAPE, 0, codec=codec)
    with Net(copies=True):
        state = made.__getstate__()
    assert {next(state[name].parameters()).device.type for name in ("denoiser", "codec")} == {"cpu"}
    assert next(denoiser.parameters()).device.type == next(codec.parameters()).device.type == "meta"


def test_images_of_a_model_of_latents_are_taken_back_to_noise_where_they_are() -> None:
    codec = Codec(Autoencoder(AutoencoderNetwork(SHAPE, latent=2, widths=(8,))), clip=True)
    denoiser = residual_of(codec.latent_shape)
    made = Pipeline(denoiser, DDIMSampler(), TrailingGrid()(denoiser.schedule, 3), SHAPE, 0, codec=codec)
    with Net(copies=True):
        found = inverted(made, torch.zeros(2, *SHAPE, device="meta"))
    assert (found.shape, found.device.type) == ((2, *codec.latent_shape), "meta")


def residual_of(shape: tuple[int, ...]) -> ResidualDenoiser:
    net = Small(shape, in_channels=2 * shape[0])
    return ResidualDenoiser(net, LinearSchedule(), list(shape), clusters=2, components=4)


def test_a_codec_of_a_moved_autoencoder_is_where_that_is() -> None:
    autoencoder = Autoencoder(AutoencoderNetwork(SHAPE, latent=2, widths=(8,))).to("meta")
    with Net():
        codec = Codec(autoencoder, clip=False)
        decoded = codec.decode(codec.latents(torch.zeros(2, *SHAPE, device="meta")))
    assert (decoded.shape, decoded.device.type) == ((2, *SHAPE), "meta")


def test_a_cascade_draws() -> None:
    condition = LowRes(2, noise=0.5)
    base = network(LinearSchedule(), shape=(1, 4, 4))
    first = Pipeline(base, DDPMSampler(), UniformGrid()(base.schedule, 3), (1, 4, 4), 0)
    second = residual(LinearSchedule(), condition_channels=2)
    last = Pipeline(second, DDPMSampler(), UniformGrid()(second.schedule, 3), SHAPE, 0, condition=condition)
    with Net(copies=True):
        assert joined([first, last], ["base", "sr"], 0.2).sample(2, device="meta").shape == (2, *SHAPE)


def test_the_step_denoiser_draws() -> None:
    schedule = CosineSchedule(4)
    denoiser = StepDenoiser(Heads((2,), heads=4, width=8, out_channels=4), schedule)
    made = Pipeline(denoiser, DDPMSampler(), TrailingGrid()(schedule, 4), (2,), 0)
    with Net(answers=True):  # which head it is, the network has to know
        assert made.sample(2, device="meta").shape == (2, 2)


def test_the_exact_denoiser_meets_any_time() -> None:
    exact = GaussianMixtureDenoiser(LinearSchedule(), torch.zeros(2, 3), torch.eye(3).repeat(2, 1, 1)).to("meta")
    x = torch.zeros(5, 3, device="meta")
    for t in (torch.tensor(0.5), torch.tensor([0.5]), torch.full((5,), 0.5, device="meta")):
        with Net(copies=True):
            x0, density = exact(x, t), exact.log_prob(x, t)
        assert (x0.shape, density.shape, x0.device.type) == ((5, 3), (5,), "meta")


@pytest.mark.parametrize("kind", ["network", "learned", "residual", "conditioned_residual"])
@pytest.mark.parametrize("t", [torch.tensor(0.5), torch.tensor([0.5]), torch.tensor([0.5, 0.6])], ids=["0", "1", "B"])
def test_a_denoiser_and_its_step_take_a_time_of_any_device(kind: str, t: Tensor) -> None:
    denoiser = KINDS[kind](LinearSchedule()).to("meta")
    x, cond = torch.zeros(2, *SHAPE, device="meta"), {}
    if denoiser.condition_channels:
        cond["image"] = torch.zeros(2, 2, 8, 8, device="meta")
    for place in (t, t.to("meta")):
        with Net(copies=True):
            mean, log_var, x0 = denoiser.transition(x, place, place / 2, cond)
        assert mean.shape == x0.shape == x.shape
        assert torch.broadcast_shapes(log_var.shape, x.shape) == x.shape


@pytest.mark.parametrize("kind", ["network", "learned", "residual", "conditioned_residual"])
def test_both_likelihoods_run(kind: str) -> None:
    denoiser = KINDS[kind](LinearSchedule()).to("meta")
    x, noise = torch.zeros(2, *SHAPE, device="meta"), Noise(0, torch.arange(2, device="meta"))
    cond = {"image": torch.zeros(2, 2, 8, 8, device="meta")} if denoiser.condition_channels else {}
    with Net(copies=True):
        for eight_bit in (True, False):
            times = TrailingGrid()(denoiser.schedule, 3)
            terms = variational_bound(Conditioned(denoiser, cond), x, times, noise, eight_bit)
            assert (terms.shape, terms.device.type) == ((2, 4), "meta")
        for options in ({"steps": 2}, {"tolerance": 1e-3}, {"steps": 1, "probe": "gaussian"}):
            x_1, change = ode_log_density(Conditioned(denoiser, cond), x.double(), noise, **options)  # type: ignore[arg-type]
            density = prior_log_density(denoiser.schedule, x_1)
            assert (x_1.shape, change.shape, density.shape, density.device.type) == (x.shape, (2,), (2,), "meta")


@pytest.mark.parametrize("extractor", [RandomConvolutions(1), Classifier(SHAPE, 3)], ids=["random", "classifier"])
def test_extractors_run(extractor: torch.nn.Module) -> None:
    extractor.eval().to("meta")
    with Net():
        assert extractor(torch.zeros(2, *SHAPE, device="meta")).ndim == 2


@pytest.mark.parametrize("shape", [(), (2,)], ids=["scalar", "a_sample"])
@pytest.mark.parametrize(("device", "other"), [("meta", "cpu"), ("cpu", "meta")])
def test_a_coefficient_multiplies_samples_of_another_device(shape: tuple[int, ...], device: str, other: str) -> None:
    x = torch.zeros(2, *SHAPE, device=other)
    with Net(copies=True):
        assert (expand(torch.ones(shape, device=device), x) * x).device == x.device
