"""Puts a computed table into a page, between its two marks."""

import sys
from pathlib import Path


def put(page: Path, mark: str, text: str) -> None:
    """Replaces what stands between the two lines of a page that are the mark, `<!-- name -->`."""
    parts = page.read_text(encoding="utf-8").split(mark)
    if len(parts) != 3:
        sys.exit(f"error: {page} needs exactly two lines {mark}, between which the table goes")
    page.write_text(f"{parts[0]}{mark}\n{text}\n{mark}{parts[2]}", encoding="utf-8")
