"""Diffusion in an autoencoder's latents, as a user sees it: trained, resumed, sampled, refused."""

import importlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.processes import same
from support.scripts import TINY, Outcome, assert_refused, call

import evaluate
import sample
import train
from data.images import Digits
from diffusion.denoisers import ClippedDenoiser, Conditioned
from diffusion.evaluation.table import random_rows
from diffusion.models import Autoencoder, Codec
from diffusion.noise import SAMPLING, Noise
from diffusion.runs.checkpoints import contents, read
from diffusion.runs.trained import load_model
from diffusion.samplers import prior
from diffusion.sampling import Pipeline

AUTOENCODER, LATENT, PIXELS = (f"lightning_logs/digits/version_{k}" for k in range(3))
WEIGHTS = "checkpoints/last.ckpt"
RUN = ("dataset=digits", "batch_size=16", "trainer.max_steps=4", "val_every=2", "log_every=1", "lr=0.01")
ENCODING = ("experiment=autoencoder_fashion", *RUN, "network.widths=[4,8]", "learning_rate.warmup_images=0")
IN_LATENTS = (
    *("experiment=latent_fashion", *RUN, "network.widths=[8,16]", "network.blocks=1", "network.attention=[]"),
    *("learning_rate.warmup_images=0", "learning_rate.decay=none", f"autoencoder={AUTOENCODER}", "preview_every=4"),
)
CLASSES = ("network.num_classes=10", "condition_dropout=0.3")


def ok(outcome: Outcome) -> Outcome:
    assert outcome.code == 0, outcome.err
    return outcome


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny runs: an autoencoder, a class-conditional model of its latents, a model of pixels."""
    folder = tmp_path_factory.mktemp("runs")
    for arguments in (ENCODING, (*IN_LATENTS, *CLASSES, "score_every=4"), (*TINY, "preview_every=0")):
        ok(call(train, folder, *arguments))
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) * 4).save(folder / "photo.png")
    return folder


@pytest.fixture(scope="module")
def codec(folder: Path) -> Codec:
    """The autoencoder, measured by hand."""
    path = folder / AUTOENCODER / WEIGHTS
    codec = Codec(load_model(read(path), Autoencoder), clip=True)
    train_images = Digits().load().train
    codec.measure(codec.moments(train_images.get(torch.arange(len(train_images)))))
    return codec


def test_an_autoencoders_run_logs_its_bound_and_draws(folder: Path) -> None:
    run = folder / AUTOENCODER
    header = (run / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"val/elbo_bpd", "val/reconstruction_bpd", "val/kl_bpd"} <= set(header)
    assert not any("by_level" in name for name in header)
    for name in ("reconstructions", "prior"):
        with Image.open(run / f"{name}.png") as picture:
            assert picture.width >= 8 * 96


def test_the_checkpoint_has_the_codec_once_and_no_average_or_optimizer_has_it(folder: Path, codec: Codec) -> None:
    checkpoint = contents(folder / LATENT / WEIGHTS)
    state = checkpoint["state_dict"]
    ours = {name.removeprefix("objective.codec."): value for name, value in state.items() if ".codec." in name}
    assert same(dict(codec.state_dict()), ours)  # the averaged weights of the autoencoder, untouched by training
    assert not any("codec" in name or "autoencoder" in name for name in state if name.startswith(("denoiser.", "ema.")))
    trained = [name for name in state if name.startswith("denoiser.network.")]
    assert len(checkpoint["optimizer_states"][0]["state"]) == len(trained)
    described = checkpoint["config"]["autoencoder"]
    assert not any(isinstance(value, str) and "lightning_logs" in value for value in described.values())


def test_latents_of_training_data_have_unit_variance(codec: Codec) -> None:
    examples = Digits().load().train
    eps = Noise(0, torch.arange(len(examples))).normal(codec.latent_shape)
    z = codec.latents(examples.get(torch.arange(len(examples))), eps)
    torch.testing.assert_close(z.mean((0, 2, 3)), torch.zeros(4), rtol=0, atol=0.06)
    torch.testing.assert_close(z.var((0, 2, 3)), torch.ones(4), rtol=0.08, atol=0)


def test_samples_are_the_decoded_latents_and_so_is_every_state(folder: Path, codec: Codec) -> None:
    path = folder / LATENT / WEIGHTS
    shutil.copy(path, folder / "alone.ckpt")  # it needs nothing else
    pipeline = Pipeline.load(str(folder / "alone.ckpt"), steps=3)
    assert not isinstance(pipeline.denoiser, ClippedDenoiser)
    noise = Noise(5, torch.arange(4), SAMPLING)
    x = prior(pipeline.denoiser.schedule, noise, codec.latent_shape)
    denoiser = Conditioned(pipeline.denoiser, {"label": torch.arange(4)})
    with torch.no_grad():
        states = list(pipeline.sampler(denoiser, x, pipeline.times, noise))
    frames = pipeline.frames(4, seed=5, keep=range(4))
    torch.testing.assert_close(frames[-1], codec.decode(states[-1].x_t))
    sigma = pipeline.denoiser.schedule(pipeline.times[0])[1]
    torch.testing.assert_close(frames[0], codec.decode(x / (1 + sigma.item() ** 2) ** 0.5))
    torch.testing.assert_close(pipeline.frames(4, seed=5, keep=range(4), show="x0")[1], codec.decode(states[1].x0))
    assert frames.shape == (4, 4, 1, 8, 8)
    assert frames.abs().max() <= 1


@pytest.mark.parametrize("run", [AUTOENCODER, LATENT])
def test_a_gif_and_both_processes_are_drawn(folder: Path, run: str) -> None:
    ok(call(sample, folder, f"ckpt={run}", "n=4", "steps=2", "frames=3", "out=a.gif"))
    ok(call(sample, folder, f"ckpt={run}", "n=4", "steps=2", "frames=3", "show=both", "out=a.png"))
    if run == LATENT:
        ok(call(sample, folder, f"ckpt={run}", "label=3", "guidance=2", "n=2", "steps=2", "show=x0", "out=b.gif"))
        header = (folder / run / "metrics.csv").read_text().splitlines()[0].split(",")
        assert any(name.startswith("val_score/frechet_random") for name in header)


def test_the_pages_picture_is_drawn(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "docs" / "pictures")
    script = importlib.import_module("latents")
    script.draw(str(folder / AUTOENCODER), str(folder / LATENT), tmp_path, n=4)
    with Image.open(tmp_path / "latents.png") as picture:
        assert picture.width > 1000
    with pytest.raises(ValueError, match="is a model of pixels"):
        script.panels(str(folder / AUTOENCODER), str(folder / PIXELS), 4)


def test_reconstructions_are_scored_as_samples(
    folder: Path, codec: Codec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "docs")
    importlib.import_module("reconstructions").main(str(folder / AUTOENCODER), str(tmp_path / "made.npz"), n=100)
    made = torch.from_numpy(np.load(tmp_path / "made.npz")["arr_0"]).permute(0, 3, 1, 2)
    train_images = Digits().load().train
    x = train_images.get(random_rows(len(train_images))[:100])
    seen, mean = codec.decode(codec.latents(x)), x.mean(0)
    assert (made / 127.5 - 1 - seen).square().mean() < (made / 127.5 - 1 - mean).square().mean()
    given = (f"samples={tmp_path / 'made.npz'}", "dataset=digits", "extractors=random", f"out={tmp_path}")
    assert "100 samples in" in ok(call(evaluate, folder, *given)).out


def test_an_autoencoder_draws_what_its_prior_says(folder: Path) -> None:
    pipeline = Pipeline.load(str(folder / AUTOENCODER))
    assert pipeline.codec is not None
    noise = Noise(0, torch.arange(500), SAMPLING)
    x = prior(pipeline.denoiser.schedule, noise, pipeline.codec.latent_shape)
    z = pipeline.sampler.sample(pipeline.denoiser, x, pipeline.times, noise=noise)
    assert z.mean().abs() < 4 / z.numel() ** 0.5
    assert (z.var() - 1).abs() < 4 * (2 / z.numel()) ** 0.5
    torch.testing.assert_close(pipeline.sample(500, batch_size=500)[:3], pipeline.codec.decode(z[:3]))


def test_an_image_to_begin_from_is_encoded(folder: Path, codec: Codec) -> None:
    command = (f"ckpt={LATENT}", "init=photo.png", "t_start=0.001", "steps=1", "n=1", "label=0", "out=near.npz")
    ok(call(sample, folder, *command))
    with np.load(folder / "near.npz") as file:
        near = torch.from_numpy(file["arr_0"][0, :, :, 0]).float() / 127.5 - 1
    x = torch.arange(64).reshape(1, 1, 8, 8) * 4 / 127.5 - 1
    expected = codec.decode(codec.latents(x))[0, 0]
    assert (near - expected).abs().max() < 0.05


@pytest.mark.slow
def test_a_run_that_is_resumed_ends_as_one_that_was_not_and_kept_latents_are_those_of_each_step(folder: Path) -> None:
    def trained(version: int, *arguments: str) -> Path:
        run = folder / f"lightning_logs/digits/version_{version}"
        ok(call(train, folder, *IN_LATENTS, *arguments))
        return run

    quiet = ("preview_every=0", *CLASSES)
    whole = contents(trained(3, *quiet, "trainer.max_steps=6") / WEIGHTS)
    part = trained(4, *quiet)
    shutil.copytree(part, copy := part.with_name("version_5"))
    for run, again in ((part, ()), (copy, (f"autoencoder={AUTOENCODER}",))):
        ok(call(train, folder, f"resume={run}", "trainer.max_steps=6", *again))
        resumed = contents(run / WEIGHTS)
        for key in ("state_dict", "optimizer_states"):
            assert same(whole[key], resumed[key]), key
    in_each_step = read(trained(6, *quiet, "trainer.max_steps=6", "cache_latents=false") / WEIGHTS).state
    for name, value in whole["state_dict"].items():
        torch.testing.assert_close(value, in_each_step[name], rtol=1e-3, atol=1e-4)


def test_a_codec_that_was_swapped_is_noticed(folder: Path) -> None:
    checkpoint = contents(folder / LATENT / WEIGHTS)
    checkpoint["state_dict"]["objective.codec.autoencoder.network.tenth_of_log_var"] += 1e-3
    torch.save(checkpoint, folder / "swapped.ckpt")
    assert_refused(call(sample, folder, "ckpt=swapped.ckpt"), "the autoencoder in swapped.ckpt is another")
    del checkpoint["state_dict"]["objective.codec.mean"]
    torch.save(checkpoint, folder / "torn.ckpt")
    said = "torn.ckpt is refused: it lacks the weights objective.codec.mean"
    assert_refused(call(sample, folder, "ckpt=torn.ckpt"), said)


@pytest.mark.parametrize(
    ("part", "value", "said"),
    [
        ("network", {"_target_": "torch.nn.Identity"}, "is not a class of this project"),
        ("denoiser", {"_target_": "diffusion.models.NoisyClassifier", "schedule": None}, "refused: autoencoder"),
        ("clip", "yes", "autoencoder.clip in its configuration is 'yes'"),
    ],
)
def test_a_codec_that_no_run_describes_is_refused(folder: Path, part: str, value: Any, said: str) -> None:
    checkpoint = contents(folder / LATENT / WEIGHTS)
    checkpoint["config"]["autoencoder"][part] = value
    torch.save(checkpoint, folder / "crafted.ckpt")
    assert_refused(call(sample, folder, "ckpt=crafted.ckpt"), "crafted.ckpt is refused: ", said)


@pytest.fixture(scope="module")
def others(folder: Path) -> None:
    """Autoencoders that say to be of other data, and one of other weights."""
    checkpoint = contents(folder / AUTOENCODER / WEIGHTS)
    config, dataset = checkpoint["config"], checkpoint["config"]["dataset"]
    for name, changed in (("mnist", {"name": "mnist"}), ("larger", {"shape": [1, 16, 16]})):
        torch.save(checkpoint | {"config": config | {"dataset": dataset | changed}}, folder / f"{name}.ckpt")
    state = {name: value + 0.1 for name, value in checkpoint["state_dict"].items()}
    torch.save(checkpoint | {"state_dict": state}, folder / "other.ckpt")


@pytest.mark.usefixtures("others")
@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("autoencoder=mnist.ckpt", "was trained on mnist of shape (1, 8, 8), not on digits"),
        ("autoencoder=larger.ckpt", "larger.ckpt is refused: network.shape in its configuration is [1, 8, 8]"),
        (f"autoencoder={PIXELS}", "is a denoiser, not an autoencoder: train one with"),
        ("autoencoder=nowhere.ckpt", "there is no checkpoint nowhere.ckpt"),
        ("autoencoder=null", "cache_latents=true is for training in latents: add autoencoder="),
        ("clip=true", "clip=true clamps pixels"),
        ("dataset.flip=true", "cache_latents=true encodes each image once"),
        (
            "network=encoder denoiser=classifier objective=classifier",
            "LatentObjective is a loss of a TrainableDenoiser",
        ),
        ("network=autoencoder", "needs a network with in_channels"),
        (f"init_from={PIXELS}", "is a model of pixels, and this run is to learn latents"),
    ],
)
def test_latents_that_cannot_be_are_refused_in_one_line(folder: Path, typed: str, said: str) -> None:
    before = sorted((folder / "lightning_logs").rglob("*"))
    other = typed.startswith("network=")
    basics = [option for option in IN_LATENTS if not (other and option.startswith("network."))]
    assert_refused(call(train, folder, *basics, *typed.split()), said)
    assert sorted((folder / "lightning_logs").rglob("*")) == before


@pytest.mark.usefixtures("others")
@pytest.mark.parametrize(
    ("script", "typed", "said"),
    [
        (train, f"resume={LATENT} autoencoder=other.ckpt", "the run that is to go on has another autoencoder"),
        (train, f"resume={PIXELS} autoencoder=other.ckpt", "the run that is to go on has no autoencoder"),
        (sample, f"ckpt={LATENT} init=photo.png mask=photo.png", "mask=photo.png: this model draws latents"),
        (sample, f"ckpt={LATENT} classifier=last label=3", "knows noisy pixels, and this model draws latents"),
        (sample, f"ckpt={LATENT} clip=true", "clip= clamps the pixels of each step, and this model draws latents"),
        (sample, f"ckpt={AUTOENCODER} label=3", "this model is unconditional"),
        (evaluate, f"ckpt={LATENT} likelihood=ode", "likelihood=ode is that of data, and this model's is of latents"),
        (evaluate, f"ckpt={AUTOENCODER} likelihood=vlb", "is an autoencoder, not a denoiser"),
        (
            train,
            f"{' '.join(ENCODING)} score_every=2",
            "score_every=2 scores samples, and a model of this kind, autoencoder, draws none",
        ),
        (train, f"{' '.join(RUN)} denoiser=autoencoder", "needs a network that encodes and decodes"),
        (train, f"{' '.join(RUN)} network=autoencoder", "does not denoise"),
        (train, f"{' '.join(RUN)} objective=elbo", "ELBOObjective is a loss of a Autoencoder"),
        (
            train,
            f"{' '.join(RUN)} network=autoencoder denoiser=autoencoder",
            "DenoisingObjective is a loss of a RegressionDenoiser, and this model is a Autoencoder",
        ),
    ],
)
def test_autoencoders_in_the_wrong_place_are_refused_in_one_line(
    folder: Path, script: object, typed: str, said: str
) -> None:
    outcome = call(script, folder, *typed.split())  # type: ignore[arg-type]
    assert_refused(outcome, said)
