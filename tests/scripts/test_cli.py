"""What the command line says: the help page, and one clear line for everything that is not known."""

import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.configs import resolved
from support.processes import restore_signals
from support.scripts import assert_refused, call

import cli
import evaluate
import sample
import train

ROOT = Path(__file__).parents[2]


def start(folder: Path, *command: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=restore_signals,
    )


@pytest.mark.parametrize("script", [train, sample, evaluate])
def test_help_names_every_group_choice_and_setting_with_its_comment(script: Any, tmp_path: Path) -> None:
    page = call(script, tmp_path, "--help")
    assert page.code == 0
    assert page.err == ""
    text = (cli.CONFIGS / f"{script.__name__}.yaml").read_text()
    for group in cli.groups_of(script.__name__):
        for name in cli.choices_of(group):
            assert f" {name}" in page.out
    settings = yaml.safe_load(text)
    chosen = {next(iter(entry)) for entry in settings["defaults"] if isinstance(entry, dict)}
    groups = {name.removeprefix("optional ").replace("/", ".") for name in chosen if not name.startswith("override")}
    assert groups == set(cli.groups_of(script.__name__))
    for name in settings:
        assert name in ("defaults", "hydra") or f"  {name}:" in page.out
    for line in text.partition("\n\n")[2].partition("\nhydra:")[0].splitlines():
        assert " ".join(line.partition(" # ")[2].split()) in " ".join(page.out.split())
    assert page.out.count(f"python {script.__name__}.py ") >= 5
    assert max(map(len, page.out.splitlines())) <= 120


def test_help_does_not_wait_for_torch_or_hydra(tmp_path: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); sys.argv = ['train.py', '--help']; "
        f"import train; train.entry(); "
        f"sys.exit(3 if {{'torch', 'hydra', 'omegaconf'}} & set(sys.modules) else 0)"
    )
    process = start(tmp_path, "-c", code)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "python train.py" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["dataset=cifa"], ["dataset=cifa does not exist (did you mean cifar?)", "digits", "swissroll"]),
        (["datset=cifar"], ["no setting datset (did you mean dataset?)"]),
        (["sampler=ddmi"], ["sampler=ddmi", "ddim", "heun"]),
        (
            ["network=unett"],
            [
                "network=unett does not exist (did you mean unet?); the choices are autoencoder, diffusers, dit, ",
                "dit_mini, dit_tiny, encoder, heads, mlp, tutorial, unet",
            ],
        ),
        (["experiment=fast_fasion"], ["did you mean fast_fashion?"]),
        (["lerning_rate.decay=linear"], ["did you mean learning_rate.decay?"]),
        (["optimizer.foo=1"], ["optimizer.foo", "optimizer can have lr, betas, weight_decay"]),
        (["trainer.foo=1"], ["trainer.foo", "max_steps"]),
        (["max_steps=5"], ["write trainer.max_steps=..."]),
        (["dataset.path=photos"], ["it is a setting of dataset=folder, dataset=huggingface; choose one"]),
        (["epoch=3"], ["write trainer.max_epochs=..."]),
        (["network=tutorial", "network.widths=[8]"], ["network.widths does not belong to the network that is chosen"]),
        (["--foo"], ["no option --foo"]),
        (["--lr=1"], ["no option --lr (did you mean lr?)"]),
        (["["], ["cannot read '['"]),
        (["lr"], ["cannot read 'lr': write lr=..."]),
        (["=3"], ["cannot read '=3'"]),
        (["~lr"], ["cannot read '~lr'"]),
        (["dataset="], ["dataset= does not exist", "digits"]),
        (["dataset=null"], ["dataset=null: a group is chosen by one name"]),
        (["sampler=ddim,ddpm"], ["sampler=ddim,ddpm is several values: add --multirun"]),
        (["lr=${nothing}"], ["'nothing' not found"]),
        (["-m", "dataset=foo,digits"], ["dataset=foo does not exist"]),
    ],
)
def test_a_name_that_does_not_exist_gets_one_line_with_the_choices(
    arguments: list[str], said: list[str], tmp_path: Path
) -> None:
    assert_refused(call(train, tmp_path, *arguments), *said)
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_a_loader_process_is_its_own_text_alone() -> None:
    error = ValueError(
        "Caught ValueError in DataLoader worker process 0.\nTraceback:\n  File x\nValueError: a.png: torn\n"
    )
    assert cli.one_line(error) == "a.png: torn"
    assert cli.one_line(OSError("two\n  lines")) == "two lines"
    assert cli.one_line(ValueError()) == "ValueError"


def test_a_message_cannot_steer_the_terminal_nor_flood_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.fail("it has the weights \x1b]0;title\x07\r\x9b2Jü\udcff")
    assert capsys.readouterr().err == "error: it has the weights \\x1b]0;title\\x07\\r\\x9b2Jü\\udcff\n"
    with pytest.raises(SystemExit):
        cli.fail(f"value is {'1, ' * 100_000}: give one number")
    said = capsys.readouterr().err
    assert len(said) < 2100
    assert said.startswith("error: value is 1, ")
    assert said.endswith(": give one number\n")


def scripted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: BaseException) -> Any:
    """`python train.py` where the work raises this."""

    def fails(config: object) -> None:
        raise error

    monkeypatch.setattr(train, "main", fails)
    return call(train, tmp_path)


@pytest.mark.parametrize("error", [ValueError("a\nb"), OSError("a b"), FloatingPointError("a b")])
def test_what_the_user_can_mend_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: BaseException
) -> None:
    assert_refused(scripted(monkeypatch, tmp_path, error), "error: a b")


@pytest.mark.parametrize("error", [TypeError("bug"), AssertionError("bug"), KeyError("bug")])
def test_a_mistake_in_the_program_keeps_its_traceback(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: BaseException
) -> None:
    with pytest.raises(type(error)):
        scripted(monkeypatch, tmp_path, error)


def test_a_python_without_the_packages_is_one_line_that_says_how_to_have_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "hydra", None)
    assert_refused(call(sample, tmp_path, "ckpt=last"), "no package hydra", ". .venv/bin/activate", "requirements.txt")


def test_full_errors_show_every_traceback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(ValueError, match="mine"):
        scripted(monkeypatch, tmp_path, ValueError("mine"))


def test_the_environment_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    seen = []
    monkeypatch.setattr(train, "main", lambda config: seen.append(os.environ.get("HYDRA_FULL_ERROR")))
    assert call(train, tmp_path).code == 0
    assert seen == [None]
    assert "HYDRA_FULL_ERROR" not in os.environ


def test_ctrl_c_is_exit_status_130(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    outcome = scripted(monkeypatch, tmp_path, KeyboardInterrupt())
    assert (outcome.code, outcome.err) == (130, "interrupted\n")


def test_warnings_are_one_line_without_a_place_in_the_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    call(train, tmp_path, "--help")
    assert warnings.formatwarning("skipped a.png", UserWarning, "x.py", 3) == "warning: skipped a.png\n"


def test_the_shell_sees_exit_status_1_for_a_refusal(tmp_path: Path) -> None:
    process = start(tmp_path, str(ROOT / "train.py"), "dataset=cifa")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert out == ""
    assert err.startswith("error: dataset=cifa does not exist")
    assert err.count("\n") == 1


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_the_shell_sees_exit_status_130_for_ctrl_c_before_training(tmp_path: Path) -> None:
    (tmp_path / "begun.py").write_text(
        f"import sys, time; sys.path.insert(0, {str(ROOT)!r}); sys.argv = ['train.py']; import train\n"
        "def wait(config):\n    print('begun', flush=True)\n    time.sleep(60)\n"
        "train.main = wait\ntrain.entry()\n"
    )
    process = start(tmp_path, "begun.py")
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == "interrupted\n"


@pytest.mark.parametrize(
    "path",
    [
        *(
            "a.png",
            "my photos/x.gif",
            "\u0424\u043e\u0442\u043e",
            "a=b/c.ckpt",
            "it's.png",
            'say "hi".png',
            "C:\\photos\\",
            "x (1).png",
        ),
        *("caf\udce9.png", "a{b}.png", "100%.png", "a,b.png", "!#$&;.png"),
    ],
)
def test_a_path_needs_no_quotes_of_its_own(path: str) -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    (override,) = OverridesParser.create().parse_overrides([cli.plain_path(f"init={path}")])
    if "," in path:
        assert override.is_sweep_override()  # several values are for --multirun
    else:
        assert override.value() == path


def test_the_home_folder_is_expanded_in_paths_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert cli.plain_path("init=~/a.png") == "init=/home/me/a.png"
    assert cli.plain_path("out=~/my photos") == 'out="/home/me/my photos"'
    assert cli.plain_path("guide=~/run") == "guide=/home/me/run"
    for argument in ("ckpt=[base,sr]", "ckpt=3", "init='a b'", 'out="a b"', "samples=${out}", "weights=~/x", "resume="):
        assert cli.plain_path(argument) == argument


# Refused before torch is imported, which takes seconds; and what the line says.
EARLY = {
    "train": (
        ("batch_size=0", "batch_size must be at least 1, got 0"),
        ("lr=-1", "lr must be positive, got -1"),
        ("lr=fast", "lr must be a number, got 'fast'"),
        ("seed=1.5", "seed must be a whole number, got 1.5"),
        ("accelerator=tpu", "accelerator must be auto, cpu, gpu, cuda or mps"),
        ("trainer.max_steps=-3", "trainer.max_steps must be a whole number of at least 1"),
        ("trainer.precision=8", "trainer.precision must be"),
        ("learning_rate=[]", "learning_rate has settings of its own"),
        ("dataset.recipe=3", "dataset.recipe has settings of its own"),
        ("budget_minutes=inf", "budget_minutes must be positive and finite"),
        ("budget_minutes=nan", "budget_minutes must be positive and finite"),
        ("dataset.shape={}", "is of another kind than the values of this setting"),
        ("+trainer.logger=true", "trainer.logger cannot be set"),
        ("network=x", "network=x does not exist"),
        ("dataset=digits network.widths=32", "network.widths must be a list ([a,b,...]), each item a whole number"),
        ("optimizer.lr=inf", "optimizer.lr must be a finite number, got inf"),
        ("schedule=linear schedule.beta_end=nan", "schedule.beta_end must be a finite number, got nan"),
        ("dataset=digits denoiser=edm denoiser.precond.sigma_data=x", "denoiser.precond.sigma_data must be a number"),
        ("batchsize=3", "there is no setting batchsize"),
        ("epochs=10", "trainer.max_epochs"),
        ("dataset fashion", "write dataset=fashion"),
        ("devices=0", "devices must be at least 1, got 0"),
        ("lr=${foo}", "lr=${foo}: Interpolation key 'foo' not found; write a value, or ${name} with a setting"),
        ("resume=nowhere", "there is no checkpoint nowhere"),
        (f"resume={'x' * 300}", "xxx...: File name too long"),
        ("init_from=last", "there is no run with a checkpoint"),
        ("dataset=folder dataset.path=nowhere", "nowhere: no such folder"),
        ("experiment=fast_folder", "dataset=folder needs dataset.path="),
    ),
    "sample": (
        ("", "ckpt= is missing"),
        ("ckpt=last n=0", "n must be at least 1, got 0"),
        ("ckpt=last fps=900", "fps must be above 0"),
        ("ckpt=last out=x.mp4", "out=x.mp4 ends in .mp4, which is not known"),
        ("ckpt=last out=-", "out=- would be the standard output"),
        ("ckpt=last t_start=0.5", "t_start=0.5 needs an image"),
        ("ckpt=last guidance=inf", "guidance must be a finite number"),
        ("ckpt=last sampler=x", "sampler=x does not exist"),
        ("ckpt=last devices=all", "devices must be auto, a number, or a list of GPU indices"),
        ("ckpt=last", "there is no run with a checkpoint"),
        ("ckpt=[nowhere,last]", "there is no checkpoint nowhere"),
        ("ckpt=x.ckpt guide=77 guidance=2", "there is no run version_77"),
        ("ckpt=x.ckpt guidance=2 guidance_interval=[nan,3]", "guidance_interval must be two rising levels"),
        ("ckpt=x.ckpt guidance=2 guidance_rescale=nan", "guidance_rescale must lie in [0, 1]"),
        ("ckpt=x.ckpt grid=karras grid.rho=nan", "grid.rho must be a finite number, got nan"),
        ("ckpt=x.ckpt clip=dynamik", "clip must be true, false or dynamic"),
        ("ckpt=x.ckpt interpolate=[1,2] frames=1", "frames=1: interpolate= draws at least 2"),
        ("ckpt=x.ckpt init=nope.png t_start=0.5", "init=nope.png cannot be read as an image: No such file"),
        ("ckpt=x.ckpt interpolate=[1,nope.png]", "interpolate=nope.png cannot be read as an image"),
        ("ckpt=x.ckpt condition=nope", "condition=nope cannot be read as an image: No such file"),
        ("ckpt=x.ckpt embedding=nope.npy", "embedding=nope.npy cannot be read as .npy"),
    ),
    "evaluate": (
        ("", "ckpt= is missing"),
        ("samples=x.npz", "dataset= is missing"),
        ("ckpt=last n=1", "n must be at least 2"),
        ("ckpt=last likelihood=x", "likelihood must be null or vlb or ode"),
        ("ckpt=last tolerance=1e-3", "tolerance= is of likelihood=ode"),
        ("ckpt=3", "there is no run version_3"),
    ),
}


@pytest.mark.parametrize("script", EARLY)
def test_a_wrong_value_is_refused_before_torch_is_imported(script: str, tmp_path: Path) -> None:
    (tmp_path / "x.ckpt").touch()
    # A module that is None in sys.modules cannot be imported.
    program = f"""
import sys
sys.modules["torch"] = None
from hydra._internal.hydra import Hydra
from support.composing import read_once
read_once()
Hydra.get_mode = lambda *_, **__: None
import {script}
for line in {[line for line, _ in EARLY[script]]!r}:
    sys.argv = ["{script}.py", *([line] if " " in line and "=" not in line else line.split())]
    try:
        {script}.entry()
    except SystemExit as stop:
        assert stop.code == 1, line
"""
    ran = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests")))},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    lines = ran.stderr.splitlines()
    assert len(lines) == len(EARLY[script]), ran.stderr
    for line, (_, said) in zip(lines, EARLY[script], strict=True):
        assert line.startswith("error: "), line
        assert said in line


@pytest.mark.parametrize(
    ("typed", "demo"),
    [
        ("", True),
        ("seed=1 trainer.max_steps=50", True),
        ("resume=auto", True),
        ("-m lr=1e-3,2e-3", True),
        ("dataset=digits", False),
        ("schedule=cosine", False),
        ("network=dit_mini", False),
        ("dataset.condition=lowres", False),
        ("resume=last", False),
    ],
)
def test_train_without_a_group_and_without_a_run_is_the_demo(typed: str, demo: bool) -> None:
    assert (cli.DEMO in cli.checked(typed.split(), "train")) == demo
    assert cli.DEMO not in cli.checked(["ckpt=last"], "sample")


def test_no_choice_can_be_typed_where_the_default_is_none() -> None:
    assert cli.checked(["ckpt=last", "sampler=null", "wrapper=null"], "sample") == ["ckpt=last"]
    assert cli.checked(["ckpt=last", "dataset=null", "grid=null"], "evaluate") == ["ckpt=last"]
    for typed in (["-m", "dataset.condition=null,lowres"], ["-m", "experiment=demo,null"]):
        with pytest.raises(SystemExit):
            cli.checked(typed, "train")
    assert cli.checked(["dataset=digits", "dataset.condition=null"], "train") == [
        "dataset=digits", "++dataset.condition=null"
    ]  # fmt: skip
    assert (
        resolved("experiment=cascade_sr", "dataset=digits", "++dataset.condition=null")["dataset"]["condition"] is None
    )
    assert resolved("dataset=digits", "++dataset.condition=null")["dataset"]["condition"] is None
