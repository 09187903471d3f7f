"""A model as ONNX files, which other programs run without this project and without torch.

The file holds the denoiser `x0 = D(x_t, t, ...)` with everything that it is made of: schedule, preconditioner, network.
So a program that samples needs alpha_t and sigma_t besides, and these are in the file's metadata.
"""

import importlib.util
import json
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffusion.build import ConfigError
from diffusion.denoisers import Condition, Denoiser, RegressionDenoiser, StepDenoiser, TrainableDenoiser
from diffusion.media.atomic import atomic
from diffusion.models import Codec
from diffusion.noise import EVALUATION, Noise
from diffusion.schedules import expand

OPSET = 20
TOLERANCE = 1e-4  # between torch and onnxruntime, of the network's output
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_ROUNDED_BUFFER = 2**16  # numbers of a buffer from which on it is worth rounding to half precision
_LARGEST_FILE = 2**31  # bytes: what the format can hold in one file


def check_packages() -> None:
    """Raises ConfigError, one line, if a package is missing that an export needs."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"an export needs {' and '.join(missing)}: pip install {' '.join(PACKAGES)}")


class _Positional(nn.Module):
    """A denoiser whose condition is given as arguments, since an ONNX graph has a list of inputs."""

    def __init__(self, denoiser: Denoiser, names: Sequence[str]) -> None:
        super().__init__()
        self.denoiser, self.names = denoiser, names

    def forward(self, x_t: Tensor, t: Tensor, *conditions: Tensor) -> Tensor:
        return self.denoiser(x_t, t, dict(zip(self.names, conditions, strict=True)))


class _Decoder(nn.Module):
    """The way from latents to data alone."""

    def __init__(self, codec: Codec) -> None:
        super().__init__()
        self.codec = codec

    def forward(self, z: Tensor) -> Tensor:
        return self.codec.decode(z)


def check_exportable(denoiser: Denoiser) -> None:
    """Raises ConfigError if a graph cannot do what the denoiser does."""
    if isinstance(denoiser, StepDenoiser) or (isinstance(denoiser, TrainableDenoiser) and denoiser.steps):
        raise ConfigError(
            "this model has weights of their own for each noising step (denoiser=step or network=heads), which no ONNX "
            "graph chooses: export a model with another denoiser and network"
        )


def examples(
    denoiser: Denoiser, shape: Sequence[int], t: float, n: int, leveled: bool = False, data: Tensor | None = None
) -> dict[str, Tensor]:
    """Inputs of the graph, n rows each: `x_t` (n, *shape) float32, `t` (n,) float64 and what the model is conditioned
    on: `label` (n,) int64, `embedding` (n, d), `image` (n, C', H, W), `level` (n,). `data` are what is noised; None is
    N(0, 1/4)."""
    noise = Noise(0, torch.arange(n), EVALUATION)
    alpha, sigma = denoiser.schedule(torch.tensor(t, dtype=torch.float64))
    x0 = 0.5 * noise.normal(shape, draw=1) if data is None else data[torch.arange(n) % len(data)]
    x_t = sigma.item() * noise.normal(shape) + alpha.item() * x0
    inputs = {"x_t": x_t, "t": torch.full((n,), t, dtype=torch.float64)}
    if denoiser.num_classes:
        inputs["label"] = torch.arange(n) % (denoiser.num_classes + 1) - 1
    if denoiser.embedding:
        inputs["embedding"] = noise.normal((denoiser.embedding,), draw=2)
    if denoiser.condition_channels:
        inputs["image"] = noise.normal((denoiser.condition_channels, *shape[1:]), draw=3).clamp(-1, 1)
    if leveled:
        inputs["level"] = noise.uniform((), draw=4).float()
    return inputs


def denoiser_graph(
    denoiser: Denoiser, shape: Sequence[int], leveled: bool = False, data: Tensor | None = None
) -> bytes:
    """The denoiser as an ONNX file that gives the same answers, with any number of rows.

    Args:
        denoiser: on the CPU, in evaluation mode.
        shape: of x_t, without the batch.
        leveled: whether it is conditioned on the noise level of its image condition too.
        data: for a graph in float32 alone, see `single`: what is like the model's data, on which the answers are
            compared. Far from the data a fitted mixture needs float64 to tell its clusters apart.

    Raises:
        ConfigError: a graph cannot do what it does, or onnxruntime's answers are not torch's.
    """
    check_packages()
    check_exportable(denoiser)
    # A batch size that is no other dimension's: torch would take both for the same.
    example = examples(denoiser, shape, 0.5, 7, leveled)
    conditions = [name for name in example if name not in ("x_t", "t")]
    model = _Positional(denoiser, conditions)
    graph = _graph(model, list(example.values()), list(example), "x0")
    graph = graph if data is None else single(graph)
    schedule = denoiser.schedule
    for t in (schedule.t_min, 0.3, 0.7, 1.0):
        t = t if schedule.timesteps is None else max(round(t * schedule.timesteps), 1) / schedule.timesteps
        for n in (1, 5):
            inputs = examples(denoiser, shape, t, n, leveled, data)
            cond = {name: inputs[name] for name in conditions}
            _check(graph, model, inputs, "x0", _amplification(denoiser, inputs["x_t"], inputs["t"], cond))
    return graph


def decoder_graph(codec: Codec) -> bytes:
    """The decoder of a model of latents as an ONNX file: z (n, *latent_shape) float32 to x.

    Raises:
        ConfigError: onnxruntime's answers are not torch's.
    """
    check_packages()
    model = _Decoder(codec)
    draws = [Noise(0, torch.arange(n), EVALUATION).normal(codec.latent_shape) for n in (7, 1, 5)]
    graph = _graph(model, [draws[0]], ["z"], "x")
    for z in draws[1:]:
        _check(graph, model, {"z": z}, "x", torch.ones(()))
    return graph


def _amplification(denoiser: Denoiser, x_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
    """How much D multiplies a difference in the network's output, at least 1: c_out, shaped to meet x_t.

    In eps-parameterization it is sigma / alpha, 157 at the end of DDPM's table, where the last bits of D mean nothing.
    """
    if not isinstance(denoiser, RegressionDenoiser):
        return torch.ones(())
    with torch.no_grad():
        _, c_out = denoiser.target(x_t, x_t, t, denoiser.predict(x_t, t, cond))
    return expand(c_out.abs().clamp(min=1), x_t)


def _graph(model: nn.Module, arguments: list[Tensor], names: list[str], output: str) -> bytes:
    batch = torch.export.Dim("batch")
    shapes: list[Any] = [{0: batch} for _ in arguments]
    # What comes after x_t and t are the variable arguments of `_Positional`, a tuple of their own.
    nested = tuple(shapes) if len(shapes) < 3 else (*shapes[:2], tuple(shapes[2:]))
    # The exporter remarks on its own workings.
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                model.eval(), tuple(arguments), dynamo=True, opset_version=OPSET, external_data=False, verbose=False,
                input_names=names, output_names=[output], dynamic_shapes=nested,
            )  # fmt: skip
    except Exception as error:  # the exporter lets through whatever the traced code or its own passes raise
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise ConfigError(f"torch cannot export this model to ONNX: {reason}") from error
    finally:
        logging.disable(before)
    assert program is not None
    made = program.model_proto
    if made.ByteSize() >= _LARGEST_FILE:
        raise ConfigError("an ONNX file holds less than 2 GB, and this model is larger")
    for value in (*made.graph.input, *made.graph.output):
        if not value.type.tensor_type.shape.dim[0].dim_param:
            raise ConfigError(f"torch fixed the batch size of {value.name} in the graph, so it is not written")
    return bytes(made.SerializeToString())


def run(graph: bytes, inputs: dict[str, Tensor], output: str) -> Tensor:
    """What onnxruntime answers on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    narrow = {entry.name for entry in session.get_inputs() if entry.type == "tensor(float)"}
    given = {name: (value.float() if name in narrow else value).numpy() for name, value in inputs.items()}
    (found,) = session.run([output], given)
    return torch.from_numpy(found)


def _check(graph: bytes, model: nn.Module, inputs: dict[str, Tensor], output: str, scale: Tensor) -> None:
    with torch.no_grad():
        expected = model(*inputs.values())
    found = run(graph, inputs, output)
    if found.shape != expected.shape:
        raise ConfigError(f"onnxruntime answers in the shape {tuple(found.shape)}, torch in {tuple(expected.shape)}")
    difference = ((found - expected).abs() / scale).max().item()
    if not difference <= TOLERANCE:  # NaN differs too
        raise ConfigError(
            f"onnxruntime's answers differ from torch's by {difference:.2g}, more than {TOLERANCE:g}: nothing "
            f"is written"
        )


def rounded(model: nn.Module) -> nn.Module:
    """The model with its weight matrices, and large buffers, rounded to half precision; changed in place.

    Biases and small buffers stay: they are few, and a variance of 1e-6 has no digits left in half precision.
    """
    matrices = [value for value in model.parameters() if value.ndim > 1]
    tables = [value for value in model.buffers() if value.numel() >= _ROUNDED_BUFFER]
    with torch.no_grad():
        for value in (*matrices, *tables):
            if value.dtype == torch.float32:
                value.copy_(value.half().float())
    return model


def halved(graph: bytes) -> bytes:
    """The same graph, with the constants that half precision holds exactly stored in it: lossless after `rounded`.

    A Cast turns each into float32, which a runtime does once, when it loads the file.
    """
    import numpy as np
    import onnx
    from onnx import numpy_helper

    model = onnx.load_model_from_string(graph)
    nodes = []
    for constant in model.graph.initializer:
        if constant.data_type != onnx.TensorProto.FLOAT:
            continue
        value = numpy_helper.to_array(constant)
        with np.errstate(over="ignore"):
            half = value.astype(np.float16)
        if value.ndim < 2 or not np.array_equal(half.astype(np.float32), value):
            continue
        name = constant.name
        constant.CopyFrom(numpy_helper.from_array(half, f"{name}.half"))
        nodes.append(onnx.helper.make_node("Cast", [f"{name}.half"], [name], to=onnx.TensorProto.FLOAT))
    rest = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*nodes, *rest])
    return bytes(model.SerializeToString())


def single(graph: bytes) -> bytes:
    """The same graph with float32 in the place of float64, for runtimes that lack the latter; t is float32 then.

    Only what depends on t is float64: a schedule's coefficients and the likelihoods of a mixture's clusters. There a
    Sigmoid becomes `1 / (1 + e^-x)`: runtimes approximate it in float32 to 1e-7, and alpha_t may be less than that.
    """
    import numpy as np
    import onnx
    from onnx import numpy_helper

    double, single_ = onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT
    model = onnx.load_model_from_string(graph)

    def narrow(tensor: Any) -> None:
        if tensor.data_type == double:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))

    values = (*model.graph.input, *model.graph.output, *model.graph.value_info)
    doubles = {value.name for value in values if value.type.tensor_type.elem_type == double}
    nodes = []
    for node in model.graph.node:
        exact = node.op_type == "Sigmoid" and node.input[0] in doubles
        nodes.extend(_sigmoid(node.input[0], node.output[0]) if exact else [node])
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    for constant in model.graph.initializer:
        narrow(constant)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                narrow(attribute.t)
            elif (node.op_type, attribute.name, attribute.i) == ("Cast", "to", double):
                attribute.i = single_
    for value in values:
        if value.name in doubles:
            value.type.tensor_type.elem_type = single_
    return bytes(model.SerializeToString())


def _sigmoid(x: str, y: str) -> list[Any]:
    """Nodes of `y = 1 / (1 + e^-x)`."""
    import numpy as np
    from onnx import helper, numpy_helper

    return [
        helper.make_node("Constant", [], [f"{y}.one"], value=numpy_helper.from_array(np.ones((), np.float32))),
        helper.make_node("Neg", [x], [f"{y}.minus"]),
        helper.make_node("Exp", [f"{y}.minus"], [f"{y}.exp"]),
        helper.make_node("Add", [f"{y}.one", f"{y}.exp"], [f"{y}.sum"]),
        helper.make_node("Reciprocal", [f"{y}.sum"], [y]),
    ]


def with_facts(graph: bytes, description: str, facts: dict[str, Any]) -> bytes:
    """The graph with a description and, as JSON, facts in its metadata."""
    import onnx

    model = onnx.load_model_from_string(graph)
    model.producer_name, model.doc_string = "lightning-diffusion", description
    onnx.helper.set_model_props(model, {name: json.dumps(value) for name, value in facts.items()})
    return bytes(model.SerializeToString())


def write_onnx(
    out: Path, denoiser: Denoiser, codec: Codec | None, shape: Sequence[int], times: Tensor, facts: dict[str, Any]
) -> list[Path]:
    """Writes the denoiser, and of a model of latents its decoder into a second file, `X_decoder.onnx`.

    Args:
        out: the denoiser's file.
        denoiser: of a checkpoint.
        codec: its autoencoder; None for a model of data.
        shape: of one sample.
        times: the model's own grid, whose alpha_t and sigma_t go into the metadata.
        facts: where the model comes from.

    Returns:
        The files that were written.

    Raises:
        ConfigError: a graph cannot do what the model does, or would not equal it; nothing is written then.
    """
    seen = tuple(shape) if codec is None else codec.latent_shape
    leveled = getattr(getattr(denoiser, "network", None), "embed_condition_level", None) is not None
    alpha, sigma = denoiser.schedule(times)
    facts = facts | {"times": times.tolist(), "alpha": alpha.tolist(), "sigma": sigma.tolist()}
    graph = denoiser_graph(denoiser, seen, leveled)
    files = {out: with_facts(graph, "x0 = D(x_t, t), the mean of the data given x_t = alpha_t x0 + sigma_t eps", facts)}
    if codec is not None:
        graph = decoder_graph(codec)
        files[out.with_name(f"{out.stem}_decoder.onnx")] = with_facts(graph, "x, the image that latents z show", {})
    for path, content in files.items():
        with atomic(path) as file:
            file.write(content)
    return list(files)
