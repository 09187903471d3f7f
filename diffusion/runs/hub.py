"""Model folders on the Hub (https://huggingface.co)."""

import json
import re
from pathlib import Path

from diffusion.build import ConfigError
from diffusion.exchange.card import card
from diffusion.media.atomic import atomic
from diffusion.runs.checkpoints import Checkpoint

PICTURE = "samples.png"


def check_push(name: str) -> None:
    """Raises ConfigError unless this can be a model's name on the Hub, and the package that goes there is installed."""
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name):
        raise ConfigError(f"push={name} must be user/model, of letters, digits, dots, dashes and underscores")
    try:
        import huggingface_hub  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"push={name} needs the package huggingface_hub: pip install huggingface_hub") from error


def add_card(folder: Path, name: str, checkpoint: Checkpoint, weights: str) -> None:
    """Puts a README.md into a model folder, made of the run's configuration, of its scores if it was evaluated, and of
    the newest picture that was drawn from it."""
    record = checkpoint.folder / "metrics.json"
    scores = json.loads(record.read_text(encoding="utf-8")).get("scores", {}) if record.is_file() else {}
    drawn = sorted((checkpoint.folder / "samples").glob("*.png"), key=lambda file: file.stat().st_mtime_ns)
    if drawn:
        with atomic(folder / PICTURE) as file:
            file.write(drawn[-1].read_bytes())
    text = card(name, checkpoint.config, checkpoint.step, weights, scores, PICTURE if drawn else None)
    with atomic(folder / "README.md") as file:
        file.write(text.encode())


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
