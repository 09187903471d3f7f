"""Model folders on the Hub (https://huggingface.co)."""

import re
from collections.abc import Mapping
from pathlib import Path

from diffusion.build import ConfigError
from diffusion.exchange import strict
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


def card_of(checkpoint: Checkpoint, name: str, weights: str) -> dict[str, bytes]:
    """The files of a model card: a README.md, made of the run's configuration and of the scores of these weights at
    this step if they were evaluated, and the newest picture that was drawn from it.

    Raises:
        ConfigError: the file of scores is damaged.
    """
    record = checkpoint.folder / "metrics.json"
    found = strict.read(record) if record.exists() else {}
    scores = found.get("scores", {})
    if not isinstance(scores, Mapping) or not all(isinstance(row, Mapping) for row in scores.values()):
        raise ConfigError(f"{record} is damaged: score the run again, or remove that file")
    if (found.get("step"), str(found.get("weights"))) != (checkpoint.step, weights):
        scores = {}
    pictures = [file for file in (checkpoint.folder / "samples").glob("*.png") if file.is_file()]
    newest = max(pictures, key=lambda file: file.stat().st_mtime_ns, default=None)
    text = card(name, checkpoint.config, checkpoint.step, weights, scores, PICTURE if pictures else None)
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
