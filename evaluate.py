"""How likely data are under a trained model, in bits per dimension (nats for points).

Examples:
    python evaluate.py ckpt=last                         the variational bound on test data, and where it comes from
    python evaluate.py ckpt=last likelihood=ode          the density of the probability-flow ODE
    python evaluate.py ckpt=3 split=train n=1000         run version_3, its training data
    python evaluate.py ckpt=last steps=50                the bound of sampling in 50 steps
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import cli

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from torch import Tensor

    from data.stream import Examples
    from diffusion.denoisers import Denoiser

# Steps that share a line of the table: from the first number to below the next.
BANDS = (2, 3, 6, 11, 21, 51, 101, 201, 501, 1001, 2001, 5001)


@dataclass
class Options:
    """The plain values of configs/evaluate.yaml with their types and ranges."""

    ckpt: str | int | None
    likelihood: str
    split: str
    n: int | None
    steps: int | None
    tolerance: float | None
    probes: int | None
    seed: int
    weights: str | float
    batch_size: int
    data_dir: str | None

    def __post_init__(self) -> None:
        if self.ckpt in (None, ""):
            raise ValueError("ckpt= is missing: give last (the newest run), a version number, a run folder or a file")
        for name, lowest in {"n": 2, "steps": 1, "probes": 1, "batch_size": 1}.items():
            value = vars(self)[name]
            if value is not None and value < lowest:
                raise ValueError(f"{name} must be at least {lowest}, got {value}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be from 0 to 2**63 - 1, got {self.seed}")
        if self.tolerance is not None:
            if self.likelihood != "ode" or self.steps is not None:
                raise ValueError(
                    "tolerance= is of likelihood=ode, where it takes the place of steps=; leave out the other"
                )
            if not 1e-12 <= self.tolerance <= 0.1:
                raise ValueError(f"tolerance must be from 1e-12 to 0.1, got {self.tolerance}")
        allowed = {"likelihood": ("vlb", "ode"), "split": ("train", "val", "test")}
        for name, choices in allowed.items():
            if vars(self)[name] not in choices:
                raise ValueError(f"{name} must be {' or '.join(choices)}, got {vars(self)[name]!r}")


def main(config: "DictConfig") -> None:
    """Computes and prints the likelihood that was asked for."""
    import torch
    from omegaconf import OmegaConf
    from tqdm import tqdm

    from diffusion import checkpoint
    from diffusion.build import construct
    from diffusion.devices import devices

    plain: Any = OmegaConf.to_container(config, resolve=True)
    options: Options = construct(Options, plain)
    path, contents = checkpoint.find(str(options.ckpt))
    run = contents["config"]
    place = devices("auto")[0].replace("mps", "cpu")  # densities need float64, which Apple's GPUs do not have
    denoiser = checkpoint.trained_denoiser(contents, path, options.weights).to(place)
    size, eight_bit = math.prod(run["dataset"]["shape"]), run["dataset"]["clip"]
    method = bound if options.likelihood == "vlb" else density
    compute = method(denoiser, options, size, eight_bit)
    data = examples(run, options)
    count = len(data) if options.n is None else min(options.n, len(data))
    results, values = [], set()
    for index in tqdm(torch.arange(count).split(options.batch_size), desc="evaluating", leave=False, disable=None):
        x = data.get(index)
        values |= set(x.unique().tolist()) if eight_bit else set()
        cond = {"label": data.labels[index].to(place)} if denoiser.num_classes else {}
        results.append(compute(x.to(place), index.to(place), cond).double().cpu())
    terms = torch.cat(results) / (math.log(2) if eight_bit else 1)
    print(f"{path} at step {contents['global_step']}, {options.weights} weights")
    print(f"{count} samples of {run['dataset']['name']}, split {options.split}")
    if 0 < len(values) < 256:
        print(f"these pixels have {len(values)} different values, not 256: compare with other models of this set alone")
    print(report(terms, options.likelihood, "bits/dim" if eight_bit else "nats/dim"))


def examples(run: dict[str, Any], options: Options) -> "Examples":
    """The part of the run's data that was asked for."""
    from diffusion.build import build

    source = dict(run["dataset"]["source"])
    if options.data_dir is not None:
        name = next((name for name in ("data_dir", "path") if name in source), None)
        if name is None:
            raise ValueError(f"data_dir={options.data_dir}: {run['dataset']['name']} does not come from files")
        source[name] = options.data_dir
    splits = build(source, "dataset.source").load()
    found: Examples = getattr(splits, options.split)
    return found


def bound(denoiser: "Denoiser", options: Options, size: int, eight_bit: bool) -> Any:
    """A function that gives the terms of a batch's variational bounds, (B, steps + 1), in nats per dimension."""
    from diffusion.grids import TrailingGrid
    from diffusion.likelihood import variational_bound
    from diffusion.noise import EVALUATION, Noise

    steps = denoiser.schedule.timesteps if options.steps is None else options.steps
    if steps is None:
        raise ValueError("likelihood=vlb needs noising steps, and this schedule is continuous: set steps=1000, say")
    times = TrailingGrid()(denoiser.schedule, steps)
    denoiser.check_times(times)

    def compute(x: "Tensor", index: "Tensor", cond: dict[str, "Tensor"]) -> "Tensor":
        return variational_bound(denoiser, x, times, Noise(options.seed, index, EVALUATION), eight_bit, cond)

    return compute


def density(denoiser: "Denoiser", options: Options, size: int, eight_bit: bool) -> Any:
    """A function that gives a batch's negative log-densities and the mismatch of the prior, (B, 2), in nats per
    dimension."""
    import torch

    from diffusion.likelihood import check_ode, dequantised, ode_log_density, ode_nll, prior_log_density, prior_term
    from diffusion.noise import EVALUATION, Noise

    check_ode(denoiser)
    if options.probes is None and size > 256:
        raise ValueError(f"probes=null takes a derivative for each of {size} dimensions at each step: set probes=1")
    probes, probe = (1, "exact") if options.probes is None else (options.probes, "rademacher")
    steps = 50 if options.steps is None and options.tolerance is None else options.steps

    def compute(x: "Tensor", index: "Tensor", cond: dict[str, "Tensor"]) -> "Tensor":
        noise = Noise(options.seed, index, EVALUATION)
        x = dequantised(x.double(), noise) if eight_bit else x.double()
        x_1, change = ode_log_density(denoiser, x, noise, steps, probes, probe, cond, options.tolerance)
        nll = ode_nll(prior_log_density(denoiser.schedule, x_1) + change, size, eight_bit)
        return torch.stack((nll, prior_term(denoiser.schedule, x)), dim=1)

    return compute


def report(terms: "Tensor", likelihood: str, unit: str) -> str:
    """The mean over samples with its standard error; below or above it where it comes from."""

    def with_error(values: "Tensor") -> str:
        return f"{values.mean().item():.4f} +- {values.std().item() / math.sqrt(len(values)):.4f} {unit}"

    if likelihood == "ode":
        return (
            f"probability-flow ODE: {with_error(terms[:, 0])} at the schedule's lowest noise\n"
            f"  (the prior is off by at most {terms[:, 1].mean().item():.4f} {unit}, on average)"
        )
    steps = terms.shape[1] - 1
    # Column k is the step from i = steps + 1 - k to i - 1.
    rows = [("prior", terms[:, 0])]
    edges = [*(edge for edge in BANDS if edge <= steps), steps + 1]
    for low, high in reversed(list(pairwise(edges))):
        name = f"steps {high - 1} to {low}" if high > low + 1 else f"step {low}"
        rows.append((name, terms[:, steps + 2 - high : steps + 2 - low].sum(1)))
    rows.append(("step 1, the decoder", terms[:, -1]))
    lines = [f"  {name:<20} {values.mean().item():10.4f}" for name, values in rows]
    return "\n".join([*lines, f"variational bound: {with_error(terms.sum(1))}, {steps} steps"])


def entry() -> None:
    """The command line."""
    cli.run(main, "evaluate", __doc__ or "")


if __name__ == "__main__":
    entry()
