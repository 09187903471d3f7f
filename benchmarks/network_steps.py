"""One network in training and in sampling, as the benchmarks time it."""

import copy
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from subjects import Shape
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from diffusion.denoisers import EpsPreconditioner, NetworkDenoiser
from diffusion.objectives import DenoisingObjective, SimpleWeighting, UniformTimes
from diffusion.schedules import LinearSchedule
from diffusion.training.compiling import compile_network
from diffusion.training.static import StaticStep

MODES = ("eager", "captured", "compiled", "compiled, captured")


class Subject:
    """The same training step around any network: objective with its random numbers, backward pass, clipping, AdamW,
    an average of the weights.

    Args:
        network: F, shaped like x.
        shape: of one image.
        count: images of a batch.
        device: "cpu" or "cuda".
        bf16: the network under autocast to bfloat16.
        mode: one of `MODES`.
    """

    def __init__(self, network: nn.Module, shape: Shape, count: int, device: str, bf16: bool, mode: str) -> None:
        self.device, self.count = torch.device(device), count
        self.model = NetworkDenoiser(network, LinearSchedule(), EpsPreconditioner()).to(self.device)
        average = copy.deepcopy(self.model).requires_grad_(False)
        if "compiled" in mode:
            compile_network(self.model)
        index = torch.arange(count, device=self.device)
        self.x = torch.rand(count, *shape, device=self.device) * 2 - 1

        def autocast() -> AbstractContextManager[Any]:
            return torch.autocast(self.device.type, torch.bfloat16, enabled=bf16, cache_enabled=False)

        self.autocast = autocast
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=2e-4, fused=True)
        self.step = StaticStep(
            self.model.train(),
            DenoisingObjective(UniformTimes(), SimpleWeighting()),
            optimizer,
            [average],
            {"x": self.x, "serial": index},
            batches=1,
            clip=1.0,
            seed=0,
            autocast=autocast,
        )
        self.step.fill(1, [2e-4], [1e-3])
        begun = time.perf_counter()
        if "captured" in mode:
            self.step.capture()
        else:
            self.step.find_trained()
        self.step.waited()
        self.first_s = time.perf_counter() - begun

    def train(self) -> None:
        """One step, until the device has done it."""
        self.step.waited()

    @torch.no_grad()
    def call(self) -> None:
        """What sampling does most: one call of the denoiser, until the device has done it."""
        with self.autocast():
            found: Tensor = self.model.eval()(self.x, torch.tensor(0.5, dtype=torch.float64))
        self.model.train()
        found.sum().item()

    def gigaflops(self) -> float:
        """Of one image in one eager step: multiplications and additions of convolutions and matrix products."""
        # Attention as matrix products: the counter does not know the CPU's fused kernel.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            self.step.accumulate()
        return counter.get_total_flops() / self.count / 1e9

    def operations(self, steps: int) -> dict[str, tuple[float, float]]:
        """By name, calls and milliseconds in a step, the mean of so many; time in nested operations is not counted."""
        with profile() as profiled:
            for _ in range(steps):
                self.train()
        on_cpu = self.device.type == "cpu"
        return {
            event.key: (
                event.count / steps,
                (event.self_cpu_time_total if on_cpu else event.self_device_time_total) / steps / 1e3,
            )
            for event in profiled.key_averages()
            if event.device_type == DeviceType.CPU  # a GPU's kernels are listed again beside what launched them
        }

    def launches(self) -> int:
        """Operations of one eager step as torch dispatches them: about the kernels that a GPU is given."""
        with _Counter() as counter:
            self.step.accumulate()
            self.step.update()
        return counter.count


class _Counter(TorchDispatchMode):
    """Counts operations; views, which launch nothing, are left out."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


def peak_gigaflops(device: str, bf16: bool, seconds: float = 1.0, n: int = 2048) -> float:
    """What the device's own product of two n x n matrices reaches, in GFLOP/s."""
    dtype = torch.bfloat16 if bf16 else torch.float32
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))

    def products(times: int) -> float:
        begun = time.perf_counter()
        for _ in range(times):
            product = a @ b
        product[0, 0].item()
        return time.perf_counter() - begun

    products(2)
    times = max(2, int(seconds / (products(2) / 2)))
    return 2 * n**3 * times / products(times) / 1e9


def mean_seconds(function: Callable[[], None], seconds: float) -> float:
    """Of one call: the mean of those that fit into so many seconds, at least two."""
    begun, done = time.perf_counter(), 0
    while done < 2 or time.perf_counter() - begun < seconds:
        function()
        done += 1
    return (time.perf_counter() - begun) / done
