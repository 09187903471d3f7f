"""The blocks of the pages."""

import re
from pathlib import Path

BLOCK = re.compile(r"^```(\w+)(?: +(\S+))?\n(.*?)^```$", re.M | re.S)


def blocks(page: str) -> list[tuple[str, str, str]]:
    """(language, caption, text) of each fenced block of a page."""
    return BLOCK.findall((Path(__file__).parents[2] / page).read_text())
