"""Trained models from checkpoints: with the raw weights, or with averaged weights of a width that is chosen here."""

import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeGuard, TypeVar

import torch
from torch import Tensor, nn

from diffusion.build import ConfigError, build, resolve
from diffusion.denoisers import Denoiser, TrainableDenoiser
from diffusion.models import Autoencoder, Codec, PriorDenoiser
from diffusion.optimizers import WIDEST, coefficients, exponent
from diffusion.runs.checkpoints import Checkpoint, load
from diffusion.runs.digests import codec_digest
from diffusion.runs.models import build_codec, build_model
from diffusion.runs.places import CheckpointError
from diffusion.schedules import Schedule
from diffusion.terminal.commands import pasted
from diffusion.trainable import Trainable

# Where a checkpoint has the weights of the codec: `DiffusionModule.objective` is a `LatentObjective`.
CODEC = "objective.codec."
# The largest allowed distance between the average that is put together and the one that was asked for.
FARTHEST = 0.15
# The root mean square of what rounding a snapshot to half precision changes, as a share of each weight.
HALF_PRECISION = 2e-4


class Kind(NamedTuple):
    """The commands of a kind of model, for messages.

    Args:
        name: with its article.
        train: the command that trains one.
        purpose: what a trained one is good for.
        use: the command for that, {} being its run folder.
        note: what else there is to say where another kind is needed.
    """

    name: str
    train: str
    purpose: str
    use: str
    note: str = ""


# By `Trainable.kind`; a model of a kind that is not here trains all the same.
KINDS = {
    "denoiser": Kind("a denoiser", "python train.py", "sample", "python sample.py ckpt={}"),
    "classifier": Kind(
        "a classifier",
        "python train.py experiment=classifier_digits",
        "steer a model by it",
        "python sample.py ckpt=... classifier={} label=3 guidance=2",
    ),
    "autoencoder": Kind(
        "an autoencoder",
        "python train.py experiment=autoencoder_fashion",
        "train in its latents",
        "python train.py experiment=latent_fashion autoencoder={}",
        "its bound is val/elbo_bpd in its run's metrics.csv",
    ),
}

Model = TypeVar("Model", bound=Trainable)


def load_model(
    checkpoint: Checkpoint,
    kind: type[Model] = TrainableDenoiser,  # type: ignore[assignment]
    weights: str | float = "ema",
) -> Model:
    """The model of a checkpoint: frozen, in evaluation mode, on the CPU.

    Args:
        checkpoint: of its run.
        kind: the class that it has to be of.
        weights: "ema" or "raw"; a model trained without EMA has raw weights only, which then serve for both. Of a run
            with `ema=power` also a number: sigma_rel of the average to make from its snapshots, or the whole number of
            a step, for the average of the snapshot that was taken then.

    Raises:
        ConfigError: it is of another kind.
        CheckpointError: its weights do not fit, or are missing.
    """
    width = isinstance(weights, float) and 0 < weights <= WIDEST
    if weights not in ("ema", "raw") and not width and not isinstance(weights, int):
        raise ConfigError(
            f"weights must be ema or raw, or the width of an average, above 0 and at most {WIDEST}, or the step of a "
            f"snapshot, got {weights!r}"
        )
    model = build_model(checkpoint.config)
    if not isinstance(model, kind):
        raise ConfigError(_another_kind(checkpoint, model.kind, kind.kind))
    load_weights(model, checkpoint, weights)
    return model.eval().requires_grad_(False)


def load_denoiser(checkpoint: Checkpoint, weights: str | float) -> tuple[Denoiser, Codec | None]:
    """What draws samples: a checkpoint's denoiser, and its codec if it draws latents; an autoencoder draws them from
    its prior."""
    config = checkpoint.config
    if resolve(config["denoiser"]["_target_"], "denoiser") is not Autoencoder:
        return load_model(checkpoint, weights=weights), stored_codec(checkpoint)
    schedule: Schedule = build(config["schedule"], "schedule")
    return PriorDenoiser(schedule), Codec(load_model(checkpoint, Autoencoder, weights), config["dataset"]["clip"])


def stored_codec(checkpoint: Checkpoint) -> Codec | None:
    """The codec in a checkpoint of a model of latents; None if it is a model of data.

    Raises:
        CheckpointError: its weights are missing, or are not those that the model was trained with.
    """
    stored = checkpoint.config.get("autoencoder")
    if stored is None:
        return None
    codec = build_codec(stored)
    try:
        codec.load_state_dict(checkpoint.part(CODEC))
    except RuntimeError as error:
        raise CheckpointError(f"the autoencoder in {checkpoint.path} does not fit its configuration") from error
    if codec_digest(codec.autoencoder) != stored["digest"]:
        raise CheckpointError(
            f"the autoencoder in {checkpoint.path} is another than the one that the model was trained with"
        )
    return codec


def _another_kind(checkpoint: Checkpoint, found: str, wanted: str) -> str:
    names = [KINDS[kind].name if kind in KINDS else f"a model of the kind {kind}" for kind in (found, wanted)]
    text = f"{checkpoint.path} is {names[0]}, not {names[1]}"
    if wanted in KINDS:
        text += f": train one with {KINDS[wanted].train}"
    if found in KINDS:
        theirs, of_run = KINDS[found], checkpoint.path.parent == checkpoint.folder / "checkpoints"
        named = pasted(checkpoint.folder if of_run else checkpoint.path)
        text += f"; what this is for: {theirs.use.format(named)}" + (theirs.note and f"; {theirs.note}")
    return text


def load_weights(
    model: nn.Module, checkpoint: Checkpoint, weights: str | float = "ema", optional: Sequence[str] = ()
) -> None:
    """Puts a checkpoint's weights into a model.

    Args:
        model: into which they go.
        checkpoint: that has them.
        weights: see `load_model`.
        optional: names of those that one of the two may lack: the checkpoint's are left, and the model's become zero.

    Raises:
        CheckpointError: they have other names or shapes.
    """
    averaged = weights != "raw" and any(key.startswith("ema.") for key in checkpoint.state)
    chosen = checkpoint.part("ema." if averaged else "denoiser.")
    if not chosen:
        raise CheckpointError(f"{checkpoint.path} holds only averaged weights: leave weights={weights} out")
    names = [name for name, _ in model.named_parameters()]
    if isinstance(weights, float):
        chosen |= _average(checkpoint, weights, names)
    elif isinstance(weights, int):
        chosen |= _earlier(checkpoint, weights, names)
    own = model.state_dict()
    for name in optional:
        if name not in own:
            chosen.pop(name, None)
        elif name not in chosen:
            chosen[name] = torch.zeros_like(own[name])
    try:
        model.load_state_dict(chosen)
    except RuntimeError as error:
        reason = textwrap.shorten(" ".join(str(error).splitlines()[1:2]), 160, placeholder=" ...")
        raise CheckpointError(f"the weights in {checkpoint.path} do not fit this network: {reason}") from error


def _average(checkpoint: Checkpoint, sigma_rel: float, names: Sequence[str]) -> dict[str, Tensor]:
    """The parameters averaged over this width, from the checkpoint's own averages and the snapshots taken before it."""
    config, step = checkpoint.config.get("ema"), checkpoint.step
    widths = config.get("sigma_rels") if isinstance(config, Mapping) else None
    if not isinstance(widths, list):
        raise CheckpointError(
            f"weights={sigma_rel} is an average whose width is chosen after training, which needs a run with "
            f"ema=power; {checkpoint.path} has weights=ema and weights=raw alone"
        )
    gammas, wanted = [exponent(width) for width in widths], exponent(sigma_rel)
    own = [checkpoint.part(prefix) for prefix in ("ema.", *(f"other_emas.{i}." for i in range(len(widths) - 1)))]
    if not all([*own, checkpoint.part("denoiser.")]):
        raise CheckpointError(f"{checkpoint.path} holds only one set of weights: leave weights={sigma_rel} out")
    folder = checkpoint.folder / "averages"
    before = sorted(
        int(file.stem) for file in folder.glob("*.pt") if re.fullmatch(r"[1-9]\d*", file.stem) and int(file.stem) < step
    )
    steps = [taken for taken in [*before, step] for _ in widths]
    c, error = coefficients(steps, gammas * (len(before) + 1), step, wanted)
    error += HALF_PRECISION * c[: len(before) * len(widths)].norm().item()
    if error > FARTHEST:
        raise CheckpointError(
            f"weights={sigma_rel} is out of reach: the averages {widths} in the checkpoint and the {len(before)} "
            f"snapshots of them in {folder} miss it by {100 * error:.0f} %, more than {100 * FARTHEST:.0f} %"
        )
    parts = [part for taken in before for part in _snapshot(folder / f"{taken}.pt", own, names)] + own
    sums = {name: sum(c_i * part[name].double() for c_i, part in zip(c, parts, strict=True)) for name in names}
    return {name: value.to(own[0][name].dtype) for name, value in sums.items()}


def _earlier(checkpoint: Checkpoint, step: int, names: Sequence[str]) -> dict[str, Tensor]:
    """The parameters in the snapshot of this step, of the average that the checkpoint calls "ema"."""
    folder, own = checkpoint.folder / "averages", checkpoint.part("ema.")
    taken = sorted(int(file.stem) for file in folder.glob("*.pt") if file.stem.isdecimal())
    if step not in taken or not own:
        have = f"there are {', '.join(map(str, taken))}" if taken and own else "a run with ema=power takes them"
        raise CheckpointError(f"weights={step} is a step at which {folder} has no snapshot: {have}")
    config = checkpoint.config["ema"]
    others = [checkpoint.part(f"other_emas.{i}.") for i in range(len(config["sigma_rels"]) - 1)]
    average = _snapshot(folder / f"{step}.pt", [own, *others], names)[0]
    return {name: average[name].to(own[name].dtype) for name in names}


def is_real(value: object) -> TypeGuard[Tensor]:
    """Whether it is a tensor of floating-point numbers."""
    return isinstance(value, Tensor) and value.is_floating_point()


def _snapshot(file: Path, own: Sequence[Mapping[str, Tensor]], names: Sequence[str]) -> list[dict[str, Tensor]]:
    """The averages in a snapshot, which have to be those of the checkpoint's network."""
    found = load(file)
    averages = found.get("averages") if isinstance(found, dict) else None
    if not isinstance(averages, list) or not all(isinstance(part, dict) for part in averages):
        averages = []
    shapes = [{name: part[name].shape for name in names} for part in own]
    if shapes != [{name: value.shape for name, value in part.items() if is_real(value)} for part in averages]:
        raise CheckpointError(f"{file} holds no averages of this checkpoint's weights")
    if not all(part[name].isfinite().all() for part in averages for name in names):
        raise CheckpointError(f"{file} has weights that are not finite")
    return averages
