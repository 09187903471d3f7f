"""Models as `.safetensors`: the format, and what comes back from one."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from diffusion.build import ConfigError
from diffusion.exchange import safetensors, weights
from diffusion.runs.checkpoints import find, read
from diffusion.sampling import Pipeline

FIXTURES = Path(__file__).parents[1] / "fixtures"


def tensors() -> dict[str, Tensor]:
    return {
        "a": torch.arange(12.0).reshape(3, 4),
        "b.c": torch.tensor(3),
        "image": torch.rand(2, 3, 5, 5).to(memory_format=torch.channels_last),
        "none": torch.zeros(0, 3),
        "half": torch.tensor([1.5, 2.5, 3.5], dtype=torch.float16),
        "bytes": torch.arange(5, dtype=torch.uint8),
    }


def same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(
        found[name].dtype == value.dtype and torch.equal(found[name], value) for name, value in wanted.items()
    )


def test_a_file_comes_back_as_it_was(tmp_path: Path) -> None:
    safetensors.save(tmp_path / "x.safetensors", tensors() | {"image": torch.ones(2, 3)}, {"key": "ü"})
    found, metadata = safetensors.load(tmp_path / "x.safetensors")
    assert same(found, tensors() | {"image": torch.ones(2, 3)}) and metadata == {"key": "ü"}


def test_the_format_is_that_of_the_package(tmp_path: Path) -> None:
    package, reader = pytest.importorskip("safetensors.torch"), pytest.importorskip("safetensors")
    wanted = tensors()
    safetensors.save(tmp_path / "ours.safetensors", wanted, {"key": "text"})
    assert same(package.load_file(tmp_path / "ours.safetensors"), wanted)
    with reader.safe_open(tmp_path / "ours.safetensors", "pt") as file:
        assert file.metadata() == {"key": "text"}
    contiguous = {name: value.contiguous() for name, value in wanted.items()}
    package.save_file(contiguous, tmp_path / "theirs.safetensors", {"key": "text"})
    found, metadata = safetensors.load(tmp_path / "theirs.safetensors")
    assert same(found, wanted) and metadata == {"key": "text"}


def written(path: Path, header: Any, body: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + body)
    return path


def entry(shape: Any = (2,), begin: Any = 0, end: Any = 8, dtype: Any = "F32") -> dict[str, Any]:
    return {
        "dtype": dtype,
        "shape": shape if not isinstance(shape, tuple) else list(shape),
        "data_offsets": [begin, end],
    }


@pytest.mark.parametrize(
    ("header", "body", "length", "what"),
    [
        (b"", b"", 0, "JSON"),
        ({}, b"", 2**60, "cut off"),
        ({"a": entry()}, b"1234", None, "cut off"),
        ({"a": entry()}, b"123456789", None, "after its last"),
        ({"a": entry(), "b": entry()}, b"12345678", None, "overlaps"),
        ({"a": entry(begin=4, end=12)}, b"123456789012", None, "gap"),
        ({"a": entry((2**40, 2**40), 0, 2**62)}, b"", None, "does not say"),
        ({"a": entry((2**30, 2**20), 0, 2**52)}, b"", None, "cut off"),
        ({"a": entry((3,))}, b"12345678", None, "size"),
        ({"a": entry((-2,), 0, -8)}, b"", None, "does not say"),
        ({"a": entry((True, 2))}, b"12345678", None, "does not say"),
        ({"a": entry(dtype="F8_E4M3")}, b"12345678", None, "type"),
        ({"a": entry(dtype=["F32"])}, b"12345678", None, "does not say"),
        ({"a": {"dtype": "F32"}}, b"", None, "does not say"),
        ({"a": 3}, b"", None, "does not say"),
        ({"__metadata__": {"a": 3}}, b"", None, "metadata"),
        (b'{"a": 1, "a": 1}', b"", None, "twice"),
        (b"[" * 100_000, b"", None, "JSON"),
        (b"\xff\xfe", b"", None, "UTF-8"),
        ('{"a": 1}'.encode("utf-16"), b"", None, "UTF-8"),
        ({"a": entry((0, 2**61, 2**61), 0, 0)}, b"", None, "does not say"),
        ([], b"", None, "JSON"),
    ],
)
def test_a_crafted_file_is_refused_in_one_line(
    header: Any, body: bytes, length: int | None, what: str, tmp_path: Path
) -> None:
    path = written(tmp_path / "x.safetensors", header, body, length)
    with pytest.raises(ConfigError, match=what) as refusal:
        safetensors.load(path)
    assert str(path) in str(refusal.value) and "\n" not in str(refusal.value)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_damaged_file_is_refused_or_holds_tensors_of_its_size(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("damaged") / "x.safetensors"
    safetensors.save(path, {"a": torch.ones(3), "b": torch.zeros(2, 2)}, {"k": "v"})
    good = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(good[: data.draw(st.integers(0, len(good)))])
    try:
        found, _ = safetensors.load(path)
    except ConfigError as error:
        message = str(error)
        found = {}
    else:
        message = ""
    assert "\n" not in message
    assert sum(value.numel() * value.element_size() for value in found.values()) < len(good)


def exported(name: str, path: Path, kind: str = "ema") -> Path:
    """The fixture checkpoint of this name as a file."""
    checkpoint = read(FIXTURES / f"{name}.ckpt")
    prefix = "ema." if kind == "ema" else "denoiser."
    state = {key: value for key, value in checkpoint.state.items() if key.startswith((prefix, "objective."))}
    weights.save(path, checkpoint.config, state, checkpoint.step, kind)
    return path


@pytest.mark.parametrize(
    "name", ["digits", "power", "learned", "residual", "latent", "base", "swissroll", "autoencoder"]
)
def test_a_file_draws_what_its_checkpoint_draws(name: str, tmp_path: Path) -> None:
    has_average = any(key.startswith("ema.") for key in read(FIXTURES / f"{name}.ckpt").state)
    path = exported(name, tmp_path / "model.safetensors", "ema" if has_average else "raw")
    wanted = Pipeline.load(str(FIXTURES / f"{name}.ckpt")).sample(2, seed=1)
    assert np.array_equal(Pipeline.load(str(path)).sample(2, seed=1), wanted)


def test_weights_that_a_file_does_not_hold_are_refused(tmp_path: Path) -> None:
    path = exported("power", tmp_path / "model.safetensors")
    shutil.copytree(FIXTURES / "averages", tmp_path / "averages")
    with pytest.raises(ConfigError, match="only averaged weights: leave weights=raw out"):
        Pipeline.load(str(path), weights="raw")
    with pytest.raises(ConfigError, match="only one set of weights"):
        Pipeline.load(str(path), weights=0.1)


def changed(path: Path, change: Any) -> Path:
    state, metadata = safetensors.load(path)
    change(state, metadata)
    safetensors.save(path, state, metadata)
    return path


KEY = "ema.network.conv_in.weight"


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda state, _: state.pop(KEY), "lacks"),
        (lambda state, _: state.update(extra=torch.ones(1)), "has the weights extra"),
        (lambda state, _: state.update({KEY: state[KEY][:1]}), "shape"),
        (lambda state, _: state.update({KEY: state[KEY].half()}), "float16"),
        (lambda state, _: state.update({KEY: state[KEY] * float("nan")}), "not finite"),
        (lambda _, metadata: metadata.pop("config"), "weights alone"),
        (lambda _, metadata: metadata.update(config="[]"), "JSON"),
        (lambda _, metadata: metadata.update(config="{}"), "has no dataset"),
        (lambda _, metadata: metadata.update(step="-1"), "step"),
        (
            lambda _, metadata: metadata.update(
                config=metadata["config"].replace('"num_classes": 0', f'"num_classes": {10**30}')
            ),
            "nothing can be built",
        ),
        (
            lambda _, metadata: metadata.update(config=metadata["config"].replace("networks.unet.UNet", "os.system")),
            "not a class of this project",
        ),
    ],
)
def test_a_file_that_is_not_its_configurations_model_is_refused(change: Any, what: str, tmp_path: Path) -> None:
    path = changed(exported("digits", tmp_path / "model.safetensors"), change)
    with pytest.raises(ConfigError, match=what) as refusal:
        find(str(path))
    assert str(path) in str(refusal.value) and "\n" not in str(refusal.value)
