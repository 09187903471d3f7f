"""Model folders on the Hub (https://huggingface.co)."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusion.build import ConfigError
from diffusion.exchange.card import card
from diffusion.runs.checkpoints import Checkpoint

PICTURE = "samples.png"


def check_push(name: str) -> None:
    """Raises ConfigError unless this can be a model's name on the Hub, and the package that goes there is installed."""
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name):
        raise ConfigError(f"push={name} must be user/model, of letters, digits, dots, dashes and underscores")
    try:
        from huggingface_hub.utils import validate_repo_id
    except ImportError as error:
        raise ConfigError(f"push={name} needs the package huggingface_hub: pip install huggingface_hub") from error
    try:
        validate_repo_id(name)
    except ValueError as error:
        raise ConfigError(f"push={name} is no name that the Hub takes: {error}") from error


def card_of(
    checkpoint: Checkpoint, name: str, weights: str | float, scores: Mapping[str, Mapping[str, Any]]
) -> dict[str, bytes]:
    """The files of a model card: a README.md, made of the run's configuration and scores, and the newest picture in the
    samples of its folder, unless files of other models may lie there.

    Args:
        checkpoint: of the model.
        name: of the model on the Hub.
        weights: which of the run's.
        scores: of them; empty if there are none.
    """
    samples = [] if checkpoint.alone else (checkpoint.folder / "samples").glob("*.png")
    pictures = [file for file in samples if file.is_file()]
    newest = max(pictures, key=lambda file: file.stat().st_mtime_ns, default=None)
    origin = "taken over from a folder of diffusers"
    if "objective" in checkpoint.config:
        origin = f"{checkpoint.name_of(weights)} weights of step {checkpoint.step}, trained with lightning-diffusion"
    text = card(name, checkpoint.config, origin, scores, None if newest is None else PICTURE)
    return {"README.md": text.encode()} | ({} if newest is None else {PICTURE: newest.read_bytes()})


def push(folder: Path, name: str) -> str:
    """Uploads a folder; returns its address.

    Raises:
        OSError: the Hub is out of reach, or refuses.
    """
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        address = api.create_repo(name, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder)
    except Exception as error:  # the HTTP library differs between versions, and so do its errors
        reason = " ".join(str(error).split())[:200]
        raise OSError(
            f"push={name} failed ({reason}); {folder} is kept: log in by hf auth login, then hf upload {name} {folder}"
        ) from error
    return str(address)
