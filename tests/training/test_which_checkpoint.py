"""Which checkpoint a run goes on from, and which it refuses."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from support.scripts import assert_refused, call

import train
from diffusion.build import ConfigError
from diffusion.runs import resume
from diffusion.runs.checkpoints import Checkpoint, find
from diffusion.runs.places import CheckpointError
from diffusion.settings.following import of_limits


def test_a_file_of_another_program_is_refused(tmp_path: Path) -> None:
    torch.save({"weights": torch.zeros(3)}, tmp_path / "other.ckpt")
    (tmp_path / "text.ckpt").write_text("step,loss\n1,2\n")
    for name in ("other.ckpt", "text.ckpt"):
        for option in ("resume", "init_from"):
            assert_refused(call(train, tmp_path, f"{option}={name}"), name)


def test_a_configuration_that_is_not_whole_cannot_be_resumed(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save({"config": {"dataset": {"name": "digits"}}, "state_dict": {}, "global_step": 1}, folder / "a.ckpt")
    assert_refused(
        call(train, tmp_path, "resume=run/checkpoints/a.ckpt"), "a.ckpt is refused: the configuration has no network"
    )


def test_a_lone_checkpoint_is_not_resumed_in_a_folder_of_other_things(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffusion.runs.checkpoints.check_checkpoint", lambda contents: None)
    torch.save({"config": {"dataset": {"name": "digits"}}, "state_dict": {}, "global_step": 1}, tmp_path / "a.ckpt")
    assert_refused(call(train, tmp_path, "resume=a.ckpt"), "outside of a run folder", "init_from=a.ckpt")
    assert [path.name for path in tmp_path.iterdir()] == ["a.ckpt"]


def test_limits_that_are_typed_replace_those_that_are_not() -> None:
    steps, epochs, time, budget = "trainer.max_steps", "trainer.max_epochs", "trainer.max_time", "budget_minutes"
    assert of_limits({}) == {}
    assert of_limits({steps: 500}) == {epochs: None, time: None, budget: None}
    assert of_limits({epochs: 100}) == {steps: None, time: None, budget: None}
    assert of_limits({budget: 5}) == {steps: None, epochs: None, time: None}
    with pytest.raises(ConfigError, match="budget_minutes and trainer.max_steps both say when to stop"):
        of_limits({steps: 500, budget: 5})


def test_processes_that_another_one_starts_go_on_from_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DIFFUSION_RESUME", raising=False)
    monkeypatch.setattr("diffusion.runs.checkpoints.check_checkpoint", lambda contents: None)
    path = tmp_path / "a.ckpt"
    torch.save({"config": {}, "state_dict": {}, "global_step": 7}, path)
    found = Checkpoint(path, 7, {}, {}, None)
    assert resume.searched_once(lambda: found) == found
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert resume.searched_once(lambda: pytest.fail("the second process must not search")) == found
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert resume.searched_once(lambda: None) is None
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert resume.searched_once(lambda: pytest.fail("the second process must not search")) is None


@pytest.mark.parametrize(
    ("spec", "meant"),
    [
        ("digits", ["lightning_logs/digits/version_2", "lightning_logs/digits/version_10"]),
        ("version_2", ["lightning_logs/digits/version_2"]),
        ("digits/version_2", ["lightning_logs/digits/version_2"]),
        ("digits/2", ["lightning_logs/digits/version_2"]),
        ("lightning_logs/digits/2", ["lightning_logs/digits/version_2"]),
        ("lightning_logs\\digits\\version_2", ["lightning_logs/digits/version_2"]),
        ("lightning_logs/digits/version_7", ["lightning_logs/digits/version_2", "lightning_logs/digits/version_10"]),
        ("lightning_logs/digits/version_2/checkpoints/last", ["lightning_logs/digits/version_2/checkpoints/last.ckpt"]),
        ("mine", ["mine.ckpt"]),
        ("mine.pt", ["mine.ckpt"]),
        ("mine.ckpt ", ["mine.ckpt"]),
        ("latest", ["last"]),
        ("-1", ["last"]),
    ],
)
def test_a_name_that_is_not_quite_a_checkpoint_s_leads_to_one(
    spec: str, meant: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for version in (2, 10):
        folder = Path("lightning_logs/digits", f"version_{version}", "checkpoints")
        folder.mkdir(parents=True)
        (folder / "last.ckpt").touch()
    Path("mine.ckpt").touch()
    with pytest.raises(CheckpointError, match=rf"did you mean {re.escape(' or '.join(meant))}\?$"):
        find(spec)


def test_a_run_is_known_by_its_folder_of_checkpoints_too(tmp_path: Path) -> None:
    folder = tmp_path / "version_0" / "checkpoints"
    folder.mkdir(parents=True)
    shutil.copy(Path(__file__).parents[1] / "fixtures" / "swissroll.ckpt", folder / "last.ckpt")
    assert find(str(folder)).folder == tmp_path / "version_0"


def test_the_page_of_a_run_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "index.html").write_text("<html>")
    with pytest.raises(CheckpointError, match="is a file of a run and no checkpoint: give the run folder"):
        find(str(tmp_path / "index.html"))
