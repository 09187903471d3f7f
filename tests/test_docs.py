"""The code and commands of the documentation do what the pages say."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^```(\w+)(?: +(\S+))?\n(.*?)^```$", re.M | re.S)


def blocks(page: str) -> list[tuple[str, str, str]]:
    """(language, caption, text) of each fenced block of a page."""
    return BLOCK.findall((ROOT / page).read_text())


def test_extending_page_adds_a_sampler_dataset_network_and_schedule_that_work_together_and_a_notebook(
    tmp_path: Path,
) -> None:
    for name in ("configs", "data", "diffusion"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("raw", "__pycache__"))
    for name in ("cli.py", "train.py", "sample.py"):
        shutil.copy(ROOT / name, tmp_path)
    commands: list[str] = []
    for language, caption, text in blocks("docs/extending.md"):
        if language == "console":
            commands += text.strip().splitlines()
            continue
        file = tmp_path / caption
        before = file.read_text() + "\n\n" if file.exists() else ""
        file.write_text(before + text)
    assert len(commands) == 2
    for command in commands:
        program, *arguments = command.split()
        assert program == "python"
        done = subprocess.run([sys.executable, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "rings.png").stat().st_size > 1000
    assert (tmp_path / "lightning_logs" / "rings" / "version_0" / "checkpoints" / "last.ckpt").exists()

    # The notebook samples from the newest run, which is now this one.
    cells = json.loads((ROOT / "docs" / "sampling.ipynb").read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    code[1] = code[1].splitlines()[0] + "\nassert " + code[1].splitlines()[1] + " < 1 / 127.5"
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(code)], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
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
    import torch

    from diffusion.denoisers import EpsPreconditioner, NetworkDenoiser
    from diffusion.grids import TrailingGrid
    from diffusion.networks.unet import UNet
    from diffusion.noise import Noise
    from diffusion.samplers import DDIMSampler, prior
    from diffusion.schedules import LinearSchedule

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
