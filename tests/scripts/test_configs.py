"""Every configuration that is offered composes, builds and trains; every setting is read by the code."""

import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from support.configs import FIXTURES, resolved

import cli
from diffusion.build import ConfigError, build
from diffusion.noise import TRAINING, Noise
from diffusion.runs.models import build_model
from diffusion.runs.parts import Parts
from diffusion.samplers import AnnealedLangevinSampler, prior
from diffusion.sampling.method import method_of, sampler_and_times
from diffusion.settings.training import PARTS, Settings, settings
from diffusion.training import run, trainer

ROOT = Path(__file__).parents[2]
FAST = [name for name in cli.choices_of("experiment") if name.startswith("fast_")]
SDES = ["vp_sde", "subvp_sde", "ve_sde", "flow", "ncsn"]  # for any dataset
CASCADE = ["cascade_base", "cascade_sr"]
ENCODING = ["dataset=digits", "network=autoencoder", "denoiser=autoencoder", "objective=elbo"]
TUNED = f"init_from={FIXTURES / 'residual.ckpt'}"
TUTORIALS = ["tutorial_mnist", "tutorial_fashion", "tutorial_cifar"]


def loss_of_one_step(config: dict[str, Any]) -> torch.Tensor:
    """The loss on two random samples, with gradients in all weights."""
    denoiser, objective = build_model(config), build(config["objective"])
    objective.begin(denoiser)
    batch = {"x": torch.rand(2, *config["dataset"]["shape"]) * 2 - 1, "label": torch.zeros(2, dtype=torch.long)}
    batch["serial"] = torch.arange(2)
    if config["dataset"].get("condition") is not None:
        batch |= build(config["dataset"]["condition"]).augmented(batch["x"], 0, torch.arange(2))
    loss: torch.Tensor = objective(denoiser, batch, Noise(0, torch.arange(2), TRAINING))["loss"].mean()
    loss.backward()
    assert all(p.grad is not None for p in denoiser.network.parameters())
    return loss


@pytest.mark.parametrize("experiment", cli.choices_of("experiment"))
def test_every_experiment_composes_and_its_parts_fit_together(experiment: str) -> None:
    config = resolved(f"experiment={experiment}")
    settings(config)
    with torch.device("meta"):
        network = build(config["network"], "network")
    for part in ("objective", "learning_rate", "ema", "sampler", "grid"):
        build(config[part], part)
    assert build(config["optimizer"], "optimizer")(network, fused=False).param_groups
    name = {
        **dict.fromkeys((*SDES, "learned_variance", "demo"), "mnist5k"),
        **dict.fromkeys(CASCADE, "fashion"),
        **dict.fromkeys(("few_step", "few_step_matching"), "digits"),
    }
    assert config["dataset"]["name"] == name.get(experiment, experiment.removesuffix("_cond").rpartition("_")[2])
    assert (config["trainer"]["max_steps"] or config["trainer"]["max_epochs"] or config["budget_minutes"]) is not None


@pytest.mark.parametrize("experiment", FAST)
def test_every_fast_experiment_trains_and_has_a_few_step_sampler(experiment: str) -> None:
    config = resolved(f"experiment={experiment}")
    assert loss_of_one_step(config).isfinite()
    _, times = sampler_and_times(Parts(config), build_model(config))
    assert len(times) - 1 <= (20 if len(config["dataset"]["shape"]) == 3 else 40)  # points cost next to nothing


@pytest.mark.parametrize("dataset", ["digits", "fashion"])
def test_a_cascades_stages_train_and_fit_together(dataset: str) -> None:
    base, sr = (resolved(f"experiment={name}", f"dataset={dataset}") for name in CASCADE)
    for config in (base, sr):
        assert loss_of_one_step(config).isfinite()
        sampler_and_times(Parts(config), build_model(config))
    assert list(build(sr["dataset"]["condition"]).small(sr["dataset"]["shape"])) == base["dataset"]["shape"]


@pytest.mark.parametrize("condition", cli.choices_of("dataset.condition"))
def test_every_condition_trains(condition: str) -> None:
    config = resolved(
        "dataset=cifar",
        "network=unet",
        "network.widths=[8,16]",
        "network.attention=[]",
        f"dataset/condition={condition}",
    )
    assert loss_of_one_step(config).isfinite()


@pytest.mark.parametrize("dataset", [pytest.param("digits", marks=pytest.mark.slow), "swissroll"])
@pytest.mark.parametrize("experiment", SDES)
def test_every_sde_trains_on_any_dataset_and_its_sampler_goes_with_it(experiment: str, dataset: str) -> None:
    config = resolved(f"experiment={experiment}", f"dataset={dataset}")
    assert config["dataset"]["name"] == dataset
    assert loss_of_one_step(config).isfinite()
    if experiment == "ncsn":
        config["sampler"]["corrections"] = 1
    denoiser = build_model(config)
    few = {"steps": 20 if denoiser.schedule.timesteps is None else None}
    sampler, times = method_of(Parts(config | few), denoiser)
    noise = Noise(0, torch.arange(2))
    x = prior(denoiser.schedule, noise, tuple(config["dataset"]["shape"]))
    with torch.no_grad():
        assert sampler.sample(denoiser, x, times, noise=noise).isfinite().all()


def test_flows_times_are_logit_normal() -> None:
    config = resolved("experiment=flow")
    times, schedule = build(config["objective"]["times"]), build(config["schedule"])
    u = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    torch.testing.assert_close(times(schedule, u) * config["schedule"]["end"], torch.special.ndtri(u).sigmoid())


@pytest.mark.parametrize("dataset", cli.choices_of("dataset"))
def test_every_dataset_has_a_network_of_its_size(dataset: str) -> None:
    config = resolved(f"dataset={dataset}")
    with torch.device("meta"):
        network = build(config["network"], "network")
    assert sum(p.numel() for p in network.parameters()) < 70e6
    assert config["timesteps"] is None
    assert config["schedule"]["timesteps"] == 1000
    assert config["denoiser"]["precond"]["_target_"].endswith("EpsPreconditioner")
    assert config["ema"] is not None


def test_a_dataset_without_a_network_of_its_name_asks_for_one() -> None:
    with pytest.raises(ConfigError, match=r"dataset=digits has no network of its own.*network=unet for images"):
        resolved("dataset=digits", "~network")


@pytest.mark.parametrize(
    ("group", "name"),
    [
        (group, name)
        for group in ("schedule", "denoiser", "objective", "sampler", "grid", "optimizer")
        for name in cli.choices_of(group)
    ],
)
def test_every_choice_of_every_group_trains_and_samples(group: str, name: str) -> None:
    fitting = {
        "karras": ["schedule=variance_exploding"],
        "langevin": ["grid=uniform"],
        "levels": ["sampler=ddim"],
        "matching": ["objective=matching", "sampler=consistency", "grid=levels", TUNED],
        "consistency": ["objective=consistency", "sampler=consistency", "grid=levels", TUNED],
        "likelihood": ["schedule=vp"],
        "edm": ["schedule=variance_exploding"],
        "learned": ["objective=hybrid"],
        "step": ["dataset=swissroll", "network=heads", "schedule=cosine", "timesteps=40", "objective=vlb", "steps=40"],
        "hybrid": ["denoiser=learned"],
        "autoencoder": ENCODING,
        "elbo": ENCODING,
        "beta_elbo": ENCODING[:-1],
        "classifier": ["dataset=digits", "network=encoder", "denoiser=classifier", "objective=classifier"],
    }.get(name, [])
    config = resolved("dataset=moons", f"{group}={name}", "steps=3", *fitting)
    assert loss_of_one_step(config).isfinite()
    if name not in ("classifier", "autoencoder", "elbo", "beta_elbo"):  # which draw nothing, or from their prior
        method_of(Parts(config), build_model(config))


@pytest.mark.parametrize("choice", ["exponential", "power", "none"])
@pytest.mark.parametrize("experiment", ["swissroll", "folder", "tutorial_mnist", "classifier_digits"])
def test_the_average_that_is_typed_replaces_the_experiments(experiment: str, choice: str) -> None:
    ema = resolved(f"experiment={experiment}", f"ema={choice}")["ema"]
    assert (ema and ema["_target_"].rpartition(".")[2]) == {"exponential": "EMA", "power": "PowerEMA", "none": None}[
        choice
    ]


@pytest.mark.parametrize(
    ("experiment", "typed"),
    [
        ("ncsn", "sampler=ddpm"),
        ("flow", "objective=likelihood"),
        ("flow", "objective=simple"),
        ("ve_sde", "schedule=vp"),
        ("fast_swissroll", "schedule=vp"),
    ],
)
def test_a_group_that_is_typed_replaces_all_that_the_experiment_said_of_it(experiment: str, typed: str) -> None:
    config = resolved(f"experiment={experiment}", "dataset=swissroll", typed)
    method_of(Parts(config), build_model(config))
    assert loss_of_one_step(config).isfinite()


def test_ncsn_visits_each_of_the_papers_levels() -> None:
    config = resolved("experiment=ncsn", "dataset=digits", "network.widths=[8,16]")
    sampler, times = sampler_and_times(Parts(config), denoiser := build_model(config))
    levels = denoiser.schedule(times[:-1])[1].tolist()
    assert levels == pytest.approx([2 / 100 ** (i / 9) for i in range(10)], rel=1e-9)
    assert isinstance(sampler, AnnealedLangevinSampler)
    assert sampler.epsilon * 0.01**2 == pytest.approx(2e-5)  # the paper's, at its lowest sigma
    assert sampler.corrections == 100


@pytest.mark.parametrize("name", TUTORIALS)
def test_the_tutorials_are_as_published(name: str) -> None:
    config = resolved(f"experiment={name}")
    dataset = name.rpartition("_")[2]
    assert config["dataset"]["name"] == dataset
    assert config["dataset"]["shape"] == [3 if dataset == "cifar" else 1, 32, 32]
    assert config["dataset"]["source"]["holdout"] == 0  # validates on the test split
    assert config["dataset"]["flip"] is False
    assert config["batch_size"] == 128
    assert config["optimizer"]["lr"] == 2e-4
    assert config["optimizer"]["weight_decay"] == 0  # Adam
    assert config["learning_rate"] == {
        "_target_": "diffusion.optimizers.LearningRate", "warmup_images": 0, "decay": "none"
    }  # fmt: skip
    assert config["trainer"]["max_epochs"] == 10
    assert config["trainer"]["max_steps"] is None
    assert config["trainer"]["gradient_clip_val"] is None
    assert config["ema"] is None
    assert config["schedule"] == {
        "_target_": "diffusion.schedules.LinearSchedule", "timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02,
        "zero_terminal_snr": False,
    }  # fmt: skip
    assert config["objective"]["distance"] == "l2"
    assert config["sampler"]["_target_"].endswith("DDPMSampler")
    assert config["steps"] is None
    with torch.device("meta"):
        network = build(config["network"])
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 1) == 12.9
    assert config["val_every"] == -(-(50_000 if dataset == "cifar" else 60_000) // 128)


def test_the_folder_experiment_has_the_general_trainers_values() -> None:
    config = resolved("experiment=folder")
    assert config["network"]["widths"] == [64, 128, 256, 512]
    assert config["dataset"]["shape"] == [3, 128, 128]
    assert config["schedule"]["timesteps"] == 1000
    assert (config["steps"], config["sampler"]["_target_"]) == (250, "diffusion.samplers.DDIMSampler")
    assert config["objective"]["distance"] == "l1"
    assert (config["batch_size"], config["trainer"]["accumulate_grad_batches"]) == (32, 2)
    assert config["optimizer"]["lr"] == 8e-5
    assert config["ema"]["decay"] == 0.995
    assert config["trainer"]["precision"] == "bf16-mixed"
    assert config["trainer"]["max_steps"] == 700_000


@pytest.mark.parametrize("overrides", [[], ["dataset=gaussians"], ["objective=vlb"], ["denoiser=v"]])
def test_a_learned_variance_trains_on_pixels_and_on_points(overrides: list[str]) -> None:
    config = resolved("experiment=learned_variance", *overrides, "denoiser.variance=learned")
    assert config["objective"]["eight_bit"] is (config["dataset"]["name"] != "gaussians")
    assert loss_of_one_step(config).isfinite()


def test_every_setting_is_read_by_the_code() -> None:
    settings = set(yaml.safe_load((cli.CONFIGS / "train.yaml").read_text())) - {"defaults", "hydra"}
    parts = set(PARTS) - set(cli.groups_of("train"))
    assert settings == set(Settings.__dataclass_fields__) | parts
    source = "".join(
        path.read_text() for path in [ROOT / "train.py", ROOT / "cli.py", *(ROOT / "diffusion").rglob("*.py")]
    )
    interpolated = "".join(path.read_text() for path in cli.CONFIGS.rglob("*.yaml"))
    for name in settings:
        used = re.search(rf"""settings_?\.{name}\b|\["{name}"\]|(get|pop|_part)\("{name}"|config\.{name}\b""", source)
        assert used or f"${{{name}}}" in interpolated, f"nobody reads {name}"


def test_every_setting_of_every_dataset_is_read() -> None:
    source = "".join(path.read_text() for path in [ROOT / "train.py", *(ROOT / "diffusion").rglob("*.py")])
    interpolated = "".join(path.read_text() for path in cli.CONFIGS.rglob("*.yaml"))
    for path in (cli.CONFIGS / "dataset").glob("*.yaml"):
        dataset = yaml.safe_load(path.read_text())
        for name in [*dataset, *(f"recipe.{key}" for key in dataset["recipe"])]:
            used = f'["{name}"]' in source or f"dataset.{name}" in source or f"${{dataset.{name}" in interpolated
            assert used or name == "recipe", f"nobody reads dataset.{name}"


@pytest.mark.parametrize(
    ("arguments", "bf16", "expected"),
    [
        (("dataset=cifar",), True, "bf16-mixed"),
        (("dataset=cifar",), False, "32-true"),
        (("dataset=cifar", "accelerator=cpu"), True, "32-true"),
        (("dataset=swissroll",), True, "32-true"),
        (("dataset=cifar", "trainer.precision=16-mixed"), True, "16-mixed"),
        (("dataset=cifar", "experiment=few_step", "trainer=gpu"), True, "32-true"),
    ],
)
def test_images_train_in_bfloat16_where_a_gpu_has_it(
    arguments: tuple[str, ...], bf16: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)
    assert resolved(*arguments)["trainer"]["precision"] == expected


@pytest.mark.parametrize(("first", "expected"), [(True, ["shown"]), (False, [])])
def test_of_several_processes_the_first_warns(first: bool, expected: list[str]) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.quiet(first)
        warnings.warn("This instance was constructed with capturable=True or some of all", stacklevel=1)
        warnings.warn("shown", stacklevel=1)
    assert [str(warning.message) for warning in caught] == expected


def test_a_run_that_wants_deterministic_algorithms_leaves_none_on_for_the_next() -> None:
    for value, expected in ((True, True), (None, False)):
        config = resolved("dataset=digits", "accelerator=cpu")
        config["trainer"]["deterministic"] = value
        trainer.make_trainer(Parts(config))
        assert torch.are_deterministic_algorithms_enabled() is expected


@pytest.mark.parametrize(("typed", "said"), [(True, 1), (False, 0)])
def test_as_many_sampling_steps_as_noising_steps_are_explained_where_they_are_typed(typed: bool, said: int) -> None:
    config = resolved("dataset=digits", "steps=1000", "network.widths=[8,16]", "network.blocks=1")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run.check_sampling(Parts(config), {"steps"} if typed else ())
    assert len([one for one in caught if "trainer.max_steps=... sets how long" in str(one.message)]) == said
