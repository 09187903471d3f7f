"""Which devices there are, and what may be asked of them."""

import os
from collections.abc import Sequence

import torch

from diffusion.settings.devices import check_form
from diffusion.terminal.progress import counted

# On a CPU; each is a copy of the program, and more than a machine has cores gain nothing.
MOST_PROCESSES = 256


def started(here: bool = False) -> int:
    """The number of processes that torchrun has started, or of those on this machine; 1 without torchrun."""
    if "LOCAL_WORLD_SIZE" not in os.environ:  # which Lightning's own launcher does not set
        return 1
    return int(os.environ["LOCAL_WORLD_SIZE" if here else "WORLD_SIZE"])


def has_bf16(accelerator: str = "auto") -> bool:
    """Whether `accelerator=` leads to GPUs whose own arithmetic has bfloat16."""
    cuda = accelerator not in ("cpu", "mps") and torch.cuda.is_available()
    return cuda and torch.cuda.is_bf16_supported(including_emulation=False)


def check_devices(devices: int | str | list[int], accelerator: str = "auto") -> None:
    """Raises ValueError, one line, if `devices=` or `accelerator=` cannot be met on this machine."""
    check_form(devices)
    gpus, mps = torch.cuda.device_count(), torch.backends.mps.is_available()
    usable = {"auto", "cpu"} | ({"gpu", "cuda"} if gpus else set()) | ({"gpu", "mps"} if mps else set())
    if accelerator not in usable:
        here = ", ".join(sorted(usable))
        raise ValueError(f"accelerator={accelerator}: PyTorch finds no such device here; use one of {here}")
    found = gpus if accelerator not in ("cpu", "mps") else 0
    if isinstance(devices, list):
        if not found:
            raise ValueError(
                f"devices={devices} names GPUs, and this machine has none to use; on a CPU give a number of processes "
                f"(devices=2) or leave it out"
            )
        if not devices or len(set(devices)) < len(devices) or not all(0 <= index < found for index in devices):
            raise ValueError(f"devices={devices} must name different GPUs between 0 and {found - 1}")
    elif isinstance(devices, str):
        return
    elif found and devices > found:
        raise ValueError(f"devices={devices}, but this machine has {counted(found, 'GPU')}")
    elif devices > MOST_PROCESSES:
        raise ValueError(f"devices={devices} is as many processes on a CPU: use at most {MOST_PROCESSES}")


def device_names(places: Sequence[str]) -> str:
    """Devices with these names of torch's in words, such as `2 x NVIDIA H100` or `1 x cpu, 4 threads`."""
    place = torch.device(places[0])
    if place.type == "cuda":
        return f"{len(places)} x {torch.cuda.get_device_name(place)}"
    threads = f", {counted(torch.get_num_threads(), 'thread')}" if place.type == "cpu" else ""
    return f"{len(places)} x {place.type}{threads}"


def devices(wanted: int | str | list[int], accelerator: str = "auto") -> list[str]:
    """torch's names of the devices to sample on; on a CPU the same name once for each process, and under torchrun this
    process's device once for each.

    Raises:
        ValueError: this machine does not have them.
    """
    check_devices(wanted, accelerator)
    found = torch.cuda.device_count()
    if (processes := started()) > 1:
        if wanted != "auto":
            raise ValueError(f"devices={wanted}, but torchrun has started {processes} processes: leave it out")
        gpu = found and accelerator not in ("cpu", "mps")
        return [f"cuda:{int(os.environ['LOCAL_RANK']) % found}" if gpu else "cpu"] * processes
    if found and accelerator not in ("cpu", "mps"):
        every = range(found) if isinstance(wanted, str) else range(wanted) if isinstance(wanted, int) else wanted
        return [f"cuda:{index}" for index in every]
    if isinstance(wanted, int) and wanted > 1:
        return ["cpu"] * wanted
    return ["mps" if torch.backends.mps.is_available() and accelerator != "cpu" else "cpu"]
