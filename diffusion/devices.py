"""Which devices there are, and what may be asked of them."""

import torch


def check_devices(devices: int | str | list[int], accelerator: str = "auto") -> None:
    """Raises ValueError, one line, if `devices=` cannot be met on this machine."""
    found = torch.cuda.device_count() if accelerator not in ("cpu", "mps") else 0
    if isinstance(devices, list):
        if not found:
            raise ValueError(
                f"devices={devices} names GPUs, and this machine has none to use; on a CPU give a number of processes "
                f"(devices=2) or leave it out"
            )
        if not devices or not all(0 <= index < found for index in devices):
            raise ValueError(f"devices={devices} must name GPUs between 0 and {found - 1}")
    elif isinstance(devices, str):
        if devices != "auto":
            raise ValueError(f"devices must be auto, a number, or a list of GPU indices like [0,1], got {devices!r}")
    elif devices < 1:
        raise ValueError(f"devices must be at least 1, got {devices}")
    elif found and devices > found:
        raise ValueError(f"devices={devices}, but this machine has {found} GPUs")


def devices(wanted: int | str | list[int]) -> list[str]:
    """torch's names of the devices to sample on; on a CPU the same name once for each process."""
    check_devices(wanted)
    if torch.cuda.is_available():
        indices = wanted if isinstance(wanted, list) else range(torch.cuda.device_count() if wanted == "auto" else int(wanted))
        return [f"cuda:{index}" for index in indices]
    single = "mps" if torch.backends.mps.is_available() else "cpu"
    return ["cpu"] * wanted if isinstance(wanted, int) and wanted > 1 else [single]
