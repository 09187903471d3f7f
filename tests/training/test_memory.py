"""Out of memory: one line that names what to lower, and nothing lost."""

import errno
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest
import torch
from support.scripts import TINY, Outcome, assert_refused, call

import evaluate
import sample
import train
from data.stream import Batches
from diffusion.evaluation.judge import Judge
from diffusion.machine import memory
from diffusion.runs.checkpoints import read
from diffusion.sampling import Pipeline
from diffusion.training.module import DiffusionModule

CUDA = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.1 GiB of which 1 GiB is free."
CPU = "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 4096 bytes. Error code 12"
WORKER = 'Caught {} in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  File "x"\n{}\n'


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (torch.OutOfMemoryError(CUDA), "tried to allocate 2.00 GiB"),
        (RuntimeError(CPU), "tried to allocate 4096 bytes"),
        (RuntimeError("MPS backend out of memory (MPS allocated: 8 GB)"), "MPS backend out of memory"),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"),
            "CUDA error: CUBLAS_STATUS",
        ),
        (RuntimeError("unable to mmap 400 bytes: Cannot allocate memory (12)"), "unable to mmap"),
        (MemoryError(), "MemoryError"),
        (MemoryError("Unable to allocate 7 PiB for an array"), "Unable to allocate 7 PiB"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "[Errno 12] Cannot allocate memory"),
        (MemoryError(WORKER.format("MemoryError", "MemoryError")), "MemoryError"),
        (RuntimeError(WORKER.format("RuntimeError", f"RuntimeError: {CPU}")), "tried to allocate 4096 bytes"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), "the system ended another process"),
        (RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly"), "the system ended another process"),
        (BrokenProcessPool("A process was terminated abruptly"), "the system ended another process"),
    ],
)
def test_every_sign_of_a_shortage_is_one_line_with_the_advice(error: BaseException, cause: str) -> None:
    with pytest.raises(memory.OutOfMemory) as caught, memory.shortage("lower n="):
        raise error
    text = str(caught.value)
    assert text.startswith(f"out of memory ({cause}")
    assert text.endswith("): lower n=")
    assert "\n" not in text


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        RuntimeError(WORKER.format("RuntimeError", "RuntimeError: a mistake")),
        OSError(errno.ENOSPC, "No space left on device"),
        ValueError("out of memory"),
    ],
)
def test_other_errors_stay_what_they_are(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, memory.shortage("lower n="):
        raise error
    assert caught.value is error


def failing(error: Exception, at: int = 1) -> Callable[..., Any]:
    """Raises the error when it is called the `at`-th time."""
    calls = iter(range(1, 10**6))

    def instead(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == at:
            raise error

    return instead


def after(error: Exception, at: int, original: Callable[..., Any]) -> Callable[..., Any]:
    """What the original does, but for the call `at`."""
    fails = failing(error, at)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        fails()
        return original(*args, **kwargs)

    return wrapped


@pytest.mark.parametrize(
    ("where", "error"),
    [
        ("training_step", torch.OutOfMemoryError(CUDA)),
        ("training_step", RuntimeError(CPU)),
        ("training_step", MemoryError()),
        ("validation_step", RuntimeError(CPU)),
    ],
)
def test_a_run_that_has_no_checkpoint_yet_leaves_no_folder(
    where: str, error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DiffusionModule, where, after(error, 1, getattr(DiffusionModule, where)))
    outcome = call(train, tmp_path, *TINY, "accelerator=cpu", "preview_every=0")
    assert outcome.code == 1
    assert outcome.err.startswith("error: out of memory (")
    assert outcome.err.count("\n") == 1
    assert "batch_size=8 trainer.accumulate_grad_batches=2, trains in the same way" in outcome.err
    assert outcome.err.endswith("no checkpoint was written yet\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("where", ["training_step", "validation_step"])
def test_a_run_that_has_begun_keeps_its_last_checkpoint(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = {"training_step": 4, "validation_step": 3}[where]  # a validation has two batches
    with monkeypatch.context() as patch:
        patch.setattr(DiffusionModule, where, after(RuntimeError(CPU), at, getattr(DiffusionModule, where)))
        outcome = call(train, tmp_path, *TINY, "accelerator=cpu", "preview_every=0")
    assert outcome.code == 1
    assert outcome.err.count("\n") == 1
    folder = "lightning_logs/digits/version_0"
    assert f"the last checkpoint is kept: python train.py resume={folder} where there is more" in outcome.err
    assert read(tmp_path / folder / "checkpoints/last.ckpt").step == 2
    assert call(train, tmp_path, f"resume={folder}").code == 0


def test_a_shortage_in_a_save_or_a_read_is_no_fault_of_the_disk_or_the_file(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "save", after(RuntimeError(CPU), 2, torch.save))
    outcome = call(train, tmp_path, *TINY, "accelerator=cpu", "preview_every=0")
    assert outcome.code == 1
    assert outcome.err.startswith("error: out of memory (tried to allocate 4096 bytes): lower batch_size=16;")
    kept = tmp_path / "lightning_logs/digits/version_0/checkpoints"
    assert sorted(file.name for file in kept.iterdir()) == ["best.ckpt", "last.ckpt"]
    assert read(kept / "last.ckpt").step == 2
    monkeypatch.setattr(torch, "load", failing(RuntimeError(CPU)))
    refused(call(sample, tmp_path, f"ckpt={trained / 'lightning_logs/digits/version_0'}", "out=x.png"), "lower batch")


def test_a_shortage_while_the_time_is_estimated_ends_before_there_is_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffusion.training.estimate.step_seconds", failing(torch.OutOfMemoryError(CUDA)))
    outcome = call(train, tmp_path, *TINY, "batch_size=1", "accelerator=cpu")
    assert_refused(outcome, "out of memory", "batch_size is 1 already, choose a smaller network")
    assert not (tmp_path / "lightning_logs").exists()


def test_a_shortage_in_a_loaders_process_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Batches, "__getitem__", after(MemoryError(), 1, Batches.__getitem__))
    outcome = call(train, tmp_path, *TINY, "accelerator=cpu", "workers=1")
    assert_refused(outcome, "out of memory (MemoryError): lower batch_size=16;")


@pytest.mark.slow
def test_a_sweep_goes_on_past_a_run_that_runs_out_of_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = DiffusionModule.training_step
    monkeypatch.setattr(DiffusionModule, "training_step", after(torch.OutOfMemoryError(CUDA), 1, step))
    outcome = call(train, tmp_path, "-m", *TINY, "accelerator=cpu", "preview_every=0", "lr=1e-3,2e-3")
    assert outcome.code == 1
    assert "failed: out of memory" in outcome.out
    assert len(list((tmp_path / "lightning_logs/digits").iterdir())) == 1


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one run."""
    folder = tmp_path_factory.mktemp("trained")
    assert call(train, folder, *TINY, "preview_every=0").code == 0
    return folder


def refused(outcome: Outcome, *said: str) -> None:
    assert outcome.code == 1
    lines = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert outcome.err.splitlines()[-1] == lines[0]
    for part in ("out of memory", *said):
        assert part in lines[0]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError(CUDA), RuntimeError(CPU), MemoryError()], ids=type)
def test_samples_that_do_not_fit_are_one_line(
    error: Exception, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pipeline, "states", failing(error))
    run, out = f"ckpt={trained / 'lightning_logs/digits/version_0'}", tmp_path / "x.png"
    refused(call(sample, tmp_path, run, f"out={out}"), "lower batch_size= (samples at a time), n= or frames=")
    assert not out.exists()
    monkeypatch.setattr(Pipeline, "states", failing(error))
    refused(call(evaluate, tmp_path, run, "n=100"), "lower batch_size= (samples at a time) or n=")


def test_scores_that_do_not_fit_are_one_line(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Judge, "__call__", failing(torch.OutOfMemoryError(CUDA)))
    run = f"ckpt={trained / 'lightning_logs/digits/version_0'}"
    refused(call(evaluate, tmp_path, run, "n=100", "steps=2", "extractors=random"), "lower batch_size=")
    assert not (trained / "lightning_logs/digits/version_0/metrics.json").exists()
