"""`compile=true`: what the network computes in training, compiled by torch.compile, once."""

import types
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from diffusion.build import ConfigError
from diffusion.trainable import Trainable


def compile_network(model: Trainable) -> None:
    """Compiles, in place, what the model's network computes in training.

    Training calls a network in one way only: with gradients, in training mode, on batches of one size. That is one
    graph of static shapes. Validation and sampling have other sizes and modes, each of which would be compiled anew for
    minutes; there the network computes as it does without compiling. The names of its parameters stay as they are. A
    deep copy of the model uses the same compiled graph.

    Raises:
        ConfigError: torch.compile does not support this Python. The first forward pass in training, which compiles,
            raises it where there is no C++ compiler, and for a network that cannot be compiled.
    """
    # Graphs of earlier runs in this process, a sweep's, would count towards torch's limit of recompilations.
    torch.compiler.reset()
    network: nn.Module = model.network
    for name in model.forwards:
        # Bound as a method, so that a deep copy of the network calls itself.
        method = types.MethodType(_compiled_in_training(getattr(type(network), name)), network)
        setattr(network, name, method)


def _compiled_in_training(forward: Callable[..., Any]) -> Callable[..., Any]:
    try:
        compiled = torch.compile(forward, fullgraph=True, dynamic=False)
    except RuntimeError as error:  # a Python that torch.compile does not support
        raise ConfigError(f"compile=true is not possible here: {_first_line(error)}; leave compile out") from error

    def compiled_in_training(module: nn.Module, *inputs: Any) -> Any:
        if not (module.training and torch.is_grad_enabled()):
            return forward(module, *inputs)
        try:
            return compiled(module, *inputs)
        except torch._dynamo.exc.TorchDynamoException as error:
            if "C++ compiler" in str(error):
                raise ConfigError(
                    "compile=true needs a C++ compiler, and PyTorch finds none: install one, such as g++, or leave "
                    "compile out"
                ) from error
            raise ConfigError(
                f"compile=true: torch.compile refuses {type(module).__name__} ({_first_line(error)}): leave compile out"
            ) from error

    return compiled_in_training


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
