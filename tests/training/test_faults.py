"""Faults that end a run: each says why in one line and leaves the previous checkpoint whole."""

import errno
import io
import os
import pickle
import random
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from support import kills as kills
from support.processes import TINY, TRAIN, Run, checkpoint, error_line, logged_steps, run_folder, train

from diffusion.build import ConfigError
from diffusion.runs.archive import stated_step
from diffusion.runs.checkpoints import find, newest_good, read
from diffusion.runs.models import build_model
from diffusion.runs.places import CheckpointError
from diffusion.runs.resume import find_named
from diffusion.training.logger import RunLogger
from diffusion.training.saving import AtomicCheckpointIO, write_checkpoint

SHORT = [*TINY, "trainer.max_steps=7", "preview_every=0", "val_every=100"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of four steps with `best.ckpt` and `last.ckpt`."""
    folder = tmp_path_factory.mktemp("trained")
    train(folder, *TINY, "trainer.max_steps=4", "preview_every=0")
    return run_folder(folder)


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may spoil."""
    return Path(shutil.copytree(trained, tmp_path / "lightning_logs" / "digits" / "version_0"))


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in (run_folder(folder) / "checkpoints").iterdir())


def all_finite(contents: dict[str, Any]) -> bool:
    return all(bool(value.isfinite().all()) for value in contents["state_dict"].values())


@pytest.mark.slow
def test_second_ctrl_c_quits_unsaved(tmp_path: Path) -> None:
    run = Run(tmp_path, *SHORT, before=kills.ctrl_c_twice)
    assert run.wait() == 130
    assert checkpoint(tmp_path)["global_step"] == 3
    assert "Traceback" not in run.text()
    assert run.text().strip().splitlines()[-1] == "interrupted"


def test_full_disk(tmp_path: Path) -> None:
    line = error_line(Run(tmp_path, *SHORT, before=kills.full_disk))
    assert line.startswith(f"cannot write the checkpoint {run_folder(Path())}/checkpoints/last.ckpt: ")
    assert "the previous one is untouched" in line
    assert files(tmp_path) == ["last.ckpt"]
    assert checkpoint(tmp_path)["global_step"] == 3
    train(tmp_path, "resume=last")
    assert checkpoint(tmp_path)["global_step"] == 7


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("where", ["torch.save", "os.fsync", "os.replace"])
def test_a_failed_write_leaves_the_old_file(
    number: int, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"step": 1}, path)

    def fail(*args: Any) -> None:
        raise OSError(number, "no luck")

    monkeypatch.setattr(where, fail)
    with pytest.raises(CheckpointError, match=r"cannot write the checkpoint .*no luck; the previous one is untouched"):
        AtomicCheckpointIO().save_checkpoint({"step": 2}, path)
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]
    assert torch.load(path, weights_only=True) == {"step": 1}


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"cannot write the checkpoint .*file/last\.ckpt"):
        write_checkpoint(tmp_path / "file" / "last.ckpt", lambda file: file.write(b"x"))


def test_full_disk_while_logging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = RunLogger(tmp_path)
    logger.log_metrics({"train/loss": 1.0}, step=1)
    monkeypatch.setattr(Path, "open", lambda *args, **kwargs: (_ for _ in ()).throw(OSError(errno.ENOSPC, "disk full")))
    with pytest.raises(OSError, match=r"cannot write .*metrics\.csv: disk full; free some space"):
        logger.log_metrics({"train/loss": 1.0}, step=2)


def test_a_row_cut_off_by_a_kill_is_dropped(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("step,train/loss\n1,0.5\n2,0.25\n1")
    RunLogger(tmp_path, resumed_from=2)
    assert (tmp_path / "metrics.csv").read_text().split() == ["step,train/loss", "1,0.5", "2,0.25"]


def test_nan_is_named_and_never_saved(tmp_path: Path) -> None:
    line = error_line(Run(tmp_path, *SHORT, "log_every=50", before=kills.poisoned))
    assert line.startswith("the gradient is not finite at step 6: training stopped")
    assert files(tmp_path) == ["last.ckpt"]
    assert checkpoint(tmp_path)["global_step"] == 3
    assert all_finite(checkpoint(tmp_path))


def test_a_learning_rate_that_explodes(tmp_path: Path) -> None:
    line = error_line(Run(tmp_path, *SHORT, "lr=1e30", "learning_rate.warmup_images=0", "checkpoint_every=1"))
    assert "not finite at step" in line
    if (run_folder(tmp_path) / "checkpoints").exists():
        assert all_finite(checkpoint(tmp_path))


def flipped(whole: bytes) -> bytes:
    """A checkpoint with one bit of a weight turned over, which nothing but its checksum tells."""
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
    position = largest.header_offset + 300 + largest.file_size // 2
    return whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :]


@pytest.mark.parametrize("damage", ["empty", "truncated", "bit", "foreign", "text", "other program"])
def test_newest_good_checkpoint_is_used(damage: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    last = run / "checkpoints" / "last.ckpt"
    whole = last.read_bytes()
    if damage == "foreign":
        torch.save({"state_dict": {}, "epoch": 3}, last)
    elif damage == "other program":
        last.write_bytes(pickle.dumps({"a": pickle.PicklingError}))
    else:
        cut = whole[: len(whole) // 2]
        contents = {"empty": b"", "truncated": cut, "bit": flipped(whole), "text": b"not a checkpoint"}
        last.write_bytes(contents[damage])
    found = newest_good(run)
    assert (found.path.name, found.step) == ("best.ckpt", 4)
    (warning,) = capsys.readouterr().err.splitlines()
    assert warning.startswith(f"warning: {last} ")
    assert warning.endswith(f"using {found.path} instead")

    (run / "checkpoints" / "best.ckpt").write_bytes(b"")
    with pytest.raises(CheckpointError) as error:
        newest_good(run)
    assert all(name in str(error.value) for name in ("best.ckpt cannot", "last.ckpt "))
    assert "\n" not in str(error.value)


def test_a_checkpoint_that_does_not_begin_with_its_step_counts_by_it(run: Path) -> None:
    folder = run / "checkpoints"
    stored = torch.load(folder / "best.ckpt", weights_only=True)
    torch.save({key: stored[key] for key in sorted(stored)}, folder / "sorted.ckpt")
    assert stated_step(folder / "sorted.ckpt") is None
    assert newest_good(run).path.name == "last.ckpt"


def test_a_torn_checkpoint_is_passed_over_by_resume(run: Path, tmp_path: Path) -> None:
    last = run / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:5000])
    printed = train(tmp_path, "resume=last", "trainer.max_steps=5")
    assert printed.startswith(f"warning: {run_folder(Path())}/checkpoints/last.ckpt ")
    assert checkpoint(tmp_path)["global_step"] == logged_steps(tmp_path) == 5


def refused(path: Path) -> str | None:
    try:
        read(path)
    except CheckpointError as error:
        return str(error)
    return None


def test_damaged_bytes_are_an_error_of_one_line(trained: Path, tmp_path: Path) -> None:
    whole = (trained / "checkpoints" / "last.ckpt").read_bytes()
    chance = random.Random(0)
    path = tmp_path / "damaged.ckpt"
    for _ in range(40):
        damaged = bytearray(whole[: chance.randrange(len(whole))] if chance.random() < 0.5 else whole)
        for _ in range(chance.randrange(200)):
            # The pickle is at the front, the archive's directory at the end.
            end = min(len(damaged), 20_000)
            position = chance.randrange(end) if chance.random() < 0.5 else len(damaged) - 1 - chance.randrange(end)
            damaged[position] = chance.randrange(256)
        path.write_bytes(damaged)
        refusal = refused(path)
        assert refusal is None or "\n" not in refusal


class Payload:
    """Unpickled without care it makes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


@pytest.mark.parametrize("script", ["train.py", "sample.py"])
def test_a_crafted_pickle_is_refused(script: str, run: Path, tmp_path: Path) -> None:
    last = run / "checkpoints" / "last.ckpt"
    contents = torch.load(last, weights_only=True)
    torch.save(contents | {"callbacks": Payload(tmp_path / "harm")}, last)
    option = "resume" if script == "train.py" else "ckpt"
    line = error_line(Run(tmp_path, f"{option}={last}", script=TRAIN.parent / script))
    assert line.startswith(f"{last} is refused: it holds objects other than tensors and plain values")
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("script", ["train.py", "sample.py"])
def test_a_crafted_target_is_refused(script: str, run: Path, tmp_path: Path) -> None:
    last = run / "checkpoints" / "last.ckpt"
    contents = torch.load(last, weights_only=True)
    contents["config"]["network"] = {"_target_": "os.system", "command": f"touch {tmp_path / 'harm'}"}
    torch.save(contents, last)
    option = "resume" if script == "train.py" else "ckpt"
    line = error_line(Run(tmp_path, f"{option}={last}", script=TRAIN.parent / script))
    assert (
        line == f"{last} is refused: network names 'os.system', which is not a class of this project; nothing was built"
    )
    assert not (tmp_path / "harm").exists()


TARGETS = [
    "builtins.eval",
    "torch.load",
    "subprocess.Popen",
    "diffusion.runs.checkpoints.torch",
    "diffusion.runs.checkpoints.torch.load",
    "diffusion.runs.checkpoints.read",
    "diffusion.training.saving.shutil.rmtree",
    "diffusion.training.saving.Path",
    "diffusion.build.build",
    "diffusion.training.SummaryWriter",
    "diffusion...os.system",
    "diffusion",
    "",
    7,
    None,
    ["os.system"],
]


@pytest.fixture(scope="module")
def config(trained: Path) -> dict[str, Any]:
    return read(trained / "checkpoints" / "last.ckpt").config


@pytest.mark.parametrize("part", ["network", "schedule", "denoiser"])
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_only_classes_of_this_project_are_built(target: Any, part: str, config: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="is not a class of this project"):
        build_model(config | {part: config[part] | {"_target_": target}})
    with pytest.raises(ConfigError, match="is not a class of this project"):
        build_model(config | {part: config[part] | {"variance": {"_target_": target}}})


@pytest.mark.parametrize(
    "spec", ["http://example.org/last.ckpt", "https://example.org/x", "s3://bucket/x", "file:///x"]
)
def test_addresses_are_refused(spec: str) -> None:
    with pytest.raises(CheckpointError, match="is an address: download the checkpoint first"):
        find(spec)


def test_a_number_of_several_runs_is_the_newest_and_lists_are_in_the_order_of_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("diffusion.runs.checkpoints.check_checkpoint", lambda contents: None)
    for age, run in enumerate(("moons/version_0", "digits/version_0", "digits/version_10", "digits/version_2")):
        file = Path("lightning_logs", run, "checkpoints", "last.ckpt")
        file.parent.mkdir(parents=True)
        torch.save({"config": {"of": run}, "state_dict": {}, "global_step": 1}, file)
        os.utime(file, (1000 + age, 1000 + age))
    assert find("0").config["of"] == "digits/version_0"
    assert "0 is the newest of 2 runs, lightning_logs/digits/version_0; also" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match=r"digits/version_0, \S*digits/version_2, \S*digits/version_10"):
        find("lightning_logs/digits")
    with pytest.raises(ValueError, match="resume=0 is one of 2 runs: write resume=lightning_logs/digits/version_0 or"):
        find_named("0", None)
