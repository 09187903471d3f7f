"""A setting of another script, project or form is met with the one that is meant."""

from pathlib import Path
from typing import Any

import pytest
from support.scripts import assert_refused, call

import cli
import compare
import evaluate
import hints
import sample
import train


@pytest.mark.parametrize("script", hints.WORDS)
def test_every_foreign_name_leads_to_a_setting_and_is_none_itself(script: str) -> None:
    known = set(cli.settings_of(script))
    every = {name for other in hints.WORDS for name in cli.settings_of(other)}
    for word, setting in hints.WORDS[script].items():
        assert setting in every
        if word not in known:
            assert hints.home(word, script, cli.settings_of) is not None


@pytest.mark.parametrize(
    ("script", "arguments", "said"),
    [
        (train, "trainer.gpus=1", "write devices=..."),
        (train, "gpus=1", "write devices=..."),
        (train, "epochs=10", "write trainer.max_epochs=..."),
        (train, "max_steps=10", "write trainer.max_steps=..."),
        (train, "lr_scheduler=cosine", "write learning_rate.decay=..."),
        (train, "precision=16", "write trainer.precision=..."),
        (train, "batch=8", "write batch_size=..."),
        (train, "num_train_timesteps=8", "write timesteps=..."),
        (train, "n=64", "it belongs to sample.py and evaluate.py"),
        (train, "ckpt=last", "it belongs to sample.py, evaluate.py and export.py; here, to go on with a run, resume="),
        (train, "guidance_scale=2", "write guidance=... with sample.py"),
        (train, "num_samples=2", "write n=... with sample.py"),
        (sample, "dataset=fashion", "it belongs to train.py and evaluate.py; here, ckpt=... names a model"),
        (sample, "batch=8", "write batch_size=..."),
        (sample, "checkpoint=last", "write ckpt=..."),
        (sample, "num_inference_steps=50", "write steps=..."),
        (sample, "guidance_scale=2", "write guidance=..."),
        (sample, "lr=1", "it belongs to train.py"),
        (sample, "epochs=1", "write trainer.max_epochs=... with train.py"),
        (evaluate, "label=1", "it belongs to sample.py; here, a class-conditional model is scored on"),
        (evaluate, "guidance=2", "it belongs to sample.py"),
        (evaluate, "num_samples=2", "write n=..."),
        (train, "runs=0", "it belongs to compare.py"),
        (train, "wandb=true", "write logger=..."),
        (compare, "ckpt=0", "write runs=..."),
        (compare, "sampler=ddim", "write samplers=..."),
        (compare, "metrics=fid", "write scores=..."),
        (train, "dataset fashion", "cannot read 'dataset': write dataset=fashion"),
        (train, "dataset: fashion", "cannot read 'dataset:': write dataset=fashion"),
        (train, "dataset==fashion", "cannot read 'dataset==fashion': write dataset=fashion"),
        (train, "dataset:fashion", "cannot read 'dataset:fashion': write dataset=fashion"),
        (train, "--dataset fashion", "there is no option --dataset (did you mean dataset?)"),
        (train, "-dataset=fashion", "there is no option -dataset (did you mean dataset?)"),
        (train, "--epochs 3", "there is no option --epochs: write trainer.max_epochs=..."),
        (train, "--batch-size 3", "there is no option --batch-size (did you mean batch_size?)"),
        (sample, "--dataset=fashion", "there is no option --dataset: it belongs to train.py and evaluate.py"),
    ],
)
def test_a_setting_in_the_wrong_place_gets_its_place(script: Any, arguments: str, said: str, tmp_path: Path) -> None:
    assert_refused(call(script, tmp_path, *arguments.split()), said)
