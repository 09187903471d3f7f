"""What pip installs: one package with everything in it, by names that hide nobody's own modules."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest
from support.scripts import TINY

import lightning_diffusion
import setup

ROOT = Path(__file__).parents[2]
SOURCES = [path for top in ("diffusion", "data") for path in sorted((ROOT / top).rglob("*.py"))]
SCRIPTS = [ROOT / f"{name}.py" for name in setup.SCRIPTS]


def test_every_package_of_the_checkout_is_in_the_distribution_and_nothing_beside_diffusion() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    own = {".".join(path.parent.relative_to(ROOT).parts) for path in ROOT.glob("diffusion/**/__init__.py")}
    theirs = {f"diffusion.{'.'.join(path.parent.relative_to(ROOT).parts)}" for path in ROOT.glob("data/**/__init__.py")}
    assert set(settings["packages"]) == own | theirs | {"diffusion.configs"}
    assert "py-modules" not in settings


def test_every_module_imports_by_the_names_of_the_distribution() -> None:
    for path in [*SOURCES, *SCRIPTS]:
        setup.check_imports(setup.installed(path.read_text(encoding="utf-8")), path.name)


def test_no_script_has_the_name_of_a_module_of_diffusion() -> None:
    assert not {path.stem for path in SCRIPTS} & {path.stem for path in (ROOT / "diffusion").iterdir()}


@pytest.mark.parametrize(
    ("text", "installed"),
    [
        ("from data.stream import Stream\n", "from diffusion.data.stream import Stream\n"),
        ("    from data import changes\n", "    from diffusion.data import changes\n"),
        ("import cli\n", "from diffusion import cli\n"),
        ("import datetime\nfrom dataclasses import field\n", "import datetime\nfrom dataclasses import field\n"),
        ("estimates all from data (n, d)", "estimates all from data (n, d)"),
        ("go on with: python train.py resume=last", "go on with: lightning-diffusion train resume=last"),
        ("as sample.py writes it", "as lightning-diffusion sample writes it"),
        ("run python -m data.prepare dataset=cifar", "run lightning-diffusion prepare dataset=cifar"),
        ("python -m diffusion.samplers", "python -m diffusion.samplers"),
        ("benchmarks/train.py", "benchmarks/train.py"),
        ("_target_: data.toy.Toy2d", "_target_: data.toy.Toy2d"),
    ],
)
def test_names_of_the_checkout_become_those_of_the_distribution(text: str, installed: str) -> None:
    assert setup.installed(text) == installed


@pytest.mark.parametrize("code", ["import data.stream\n", "import os, cli\n", "import data as d\n"])
def test_an_import_that_would_keep_the_checkouts_name_ends_the_build(code: str) -> None:
    with pytest.raises(ValueError, match=r"x\.py imports"):
        setup.check_imports(setup.installed(code), "x.py")


def test_every_script_is_a_command_with_its_first_line_in_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    scripts = {path.stem for path in SCRIPTS if "cli.run(" in path.read_text(encoding="utf-8") and path.stem != "cli"}
    assert scripts <= set(lightning_diffusion.COMMANDS)
    print(lightning_diffusion.help_page())
    page = capsys.readouterr().out
    for command in lightning_diffusion.COMMANDS:
        assert f"\n  {command} " in page
    assert "Trains a diffusion model." in page


def test_an_unknown_command_is_refused_with_those_that_there_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["lightning-diffusion", "trian", "seed=1"])
    with pytest.raises(SystemExit) as ended:
        lightning_diffusion.main()
    assert ended.value.code == 1
    assert capsys.readouterr().err.startswith("error: there is no command 'trian'; the commands are train, sample,")


def run(*command: str | Path, cwd: Path) -> str:
    """What a command prints; it must succeed."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty environment with the wheel in it; the packages that it needs are those of the tests' environment."""
    folder = tmp_path_factory.mktemp("installed")
    pip = (sys.executable, "-m", "pip", "-q", "--disable-pip-version-check")
    checkout = folder / "checkout"  # a copy, since a build leaves folders where it is run
    checkout.mkdir()
    for name in ("README.md", "LICENSE", "pyproject.toml", "setup.py", *(path.name for path in SCRIPTS)):
        shutil.copy(ROOT / name, checkout)
    for name in ("configs", "data", "diffusion"):
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__", "raw"))
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", folder, checkout, cwd=folder)
    run(sys.executable, "-m", "venv", "--without-pip", "env", cwd=folder)
    python = folder / "env" / "bin" / "python"
    (wheel,) = folder.glob("*.whl")
    run(*pip, "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=folder)
    place = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    assert sorted(path.name for path in place.iterdir() if path.suffix != ".dist-info") == ["diffusion"]
    (place / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return python


@pytest.mark.slow
def test_the_wheel_trains_and_samples_in_a_folder_with_modules_of_the_same_names(
    environment: Path, tmp_path: Path
) -> None:
    for name in ("data", "train", "sample", "choices", "cli", "hints", "configs"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('the user has a module of this name')\n")
    command = environment.parent / "lightning-diffusion"
    said = run(command, "train", *TINY, cwd=tmp_path)
    assert "lightning-diffusion sample ckpt=lightning_logs/digits/version_0" in said
    run(command, "sample", "ckpt=last", "n=2", "out=here.png", cwd=tmp_path)
    assert run(command, "samplers", cwd=tmp_path).count("arXiv") > 10
    assert "1,437 train" in run(command, "prepare", "dataset=digits", cwd=tmp_path)
    assert "lightning-diffusion train dataset=cifar" in run(command, "train", "--help", cwd=tmp_path)
    # The checkout draws the same images from the checkpoint of the wheel, and the wheel from those of the checkout.
    run_folder = tmp_path / "lightning_logs" / "digits" / "version_0"
    run(sys.executable, ROOT / "sample.py", f"ckpt={run_folder}", "n=2", "out=there.png", cwd=tmp_path.parent)
    assert (tmp_path.parent / "there.png").read_bytes() == (tmp_path / "here.png").read_bytes()
    run(command, "sample", f"ckpt={ROOT / 'tests/fixtures/digits.ckpt'}", "n=2", "steps=2", "out=old.png", cwd=tmp_path)


@pytest.mark.slow
def test_the_wheel_trains_on_two_devices(environment: Path, tmp_path: Path) -> None:
    run(environment.parent / "lightning-diffusion", "train", *TINY, "devices=2", "accelerator=cpu", cwd=tmp_path)
    assert (tmp_path / "lightning_logs" / "digits" / "version_0" / "checkpoints" / "last.ckpt").is_file()


@pytest.mark.slow
def test_an_import_of_the_wheel_takes_no_name_but_its_own(environment: Path, tmp_path: Path) -> None:
    code = "import sys; from diffusion.sampling import Pipeline; print(*{name.split('.')[0] for name in sys.modules})"
    names = set(run(environment, "-c", code, cwd=tmp_path).split())
    assert "diffusion" in names
    assert not names & set(setup.TOP)
