"""What is shown during training: scores of the averaged weights against validation data, and the speed of training."""

import csv
import time
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.scripts import TINY, call

import train
from data.images import Digits
from data.stream import Images, Splits
from diffusion.denoisers import ClippedDenoiser
from diffusion.evaluation.copying import neighbours
from diffusion.evaluation.extractors import RandomConvolutions, features
from diffusion.evaluation.metrics import frechet_distance, kernel_distance, neighbour_scores
from diffusion.evaluation.table import held
from diffusion.media import quantised
from diffusion.noise import PREVIEW, Noise
from diffusion.runs.checkpoints import read
from diffusion.runs.trained import load_model
from diffusion.samplers import prior
from diffusion.training.callbacks import AfterStep, Metrics
from diffusion.training.previews import quick_method
from diffusion.training.scores import Scores


def test_the_logged_scores_are_those_of_the_averaged_weights_against_the_first_validation_data(tmp_path: Path) -> None:
    outcome = call(
        train, tmp_path, *TINY, "score_every=4", "preview_every=0", "lr=0.03", "learning_rate.warmup_images=0"
    )
    assert outcome.code == 0, outcome.err
    run = tmp_path / "lightning_logs/digits/version_0"
    with (run / "metrics.csv").open() as file:
        logged = [row for row in csv.DictReader(file) if row["val_score/frechet_random_n180"]]
    assert len(logged) == 1
    real = held(Digits().load().val, torch.arange(180))
    noise = Noise(0, torch.arange(180), PREVIEW)
    extractor = RandomConvolutions(1).eval()
    found = {}
    for weights in ("ema", "raw"):
        path = run / "checkpoints/last.ckpt"
        denoiser = ClippedDenoiser(load_model(read(path), weights=weights))
        sampler, times = quick_method(denoiser, 20)
        fake = sampler.sample(denoiser, prior(denoiser.schedule, noise, (1, 8, 8)), times, noise)
        made, target = (features(extractor, pixels) for pixels in (quantised(fake), real))
        found[weights] = {
            "frechet_random": frechet_distance(made, target, replicates=0).value,
            "kernel_random": kernel_distance(made, target, replicates=0).value,
            "coverage_random": neighbour_scores(made, target, replicates=0)["coverage"].value,
        }
    for name, value in found["ema"].items():
        # Batches of another size round differently, which a sample's byte may show.
        assert float(logged[0][f"val_score/{name}_n180"]) == pytest.approx(value, rel=1e-2, abs=0.01), name
    frechet = "frechet_random"
    assert found["raw"][frechet] != pytest.approx(found["ema"][frechet], rel=0.02)


def trainer_of(val: Images, *others: AfterStep) -> Any:
    """What the callbacks ask of a trainer; there is no loader, whose data would be this process's alone."""
    return SimpleNamespace(
        datamodule=SimpleNamespace(splits=Splits(val, val, val)),
        callbacks=list(others),
        global_step=0,
        max_steps=9,
        is_global_zero=True,
        strategy=SimpleNamespace(reduce=lambda value, reduce_op: value),
        optimizers=[SimpleNamespace(param_groups=[{"lr": 1.0}])],
    )


def test_too_few_validation_data_for_a_score_are_refused() -> None:
    scores = Scores(1, (1, 8, 8), clip=True)
    with pytest.raises(ValueError, match="score_every=1 needs more than 84 validation data, and there are 84: leave"):
        scores.judge_by(Images(torch.zeros(84, 1, 8, 8, dtype=torch.uint8)))
    scores.judge_by(Images(torch.zeros(85, 1, 8, 8, dtype=torch.uint8)))
    enough, too_few = torch.zeros(5, 1, 8, 8), torch.zeros(4, 1, 8, 8)
    Scores(1, (1, 8, 8), clip=True).judge_by(Images(quantised(enough)), enough)  # by which copies are found
    for held_out, training in ((too_few, enough), (enough, too_few)):
        with pytest.raises(ValueError, match="more than 84 validation data"):
            Scores(1, (1, 8, 8), clip=True).judge_by(Images(quantised(held_out)), training)


def test_a_run_warns_once_of_copies_and_not_of_blurred_samples() -> None:
    digits = Digits().load()
    training = digits.train.get(torch.arange(300))
    scores = Scores(1, (1, 8, 8), clip=True)
    scores.judge_by(digits.val, training)
    new, copies = quantised(digits.test.get(torch.arange(100))), quantised(training[:100] + 0.02)
    _, nearest = neighbours(quantised(training), quantised(training), 2)
    between = quantised((training + training[nearest[:, 1]]) / 2)  # near, as what is blurred is, to two images alike
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert abs(scores._image_scores(new)["copying_pixels"] - 0.5) < 0.1
        assert scores._image_scores(between)["copying_pixels"] > 0.7
    with pytest.warns(UserWarning, match="samples come nearer to training images than held-out images do, in 100 %"):
        assert scores._image_scores(copies)["copying_pixels"] == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert scores._image_scores(copies)["copying_pixels"] == 1


def test_scores_of_data_that_are_neither_images_nor_points_in_the_plane_are_refused() -> None:
    with pytest.raises(ValueError, match=r"not data of shape \(3,\)"):
        Scores(1, (3,), clip=False)
    Scores(0, (3,), clip=False)


def test_time_that_is_spent_on_pictures_and_scores_is_not_training_time() -> None:
    logged: list[dict[str, float]] = []
    module: Any = SimpleNamespace(
        device=torch.device("cpu"),
        images_per_step=16,
        training=True,
        eval=lambda: None,
        train=lambda mode: None,
        last_loss=torch.tensor(0.0),
        grad_norm=torch.tensor(0.0),
        raise_if_diverged=lambda: None,
        logger=SimpleNamespace(log_metrics=lambda values, step: logged.append(values)),
    )
    metrics, watcher = Metrics(every=1), AfterStep()
    trainer = trainer_of(Images(torch.zeros(1, 1, 2, 2, dtype=torch.uint8)), metrics, watcher)
    metrics.on_train_start(trainer, module)
    time.sleep(0.05)
    with watcher.aside(module):
        time.sleep(0.5)
    metrics.after_step(trainer, module, 1)
    assert 16 / 0.2 < logged[0]["watch/images_per_s"] <= 16 / 0.05
