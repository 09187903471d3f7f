"""What the README promises besides its commands and links."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from support.pages import blocks

from diffusion.denoisers import GaussianMixtureDenoiser
from diffusion.samplers import DDIMSampler, TrailingGrid
from diffusion.samplers.trial import far_off
from diffusion.schedules import VPSchedule

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
NOTEBOOK, SAMPLER = (text for language, _, text in blocks("README.md") if language == "python")


def test_it_is_read_in_one_sitting() -> None:
    assert len(TEXT.encode()) <= 7000


def test_its_sampler_is_the_ten_lines_that_it_says_and_draws_what_ddim_draws() -> None:
    namespace: dict[str, object] = {}
    exec(SAMPLER, namespace)
    lines = SAMPLER.partition("class ")[2].split('"""')[2].strip().splitlines()
    assert len(lines) <= 10
    made = namespace["Mine"]()  # type: ignore[operator]
    model = GaussianMixtureDenoiser(VPSchedule(), torch.zeros(1, 2), torch.eye(2)[None])
    times, x = TrailingGrid()(model.schedule, 8), torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(made.sample(model, x, times), DDIMSampler().sample(model, x, times))
    assert far_off(made, model.schedule, times.double()) is None  # sample.py asks this before it draws


def test_its_lines_for_a_notebook_draw_from_the_newest_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = tmp_path / "lightning_logs" / "digits" / "version_0" / "checkpoints"
    checkpoints.mkdir(parents=True)
    shutil.copy(ROOT / "tests" / "fixtures" / "digits.ckpt", checkpoints / "last.ckpt")
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, torch.Tensor] = {}
    exec(NOTEBOOK, namespace)
    assert namespace["images"].shape == (16, 1, 8, 8)


def test_its_tree_names_what_exists() -> None:
    (tree,) = [text for language, _, text in blocks("README.md") if language == "text" and "train.py" in text]
    names = [name for line in tree.splitlines() for name in re.split(r" {2,}", line)[0].split()]
    assert names and all((ROOT / name).exists() for name in names)
    assert len(tree.splitlines()) <= 10
