"""Paths inside the commands that are printed: in the quotes that the shell and Hydra's parser need."""

import re
import shlex
from pathlib import Path


def quoted(path: str) -> str:
    """A path in Hydra's quotes, where every character stands for itself but an interpolation's `${`."""
    # Inside these quotes a backslash is one, unless a quote follows it.
    escaped = re.sub(r'(\\*)("|$)', lambda found: found[1] * 2 + ('\\"' if found[2] else ""), path)
    return f'"{escaped}"'


def pasted(path: str | Path) -> str:
    """A path as the value of a setting in a command to paste into a shell: `resume={pasted(folder)}`."""
    text = str(path)
    if "${" in text:
        text = quoted(text.replace("${", r"\${"))
    elif "," in text or text[:1] in ("[", '"', "'"):  # Hydra takes a bare one for several values, or for quotes
        text = quoted(text)
    return shlex.quote(text)
