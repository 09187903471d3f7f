"""A checkpoint that its configuration's run would not have written is refused in one line, before anything is built."""

import copy
import io
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.processes import TINY, run_folder
from support.scripts import call

import train
from diffusion.build import ConfigError, build
from diffusion.evaluation.extractors import imported
from diffusion.evaluation.files import read_samples
from diffusion.machine import memory
from diffusion.runs import checkpoints
from diffusion.runs.models import build_model
from diffusion.runs.places import CheckpointError

FIT = "fit_loop"
BAD = (None, -1, "x", [], {}, [[1]], float("nan"), 10**20, torch.zeros(3))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("validated")
    outcome = call(train, folder, *TINY, "trainer.max_steps=2", "preview_every=0")
    assert outcome.code == 0, outcome.err
    return run_folder(folder) / "checkpoints" / "last.ckpt"


@pytest.fixture(scope="module")
def written(path: Path) -> dict[str, Any]:
    """What the run wrote; a test changes copies of it."""
    return checkpoints.contents(path)


def changed(contents: dict[str, Any], keys: tuple[Any, ...], value: Any) -> dict[str, Any]:
    """A copy with another value at the end of these keys."""
    result = copy.deepcopy(contents)
    node: Any = result
    for key in keys[:-1]:
        node = node[key]
    node[keys[-1]] = value
    return result


def refusal(contents: dict[str, Any], file: Path) -> str:
    torch.save(contents, file)
    with pytest.raises(CheckpointError) as error:
        checkpoints.contents(file)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("keys", "value", "said"),
    [
        (("optimizer_states",), [], "no state of exactly one optimizer"),
        (("optimizer_states", 0, "state"), {}, "is missing"),
        (("optimizer_states", 0, "state", 0), {}, "holds nothing"),
        (("optimizer_states", 0, "state", 0, "exp_avg"), torch.zeros(1), "exp_avg of"),
        (("optimizer_states", 0, "state", 0, "step"), torch.tensor(-1.0), "counts -1.0 steps"),
        (("optimizer_states", 0, "state", 0, "step"), torch.tensor(torch.nan), "counts nan steps"),
        (("optimizer_states", 0, "state", 0, "step"), torch.tensor(2), "counts 2 steps"),  # a whole number's type
        (("optimizer_states", 0, "state", 0, "step"), torch.tensor([2.0]), "counts 2.0 steps"),
        (("optimizer_states", 0, "param_groups", 0, "betas"), (0.5, 0.5), "unlike its configuration"),
        (("optimizer_states", 0, "param_groups", 0, "betas"), (torch.zeros(3), 0.5), "has a tensor as betas.0"),
        (("optimizer_states", 0, "param_groups", 0, "params"), [torch.zeros(3)], "has a tensor as params.0"),
        (("optimizer_states", 0, "param_groups", 0), torch.zeros(3), "has a tensor"),
        (("config", "denoiser"), 7, "no denoiser"),
        (("config", "optimizer"), None, "no optimizer"),
        (("config", "trainer", "accumulate_grad_batches"), {"a": 1}, "accumulate_grad_batches in its configuration is"),
        (("config", "network", "blocks"), 1_000_000, "more than 10000 layers"),
        (("config", "network", "num_classes"), 10**9, "of memory"),
        (("config", "dataset", "flip"), [], "dataset.flip"),
        (("config", "dataset", "shape"), [], "dataset.shape in its configuration is []"),
        (("config", "dataset", "shape"), [1, 0, 8], "dataset.shape in its configuration is [1, 0, 8]"),
        (("global_step",), 3, "steps"),
        (("global_step",), 0, "steps"),  # which a run may have before its first step, and this one's loops say two
        (("global_step",), -1, "its global_step is -1"),
        (("loops", FIT, "epoch_loop.batch_progress", "total", "ready"), 100, "batches"),
        (("callbacks", "Checkpoints", "best"), "low", "best validation loss"),
        (("state_dict", "extra"), torch.zeros(1), "has the weights extra"),
    ],
)
def test_what_no_run_would_have_written_is_named(
    keys: tuple[Any, ...], value: Any, said: str, written: dict[str, Any], tmp_path: Path
) -> None:
    assert said in refusal(changed(written, keys, value), tmp_path / "crafted.ckpt")


@pytest.mark.parametrize(("factor", "refused"), [(1.5, True), (1.0, False), (0.0, False)])
def test_a_learning_rate_is_at_most_its_peak(
    factor: float, refused: bool, written: dict[str, Any], tmp_path: Path
) -> None:
    peak = written["config"]["optimizer"]["lr"]
    contents = changed(written, ("optimizer_states", 0, "param_groups", 0, "lr"), factor * peak)
    if refused:
        assert f"has lr={factor * peak!r}, and its peak is {peak}" in refusal(contents, tmp_path / "crafted.ckpt")
        return
    torch.save(contents, tmp_path / "crafted.ckpt")
    assert checkpoints.contents(tmp_path / "crafted.ckpt")["global_step"] == written["global_step"]


def test_a_run_without_averages_has_none_in_its_checkpoint(path: Path, tmp_path: Path) -> None:
    contents = changed(torch.load(path, weights_only=True), ("config", "ema"), None)
    assert "has the weights ema." in refusal(contents, tmp_path / "with.ckpt")
    state = {name: value for name, value in contents["state_dict"].items() if not name.startswith("ema.")}
    torch.save(contents | {"state_dict": state}, tmp_path / "without.ckpt")
    assert checkpoints.contents(tmp_path / "without.ckpt")["state_dict"].keys() == state.keys()


def test_weights_of_another_precision_are_named(path: Path, tmp_path: Path) -> None:
    crafted = checkpoints.contents(path)
    name, weights = next((n, w) for n, w in crafted["state_dict"].items() if w.is_floating_point())
    crafted["state_dict"][name] = weights.double()
    assert f"{name} is float64 of shape" in refusal(crafted, tmp_path / "crafted.ckpt")


def test_a_run_in_double_precision_has_weights_of_it(written: dict[str, Any], tmp_path: Path) -> None:
    crafted = changed(written, ("config", "trainer", "precision"), "64-true")
    state = crafted["state_dict"]
    whole = [name for name, value in state.items() if not value.is_floating_point()]
    crafted["state_dict"] = {name: value if name in whole else value.double() for name, value in state.items()}
    for moments in crafted["optimizer_states"][0]["state"].values():
        moments |= {name: moments[name].double() for name in ("exp_avg", "exp_avg_sq")}
    torch.save(crafted, tmp_path / "double.ckpt")
    assert {value.dtype for value in checkpoints.contents(tmp_path / "double.ckpt")["state_dict"].values()} == (
        {torch.float64} | {state[name].dtype for name in whole}
    )


def test_a_configuration_that_accumulates_nothing_is_one_batch_a_step(path: Path, tmp_path: Path) -> None:
    contents = changed(torch.load(path, weights_only=True), ("config", "trainer", "accumulate_grad_batches"), None)
    torch.save(contents, tmp_path / "plain.ckpt")
    assert checkpoints.contents(tmp_path / "plain.ckpt")["global_step"] == contents["global_step"]


def test_weights_that_are_not_finite_are_named(path: Path, tmp_path: Path) -> None:
    crafted = checkpoints.contents(path)
    name = next(iter(crafted["state_dict"]))
    crafted["state_dict"][name].view(-1)[0] = torch.nan
    assert f"{name} has numbers that are not finite" in refusal(crafted, tmp_path / "crafted.ckpt")


@pytest.mark.parametrize(
    "tensor", [torch.zeros(1).expand(9), torch.eye(3).to_sparse(), torch.zeros(3, dtype=torch.cfloat)]
)
def test_a_tensor_that_is_not_plain_is_refused(tensor: torch.Tensor, path: Path, tmp_path: Path) -> None:
    crafted = checkpoints.contents(path)
    crafted["state_dict"][next(iter(crafted["state_dict"]))] = tensor
    assert "no plain dense tensor" in refusal(crafted, tmp_path / "crafted.ckpt")


def test_an_archive_that_unpacks_to_more_than_itself_is_not_unpacked(path: Path, tmp_path: Path) -> None:
    file = tmp_path / "bomb.ckpt"
    with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as source, zipfile.ZipFile(file, "w") as target:
        for entry in source.namelist():
            target.writestr(entry, source.read(entry))
        target.writestr("last/data/999", bytes(10**7), zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match="compressed archive"):
        checkpoints.contents(file)


def test_an_archive_whose_parts_lie_over_each_other_is_not_read(path: Path, tmp_path: Path) -> None:
    file = tmp_path / "overlapping.ckpt"
    file.write_bytes(path.read_bytes())
    with zipfile.ZipFile(file, "a") as target:
        target.writestr("last/data/999", b"")  # so that the directory is written anew
        target.filelist *= 2
    with pytest.raises(CheckpointError, match="its parts are larger than the file"):
        checkpoints.contents(file)


def test_a_model_is_bounded_where_it_is_typed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = checkpoints.contents(path)["config"]
    monkeypatch.setattr(memory, "total", lambda: 1000)
    with pytest.raises(ConfigError, match=r"takes .* GiB of memory"):
        build_model(config)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_entry_of_another_kind_is_accepted_or_one_line(
    data: st.DataObject, path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    contents, keys = torch.load(path, weights_only=True), ()
    node: Any = contents
    while isinstance(node, dict | list) and node and (not keys or data.draw(st.integers(0, 3))):
        choices = list(node) if isinstance(node, dict) else range(len(node))
        keys = (*keys, data.draw(st.sampled_from(choices)))
        node = node[keys[-1]]
    file = tmp_path_factory.mktemp("any") / "crafted.ckpt"
    torch.save(changed(contents, keys, data.draw(st.sampled_from(BAD))), file)
    said = str(file)
    try:
        checkpoints.contents(file)
    except CheckpointError as error:
        said = str(error)
    assert said.startswith(str(file))
    assert "\n" not in said


@pytest.mark.parametrize("kind", ["fifo", "array", "garbage"])
def test_what_is_no_archive_of_arrays_is_one_line(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "x.npz"
    if kind == "fifo":
        os.mkfifo(file)
    elif kind == "array":
        with file.open("wb") as stream:
            np.save(stream, np.zeros(3))
    else:
        file.write_bytes(b"PK" + bytes(100))
    with pytest.raises(ValueError, match="samples=.*") as error:
        read_samples(file, (1, 8, 8), 4)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("config", ["diffusion.optimizers.AdamW", "diffusion.optimizers.Muon"])
@pytest.mark.parametrize("lr", [float("inf"), float("nan"), -1.0, 0.0])
def test_a_learning_rate_that_cannot_be_is_refused_where_it_is_built(config: str, lr: float) -> None:
    with pytest.raises(ConfigError, match="lr must be positive"):
        build({"_target_": config, "lr": lr}, "optimizer")


def test_an_extractor_that_exits_is_blamed() -> None:
    with pytest.raises(ValueError, match=r"extractor=sys\.exit: exit\(\) fails \(SystemExit"):
        imported("sys.exit")
