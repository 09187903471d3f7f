"""What the scripts at the top share: composing the configuration, and one clear line for whatever goes wrong."""

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

CONFIGS = Path(__file__).parent / "configs"


def run(script: Callable[[Any], Any], config_name: str) -> None:
    """Runs `script(config)` under Hydra and turns errors into one line on stderr and a non-zero exit status.

    HYDRA_FULL_ERROR=1 in the environment shows tracebacks instead.
    """
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises instead of printing; the printing is done here
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    try:
        hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=config_name)(script)()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:  # the last line of defence: sorted below, and raised again if it is not the user's
        if wants_traceback:
            raise
        if isinstance(error, HydraException | OmegaConfBaseException):
            fail(composition_error(error))
        code = getattr(error, "code", None)
        if type(error).__name__ == "Interrupted" and isinstance(code, int):
            print("saved; go on with: python train.py resume=last", file=sys.stderr)
            sys.exit(code)
        from diffusion.module import TrainingDiverged

        if isinstance(error, ValueError | OSError | TrainingDiverged):
            fail(" ".join(str(error).split()))
        raise


def fail(message: str) -> None:
    """Prints the line and exits with status 1."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(1)


def composition_error(error: BaseException) -> str:
    """Hydra's and OmegaConf's messages as one line, with the nearest choice for a mistyped name."""
    from diffusion.build import nearest

    text = str(error)
    if missing := re.search(r"Could not find '([^']+)/([^'/]+)'.*?Available options in '[^']+':\s*(.*?)(?:\nConfig search path|$)", text, re.S):
        group, name, choices = missing[1], missing[2], missing[3].split()
        return f"{group}={name} does not exist{nearest(name, choices)} the choices are {', '.join(choices)}".replace("? the", "? The").replace(
            "exist the", "exist; the"
        )
    if key := re.search(r"Could not override '([^']+)'", text):
        names = _all_keys()
        return f"there is no setting {key[1]!r}{nearest(key[1], names)} (python train.py --help lists all; +{key[1]}=... adds one)"
    return " ".join(text.split())


def _all_keys() -> list[str]:
    """Every dotted key of every configuration, for the nearest one."""
    from omegaconf import OmegaConf

    keys: set[str] = set()
    for path in CONFIGS.rglob("*.yaml"):
        relative = path.relative_to(CONFIGS)
        prefix = "" if relative.parent == Path() else f"{relative.parts[0]}."
        keys |= {f"{prefix}{key}" for key in OmegaConf.load(path)}
    return sorted(keys)
