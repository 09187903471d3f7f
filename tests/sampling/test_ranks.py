"""torchrun's processes share the work, and end with what one process makes."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.processes import TINY, checkpoint

from diffusion.build import ConfigError
from diffusion.machine import devices
from diffusion.sampling.parallel import _together
from diffusion.training import trainer

ROOT = Path(__file__).parents[2]
SHORT = [*TINY, "trainer.max_steps=4", "timesteps=20", "schedule=cosine"]


def torchrun(folder: Path, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A script in two processes, one thread each."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [*command, str(ROOT / script), *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )


def test_shares_are_put_together_in_the_order_of_their_numbers() -> None:
    numbers = torch.arange(7.0).reshape(1, 7, 1)
    assert torch.equal(_together([numbers[:, rank::3] for rank in range(3)]), numbers)


@pytest.mark.parametrize("wanted", [3, [0]])
def test_another_number_of_devices_than_torchruns_is_refused(wanted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(ValueError, match="torchrun has started 4 processes|names GPUs"):
        devices.devices(wanted)
    with pytest.raises(ConfigError, match="torchrun has started 2 processes here"):
        trainer._wanted(wanted)
    assert devices.devices("auto") == ["cpu"] * 4
    assert trainer._wanted("auto") == trainer._wanted(2) == 2


def test_without_torchrun_a_cpu_is_one_device() -> None:
    assert devices.started() == devices.started(here=True) == 1
    assert trainer._wanted("auto") == 1


@pytest.mark.slow
def test_two_processes_of_torchrun_train_draw_and_score_as_one_does(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
    alone = subprocess.run([sys.executable, ROOT / "train.py", *SHORT], cwd=one, capture_output=True, text=True)
    assert alone.returncode == 0, alone.stderr
    done = torchrun(two, "train.py", *SHORT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("run folder:") == 1
    assert [path.name for path in (two / "lightning_logs/digits").iterdir()] == ["version_0"]
    theirs, ours = checkpoint(one)["state_dict"], checkpoint(two)["state_dict"]
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-5, atol=1e-5, msg=name)

    # A thread of the group that still ran then could abort the process, which has done its work.
    (tmp_path / "counted.py").write_text(
        "import atexit, os, runpy, sys\n"
        "del sys.argv[0]\n"
        "atexit.register(lambda: print('threads:', len(os.listdir('/proc/self/task')), file=sys.stderr))\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    draw = (str(ROOT / "sample.py"), "ckpt=last", "n=5", "batch_size=2", "out=shared.npz")
    drawn = torchrun(two, str(tmp_path / "counted.py"), *draw)
    assert drawn.returncode == 0, drawn.stderr
    assert drawn.stderr.count("threads: 1\n") == 2, drawn.stderr
    assert drawn.stdout.splitlines() == ["shared.npz"]
    plain = subprocess.run(
        [sys.executable, ROOT / "sample.py", "ckpt=last", "n=5", "batch_size=2", "out=alone.npz"], cwd=two, check=True
    )
    assert plain.returncode == 0
    with np.load(two / "shared.npz") as shared, np.load(two / "alone.npz") as alone_:
        for name in alone_.files:
            np.testing.assert_allclose(shared[name], alone_[name], atol=1)

    scored = torchrun(two, "evaluate.py", "ckpt=last", "n=100", "batch_size=50", "extractors=random", "cache=null")
    assert scored.returncode == 0, scored.stderr
    assert scored.stdout.count("frechet_random_n100") == 1
