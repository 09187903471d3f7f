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
from choices import choices_of


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
        (train, "log_dir=runs", "there is no setting log_dir of train.py: a run's folder is lightning_logs/"),
        (train, "nodes=2", "write trainer.num_nodes=..."),
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
        (train, "trainer.tpu_cores=8", "write devices=..."),
        (train, "learning_rate=1e-3", "learning_rate=1e-3: write lr=1e-3; "),
        (train, "network.dim_mults=[1,2]", "write network.widths=..."),
        (train, "help", "--help lists all settings"),
        (train, "-help", "--help lists all settings"),
        (train, "--hlep", "--help lists all settings"),
        (train, "lr = 1e-3", "cannot read 'lr': write lr=1e-3, without spaces"),
        (train, "lr =1e-3", "cannot read 'lr': write lr=1e-3, without spaces"),
        (train, "lr= 1e-3", "cannot read 'lr=': write lr=1e-3, without spaces"),
        (train, "lr=1e-3;", "write lr=1e-3, without the ;"),
        (train, "lr=1e-3,", "write lr=1e-3, without the ,"),
        (train, "lr=1e\N{MINUS SIGN}3", "write lr=1e-3, with the hyphens"),
        (train, "\N{EM DASH}lr=3", "write -lr=3, with the hyphens"),
        (sample, "ckpt=\u201ca.ckpt\u201d", 'write ckpt="a.ckpt", with'),
        (train, "fashion", "cannot read 'fashion': write dataset=fashion"),
        (train, "fast_fashion", "cannot read 'fast_fashion': write experiment=fast_fashion"),
        (train, "cifar10", "cannot read 'cifar10': write dataset=cifar"),
        (train, "dataset/fashion", "cannot read 'dataset/fashion': write dataset=fashion"),
        (train, "dataset.fashion", "cannot read 'dataset.fashion': write dataset=fashion"),
        (train, "dataset-fashion", "cannot read 'dataset-fashion': write dataset=fashion"),
        (train, "dataset.name=cifar", "write dataset=cifar for other data"),
        (train, "trainer.val_check_interval=10", "trainer.val_check_interval cannot be set: use val_every=..."),
        (train, "trainer.limit_train_batches=5", "trainer.limit_train_batches cannot be set: training batches have no"),
        (train, "max-steps=3", "write trainer.max_steps=..."),
        (train, "DATASET=fashion", "(did you mean dataset?)"),
        (train, "wandb.project=x", "write project=..."),
        (train, "last", "cannot read 'last': write resume=last"),
        (sample, "last", "cannot read 'last': write ckpt=last"),
        (evaluate, "3", "cannot read '3': write ckpt=3"),
        (compare, ".", "cannot read '.': write runs=."),
        (sample, "label=0,1", "label=0,1 is several values: write [a,b] for a list"),
        (train, "dataset=./photos", "write dataset=folder dataset.path=./photos"),
        (train, "ema=0.999", "write ema=exponential ema_decay=0.999"),
        (train, "network=DiT-S/2", "network=DiT-S/2 does not exist (did you mean dit?)"),
    ],
)
def test_a_setting_in_the_wrong_place_gets_its_place(script: Any, arguments: str, said: str, tmp_path: Path) -> None:
    assert_refused(call(script, tmp_path, *arguments.split()), said)


@pytest.mark.parametrize(("group", "names"), hints.CHOICES.items())
def test_every_foreign_choice_leads_to_a_choice(group: str, names: dict[str, str]) -> None:
    assert set(names.values()) <= set(choices_of(group))
    assert names.keys().isdisjoint(choices_of(group))


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("dataset=CIFAR10", "cifar"),
        ("dataset=MNIST", "mnist"),
        ("dataset=fashion-mnist", "fashion"),
        ("dataset=fmnist", "fashion"),
        ("network=UNet", "unet"),
        ("sampler=DDIM", "ddim"),
        ("sampler=euler_a", "euler_ancestral"),
        ("sampler=DPM++2M", "dpmpp_2m"),
        ("denoiser=v_prediction", "v"),
        ("schedule=scaled_linear", "quadratic"),
        ("schedule=cosine.yaml", "cosine"),
        ("ema=true", "exponential"),
    ],
)
def test_a_choice_of_another_spelling_or_project_is_recognised(typed: str, meant: str, tmp_path: Path) -> None:
    assert_refused(call(train, tmp_path, typed), f"{typed} does not exist (did you mean {meant}?)")


@pytest.mark.parametrize("group", cli.groups_of("train"))
def test_capital_letters_do_not_hide_a_choice(group: str) -> None:
    own = choices_of(group)
    for name in own:
        assert hints.choice(group, name.upper().replace("_", "-"), own) == name


def test_null_is_what_an_optional_group_has_by_default() -> None:
    assert cli.checked(["experiment=null", "dataset=digits"], "train") == ["dataset=digits"]
    assert cli.checked(["experiment=null"], "train") == []
    assert cli.checked([], "train") == [cli.DEMO]


@pytest.mark.parametrize("argument", ["dataset=" + "a" * 300, "a" * 300, "a" * 5000])
def test_a_name_that_no_file_can_have_is_refused_like_any_other(argument: str, tmp_path: Path) -> None:
    assert_refused(call(train, tmp_path, argument), "does not exist" if "=" in argument else "cannot read")
