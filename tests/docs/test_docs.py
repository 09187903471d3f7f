"""The code and commands of the documentation do what the pages say."""

import importlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.pages import blocks

from diffusion.denoisers import EpsPreconditioner, GaussianMixtureDenoiser, NetworkDenoiser
from diffusion.networks.unet import UNet
from diffusion.noise import Noise
from diffusion.samplers import DDIMSampler, TrailingGrid, prior
from diffusion.schedules import LinearSchedule, VPSchedule

ROOT = Path(__file__).parents[2]


def test_extending_page_adds_one_of_each_kind_of_part_that_work_together_and_a_notebook(
    tmp_path: Path,
) -> None:
    for name in ("configs", "data", "diffusion"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("raw", "__pycache__"))
    for name in ("choices.py", "cli.py", "hints.py", "train.py", "sample.py"):
        shutil.copy(ROOT / name, tmp_path)
    commands: list[str] = []
    notebook: list[str] = []
    for language, caption, text in blocks("docs/extending.md"):
        if language == "console":
            commands += text.strip().splitlines()
            continue
        if not caption:
            notebook.append(text)
            continue
        file = tmp_path / caption
        before = file.read_text() + "\n\n" if file.exists() else ""
        file.write_text(before + text)
    assert [command.split()[:2] for command in commands] == [
        *(["python", "train.py"], ["python", "train.py"], ["python", "sample.py"])
    ]

    # The notebook samples from the newest run, which is then this one.
    cells = json.loads((ROOT / "docs" / "sampling.ipynb").read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    alone, difference = code[2].splitlines()
    code[2] = f"{alone}\nassert {difference} < 1 / 127.5"
    # One process for all three, which imports torch once.
    scripts = (
        f"sys.argv = {command.split()[1:]!r}; runpy.run_path(sys.argv[0], run_name='__main__')" for command in commands
    )
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "\n".join(("import runpy, sys", *scripts, *notebook, "assert points.shape == (100, 2)", *code)),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "rings.png").stat().st_size > 1000
    assert (tmp_path / "lightning_logs" / "rings" / "version_1" / "checkpoints" / "last.ckpt").exists()
    assert (tmp_path / "predicted.gif").exists()


@pytest.mark.parametrize("page", ["README.md", *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").glob("*.md"))])
def test_links_and_pictures_of_a_page_exist_and_are_small(page: str) -> None:
    text = (ROOT / page).read_text()
    targets = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)|src=\"([^\"]+)\"", text)
    for first, second in targets:
        target = first or second
        if "://" in target:
            continue
        file = (ROOT / page).parent / target
        assert file.exists(), f"{page} links to {target}, which does not exist"
        assert file.is_dir() or file.stat().st_size < 1_000_000, f"{target} is over 1 MB"


def test_architecture_page_code_runs() -> None:
    (code,) = [text for language, _, text in blocks("docs/architecture.md") if language == "python"]
    namespace = {
        "EpsPreconditioner": EpsPreconditioner,
        "NetworkDenoiser": NetworkDenoiser,
        "UNet": UNet,
        "Noise": Noise,
        "DDIMSampler": DDIMSampler,
        "TrailingGrid": TrailingGrid,
        "prior": prior,
        "LinearSchedule": LinearSchedule,
        "torch": torch,
    }
    exec(code, namespace)
    images = namespace["images"]
    assert isinstance(images, torch.Tensor)
    assert images.shape == (4, 1, 8, 8)
    assert images.isfinite().all()


# --- the pages on the theory ------------------------------------------------------------------------------------------

THEORY = ("forward", "reverse", "elbo", "score", "samplers")


def stretches(lines: list[str]) -> list[list[str]]:
    """Lines without indentation and blank ones, cut where a line is an ellipsis."""
    found: list[list[str]] = [[]]
    for line in filter(None, map(str.strip, lines)):
        if line == "...":
            found.append([])
        else:
            found[-1].append(line)
    return found


# Pages whose code needs what their commands make have tests of their own.
OWN_TESTS = ("architecture", "extending", "exchange")
PAGES = [path.stem for path in sorted((ROOT / "docs").glob("*.md")) if path.stem not in OWN_TESTS]


@pytest.mark.parametrize("page", PAGES)
def test_code_of_a_page_runs_or_is_quoted_from_the_file_that_it_names(page: str) -> None:
    namespace: dict[str, object] = {}
    pythons = [text for language, _, text in blocks(f"docs/{page}.md") if language == "python"]
    if page in THEORY:
        assert any(text.startswith("# ") for text in pythons) and any("assert" in text for text in pythons)
    for text in pythons:
        quoted = re.match(r"# (\S+\.py)\n", text)
        if not quoted:
            exec(text, namespace)
            continue
        (source,) = stretches((ROOT / quoted[1]).read_text().splitlines())
        at = 0
        for stretch in stretches(text.splitlines()[1:]):
            places = [i for i in range(at, len(source)) if source[i : i + len(stretch)] == stretch]
            assert places, f"docs/{page}.md quotes what is not in {quoted[1]}:\n" + "\n".join(stretch)
            at = places[0] + len(stretch)


@pytest.mark.parametrize("page", PAGES)
def test_tests_that_a_page_names_exist(page: str) -> None:
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / f"{page}.md").read_text()))
    assert len(named) >= (4 if page in THEORY else 0)
    assert {name for name in named if f"def {name}(" not in tests} == set()


DRAWN_SLOWLY = ("forward", "score", "samplers")
PICTURES = sorted(path.name for path in (ROOT / "docs" / "images").iterdir())


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_small_and_on_a_page_that_shows_the_command_that_makes_it(name: str) -> None:
    assert (ROOT / "docs" / "images" / name).stat().st_size < 1_000_000
    pages = [path.read_text() for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))]
    scripts = "|".join({name.split("_")[0].removesuffix(".png"), "model"})
    drawn = rf"python docs/pictures/({scripts})\.py|python sample\.py .*out=docs/images/{name}"
    drawn += rf"|python benchmarks/{Path(name).stem}\.py"
    command = rf"{drawn}|python compare\.py .*out=" if name.startswith("compare") else drawn
    assert any(f"images/{name}" in page and re.search(command, page) for page in pages)


@pytest.mark.parametrize("page", ["reverse", *(pytest.param(x, marks=pytest.mark.slow) for x in DRAWN_SLOWLY)])
def test_a_script_draws_the_pictures_of_its_page(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs" / "pictures")
    importlib.import_module(page).main(tmp_path)
    shown = re.findall(rf"\(images/({page}\S+)\)", (ROOT / "docs" / f"{page}.md").read_text())
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(shown)


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "docs" / "pictures").glob("*.py")))
def test_every_script_can_be_run_and_says_how_or_is_shared_by_those(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs" / "pictures")
    script = importlib.import_module(name)
    assert name == "style" or f"python docs/pictures/{name}.py" in (script.__doc__ or "")


def test_the_bounds_terms_are_drawn_for_any_discrete_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs" / "pictures")
    x0 = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(3, 4)
    model = GaussianMixtureDenoiser(LinearSchedule(50), x0, 0.1 * torch.eye(4, dtype=torch.float64).expand(3, 4, 4))
    figure = importlib.import_module("elbo").picture(model, x0)
    importlib.import_module("style").save(figure, tmp_path, "elbo_terms.png")
    assert (tmp_path / "elbo_terms.png").stat().st_size > 10_000
    with pytest.raises(ValueError, match="discrete"):
        importlib.import_module("elbo").picture(GaussianMixtureDenoiser(VPSchedule(), x0, torch.zeros(3, 4, 4)), x0)
