"""export.py, and its files as checkpoints of the other scripts, by the commands of docs/exchange.md."""

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.pages import blocks
from support.scripts import assert_refused, call

import evaluate
import export
import sample
import train
from diffusion.runs.checkpoints import read

FIXTURES = Path(__file__).parents[1] / "fixtures"
SCRIPTS = {f"{script.__name__}.py": script for script in (train, sample, evaluate, export)}
# Of the page's runs, so that they take seconds.
BRIEF = (
    *("dataset=digits", "network.widths=[8,16]", "network.blocks=1", "timesteps=30", "batch_size=16"),
    *("train_images=64", "trainer.max_steps=2", "val_every=2", "trainer.limit_val_batches=1", "preview_every=0"),
    "accelerator=cpu",
)


def test_the_commands_and_the_code_of_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("diffusers")
    for language, _, text in blocks("docs/exchange.md"):
        if language == "python":
            monkeypatch.chdir(tmp_path)
            exec(compile(text, "docs/exchange.md", "exec"), {})
            continue
        for command in text.strip().splitlines():
            _, script, *arguments = shlex.split(command)
            given = ("dataset", "network", "timest") if "init_from" in command else ("dataset",)
            brief = [word for word in BRIEF if not word.startswith(given)]
            outcome = call(SCRIPTS[script], tmp_path, *arguments, *(brief if script == "train.py" else ()))
            assert outcome.code == 0, outcome.err
    assert {"grid.png", "folder.png", "digits.safetensors", "ddpm-digits"} <= {file.name for file in tmp_path.iterdir()}
    begun = read(tmp_path / "lightning_logs/digits/version_1/checkpoints/last.ckpt").config
    assert begun["network"]["_target_"] == "diffusion.networks.diffusers.DiffusersUNet"
    assert begun["schedule"]["timesteps"] == 30
    # A run of such a network goes back as it came.
    outcome = call(export, tmp_path, "ckpt=last", "out=again")
    assert outcome.code == 0 and outcome.out.strip() == "again"
    # A model from elsewhere becomes one file too.
    assert call(export, tmp_path, "ckpt=again", "out=again.safetensors").code == 0
    assert np.array_equal(drawn(tmp_path, tmp_path / "again"), drawn(tmp_path, tmp_path / "again.safetensors"))


def drawn(folder: Path, ckpt: Path) -> np.ndarray:
    outcome = call(sample, folder, f"ckpt={ckpt}", "n=2", "out=x.npz", "steps=5", "accelerator=cpu")
    assert outcome.code == 0, outcome.err
    return np.load(folder / "x.npz")["arr_0"]


@pytest.mark.parametrize("name", ["digits", "latent"])
def test_a_safetensors_file_draws_to_the_bit_what_its_checkpoint_draws(name: str, tmp_path: Path) -> None:
    outcome = call(export, tmp_path, f"ckpt={FIXTURES / name}.ckpt", "out=model.safetensors")
    assert outcome.code == 0 and "holds the weights ema of step 4" in outcome.err
    wanted = drawn(tmp_path, FIXTURES / f"{name}.ckpt")
    assert np.array_equal(drawn(tmp_path, tmp_path / "model.safetensors"), wanted)


def test_a_run_begins_from_a_safetensors_file(tmp_path: Path) -> None:
    assert call(export, tmp_path, f"ckpt={FIXTURES / 'digits.ckpt'}", "out=model.safetensors").code == 0
    network = ("network.widths=[4]", "network.blocks=1", "network.attention=[]")
    brief = [word for word in BRIEF if not word.startswith("network")]
    outcome = call(train, tmp_path, "init_from=model.safetensors", "lr=1e-12", *network, *brief)
    assert outcome.code == 0, outcome.err
    begun, before = (
        read(tmp_path / "lightning_logs/digits/version_0/checkpoints/last.ckpt"),
        read(FIXTURES / "digits.ckpt"),
    )
    key = "network.conv_in.weight"
    np.testing.assert_allclose(begun.part("denoiser.")[key], before.part("ema.")[key], atol=1e-6)


def test_a_width_is_exported_too(tmp_path: Path) -> None:
    shutil.copy(FIXTURES / "power.ckpt", tmp_path)
    shutil.copytree(FIXTURES / "averages", tmp_path / "averages")
    outcome = call(export, tmp_path, "ckpt=power.ckpt", "out=model.safetensors", "weights=0.1")
    assert outcome.code == 0 and "holds the weights 0.1" in outcome.err


def test_exported_classifiers_steer(tmp_path: Path) -> None:
    assert call(export, tmp_path, f"ckpt={FIXTURES / 'classifier.ckpt'}", "out=c.safetensors").code == 0
    arguments = ("n=2", "out=x.npz", "label=3", "guidance=2", "steps=5", "accelerator=cpu")
    ckpt = f"ckpt={FIXTURES / 'digits.ckpt'}"
    assert call(sample, tmp_path, ckpt, "classifier=c.safetensors", *arguments).code == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("ckpt={digits}", "out=folder"), "train one with network.groups=4"),
        (("ckpt={residual}", "out=folder"), "ResidualDenoiser"),
        (("ckpt={latent}", "out=folder"), ""),
        (("ckpt={classifier}", "out=folder"), "classifier"),
        (("ckpt={digits}", "out=m.safetensors", "weights=best"), "weights must be ema or raw"),
        (("ckpt={digits}", "out=m.safetensors", "weights=0.1"), "ema=power"),
        (("ckpt={digits}", "out=m.bin"), "an export ends in"),
        (("ckpt={digits}", "out=there"), "is there already"),
        (("ckpt={digits}", "out=sub/.safetensors"), "is a suffix alone"),
        (("ckpt={digits}", "out=folder", "dry_run=true"), "without push=user/name"),
    ],
)
def test_what_cannot_be_exported_is_refused_and_leaves_nothing(
    arguments: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine").touch()
    paths = {path.stem: str(path) for path in FIXTURES.glob("*.ckpt")}
    assert_refused(call(export, tmp_path, *(word.format(**paths) for word in arguments)), said)
    assert [file.name for file in tmp_path.iterdir()] == ["there"]


def test_a_file_without_optimizer_resumes_no_run(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    assert call(export, tmp_path, f"ckpt={FIXTURES / 'digits.ckpt'}", "out=checkpoints/last.safetensors").code == 0
    outcome = call(train, tmp_path, "resume=checkpoints/last.safetensors", "accelerator=cpu")
    assert_refused(outcome, "init_from=checkpoints/last.safetensors")


def test_a_dry_run_writes_the_card_and_uploads_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = pytest.importorskip("huggingface_hub")

    def unreachable() -> None:
        raise RuntimeError("no network")

    monkeypatch.setattr(package, "HfApi", unreachable)
    brief = [word for word in BRIEF if not word.startswith("network.w")]
    assert call(train, tmp_path, "network.groups=8", "network.widths=[8,16]", *brief).code == 0
    assert (
        call(sample, tmp_path, "ckpt=last", "n=4", "steps=2", "out=lightning_logs/digits/version_0/samples/a.png").code
        == 0
    )
    scores = {"frechet": {"samples": {"value": 1.25, "low": 1.0, "high": 1.5}}}
    (tmp_path / "lightning_logs/digits/version_0/metrics.json").write_text(
        json.dumps({"scores": scores, "step": 2, "weights": "ema"})
    )
    outcome = call(export, tmp_path, "ckpt=last", "out=folder", "push=me/digits", "dry_run=true")
    assert outcome.code == 0 and "dry_run=true: folder is what push=me/digits would upload" in outcome.err
    text = (tmp_path / "folder" / "README.md").read_text()
    for part in (
        "# me/digits",
        "`LinearSchedule(timesteps=30",
        "| frechet | 1.25 [1, 1.5] | - |",
        "![samples](samples.png)",
    ):
        assert part in text
    assert (tmp_path / "folder" / "samples.png").is_file()
    outcome = call(export, tmp_path, "ckpt=last", "out=kept", "push=me/digits")
    assert outcome.code == 1 and "push=me/digits failed (no network); kept is kept" in outcome.err
    assert_refused(call(export, tmp_path, "ckpt=last", "out=other", "push=digits"), "push=digits must be user/model")
    long = f"push=me/{'a' * 100}"
    assert_refused(call(export, tmp_path, "ckpt=last", "out=other", long), "is no name that the Hub takes")
    known = '{"step": 2, "weights": "ema", "scores": '
    for content in ("{", "[]", known + "[]}", known + '{"a": 3}}', "[" * 100_000):
        (tmp_path / "lightning_logs/digits/version_0/metrics.json").write_text(content)
        assert_refused(call(export, tmp_path, "ckpt=last", "out=other", "push=me/digits"), "metrics.json is ")
    assert_refused(call(export, tmp_path, "ckpt=last", "out=m.safetensors", "push=me/digits"), "push= has no effect")
    assert not (tmp_path / "other").exists() and not (tmp_path / "m.safetensors").exists()


def test_a_network_of_diffusers_is_trained_and_exported(tmp_path: Path) -> None:
    network = (
        *("network=diffusers", "network.block_out_channels=[8,16,16]", "network.layers_per_block=1"),
        *("network.norm_num_groups=4", "network.attn_norm_num_groups=4", "network.attention_head_dim=8"),
        *("network.num_class_embeds=10", "denoiser.variance=learned", "objective=hybrid"),
    )
    brief = [word for word in BRIEF if not word.startswith("network")]
    outcome = call(train, tmp_path, *network, *brief)
    assert outcome.code == 0, outcome.err
    outcome = call(export, tmp_path, "ckpt=last", "out=folder", "push=me/classes", "dry_run=true")
    assert (
        outcome.code == 0
        and "class_labels= from 0 to 9" in outcome.err
        and "draws what sampler=ddim" not in outcome.err
    )
    assert drawn(tmp_path, tmp_path / "folder").shape[0] == 2
    ((*_, code),) = blocks(str(tmp_path / "folder" / "README.md"))
    pytest.importorskip("diffusers")
    names: dict[str, Any] = {}
    exec(compile(code.replace("me/classes", str(tmp_path / "folder")), "README.md", "exec"), names)
    assert names["images"].shape == (10, 1, 8, 8) and names["images"].isfinite().all()


@pytest.mark.slow
def test_a_process_without_this_project_loads_a_folder(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    brief = [word for word in BRIEF if not word.startswith("network.w")]
    assert call(train, tmp_path, "network.groups=8", "network.widths=[8,16]", *brief).code == 0
    assert call(export, tmp_path, "ckpt=last", "out=folder").code == 0
    code = "from diffusers import DDPMPipeline; DDPMPipeline.from_pretrained('folder')(num_inference_steps=30)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
