"""What is no regular file is neither read nor replaced, and vectors of anything but finite numbers are refused."""

import gzip
import os
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data import images
from diffusion import media
from diffusion.build import ConfigError
from diffusion.evaluation import record
from diffusion.media import atomic
from diffusion.sampling import given
from diffusion.settings.sampling import Steering
from diffusion.training.logger import Table

USES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "a picture": ("x.png", lambda path: media.check_out(path)),
    "the table of a run": ("metrics.csv", Table),
    "the table of a resumed run": ("metrics.csv", lambda path: Table(path, 1)),
    "the scores": ("metrics.json", lambda path: record.write_scores(path.parent, "test", {})),
    "a likelihood": ("metrics.json", lambda path: record.write_likelihood(path.parent, "test", "vlb", {})),
    "the settings of a folder": ("settings.json", lambda path: media.claim(path.parent, {})),
}


@pytest.mark.skipif(os.name != "posix", reason="needs FIFOs")
@pytest.mark.parametrize("use", USES)
def test_a_fifo_is_neither_waited_for_nor_replaced(tmp_path: Path, use: str) -> None:
    name, act = USES[use]
    os.mkfifo(tmp_path / name)
    with pytest.raises((OSError, ValueError), match=rf"{name}.* is no regular file"):
        act(tmp_path / name)
    assert stat.S_ISFIFO((tmp_path / name).stat().st_mode)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.skipif(os.name != "posix", reason="needs FIFOs")
def test_the_writer_of_files_leaves_a_fifo_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    os.mkfifo(path)
    with pytest.raises(atomic.WriteError, match="is no regular file"), atomic.atomic(path) as file:
        file.write(b"lost")
    assert stat.S_ISFIFO(path.stat().st_mode)


@pytest.mark.parametrize(
    "vectors",
    [
        np.full((2, 3), np.nan),
        np.full((2, 3), np.inf),
        np.full((2, 3), 1e300),
        np.ones((2, 3), complex),
        np.full((2, 3), "a"),
    ],
    ids=["nan", "inf", "beyond float32", "complex", "text"],
)
def test_vectors_are_finite_real_numbers(tmp_path: Path, vectors: np.ndarray) -> None:
    np.save(tmp_path / "v.npy", vectors)
    with np.errstate(over="ignore"), pytest.raises(ConfigError, match="must hold finite real numbers"):
        given._vectors(Steering(embedding=str(tmp_path / "v.npy")), 3)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"\0\0\x08\x02" + b"\xff" * 8, "not an IDX file"),
        (b"\0\0\x08\x01\0\0\0\x02abc", "does not hold the 2 bytes"),
        (b"\0\0\x08\x01\0\0\0\x02a", "does not hold the 2 bytes"),
        (b"\0\0", "not an IDX file"),
    ],
    ids=["huge", "longer", "shorter", "torn header"],
)
def test_a_gzipped_idx_file_unpacks_to_what_it_declares(tmp_path: Path, content: bytes, fault: str) -> None:
    (tmp_path / "x.gz").write_bytes(gzip.compress(content))
    with pytest.raises(ValueError, match=fault):
        images._read_idx_gz(tmp_path / "x.gz")
