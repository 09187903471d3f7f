"""ONNX files: they answer what the model answers, and what would not is not written."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from support.scripts import assert_refused, call
from torch import nn

import export
from diffusion.build import ConfigError
from diffusion.exchange import onnx as exchange
from diffusion.runs.checkpoints import find
from diffusion.runs.trained import load_denoiser

FIXTURES = Path(__file__).parents[1] / "fixtures"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a class-conditional model behind a fitted mixture."""
    folder = tmp_path_factory.mktemp("onnx")
    done = call(export, folder, f"ckpt={FIXTURES / 'residual.ckpt'}", "out=model.onnx")
    assert (done.code, done.out) == (0, "model.onnx\n"), done.err
    return folder / "model.onnx"


def session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("n", [1, 4])
def test_onnxruntime_answers_as_torch_for_any_number_of_rows(n: int, file: Path) -> None:
    checkpoint = find(str(FIXTURES / "residual.ckpt"))
    denoiser, _ = load_denoiser(checkpoint, "ema")
    x_t = torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(n))
    t = torch.linspace(0.2, 0.9, n, dtype=torch.float64)
    label = torch.arange(n) - 1
    (x0,) = session(file).run(None, {"x_t": x_t.numpy(), "t": t.numpy(), "label": label.numpy()})
    assert np.abs(x0 - denoiser(x_t, t, {"label": label}).numpy()).max() < exchange.TOLERANCE


def test_the_file_says_its_opset_its_inputs_and_the_models_schedule(file: Path) -> None:
    model = onnx.load(file)
    onnx.checker.check_model(model)
    assert model.opset_import[0].version == exchange.OPSET
    shapes = {i.name: [d.dim_param or d.dim_value for d in i.type.tensor_type.shape.dim] for i in model.graph.input}
    assert shapes == {"x_t": ["batch", 1, 8, 8], "t": ["batch"], "label": ["batch"]}
    facts = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    assert facts["dataset"] == "digits"
    assert len(facts["times"]) == len(facts["alpha"]) == len(facts["sigma"])
    assert (facts["alpha"][-1], facts["sigma"][-1]) == (1, 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits", "base", "learned", "power", "enlarging", "latent", "autoencoder"])
def test_each_kind_of_model_has_a_file(name: str, tmp_path: Path) -> None:
    done = call(export, tmp_path, f"ckpt={FIXTURES / name}.ckpt", "out=model.onnx")
    assert done.code == 0, done.err
    latents = name in ("latent", "autoencoder")
    assert {path.name for path in tmp_path.iterdir()} == {"model.onnx"} | ({"model_decoder.onnx"} if latents else set())


def test_a_file_that_would_not_equal_the_model_is_not_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(exchange, "_graph", lambda *_: b"")
    monkeypatch.setattr(exchange, "run", lambda graph, inputs, output: inputs["x_t"] + 2e-4)
    done = call(export, tmp_path, f"ckpt={FIXTURES / 'residual.ckpt'}", "out=model.onnx")
    assert_refused(done, "onnxruntime's answers differ from torch's", "more than 0.0001: nothing is written")
    assert list(tmp_path.iterdir()) == []


def test_constants_are_halved_only_where_that_loses_nothing() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    kept = model[1].weight.detach().clone()
    exchange.rounded(model[0])
    x = torch.randn(7, 8)
    graph = exchange._graph(model, [x], ["x"], "y")
    smaller = exchange.halved(graph)
    kinds = [constant.data_type for constant in onnx.load_model_from_string(smaller).graph.initializer]
    assert kinds.count(onnx.TensorProto.FLOAT16) == 1
    assert torch.equal(model[1].weight, kept)
    assert torch.equal(exchange.run(graph, {"x": x}, "y"), exchange.run(smaller, {"x": x}, "y"))


def test_rounding_keeps_biases_and_small_buffers() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    exchange.rounded(model)
    changed = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    assert changed == ["0.weight"]


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "PACKAGES", ("onnx", "no_such_package"))
    with pytest.raises(ConfigError, match="an export needs no_such_package: pip install"):
        exchange.check_packages()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["ckpt=last"], "out= is missing: give a file that ends in .html or .onnx"),
        (["ckpt=last", "out=model.pt"], "out=model.pt: an export ends in .html or .onnx or .safetensors or no suffix"),
        (["out=model.onnx"], "ckpt= is missing"),
        (["ckpt=[a,b]", "out=model.onnx"], "is a cascade, and an export holds one model: name one checkpoint"),
        (["ckpt=last", "out=model.onnx", "half=true"], "half= has no effect on out=model.onnx: leave it out, or write"),
        (["ckpt=last", "out=no/such/../model.onnx", "weights=none"], "there is no run with a checkpoint"),
        (["ckpt=last", "out=model.onnx", "steps=5"], "there is no setting steps of export.py: it belongs to"),
        ([f"ckpt={FIXTURES / 'swissroll.ckpt'}", "out=model.onnx"], "weights of their own for each noising step"),
        ([f"ckpt={FIXTURES / 'classifier.ckpt'}", "out=model.onnx"], "is a classifier, not a denoiser"),
    ],
    ids=lambda value: "" if isinstance(value, list) else value[:30],
)
def test_bad_input_gets_one_line_and_leaves_nothing(arguments: list[str], said: str, tmp_path: Path) -> None:
    assert_refused(call(export, tmp_path, *arguments), said)
    assert list(tmp_path.iterdir()) == []
