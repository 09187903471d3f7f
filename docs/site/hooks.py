"""What the site does beyond Markdown.

Formulas become MathML, so that a page needs no script from elsewhere, and the notebook becomes a page with the outputs
that are stored in it.
"""

import html
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

NOTEBOOK, ITS_PAGE = "sampling.ipynb", "notebook.md"
_FORMULA = re.compile(
    r'<(span|div) class="arithmatex">\s*(?:\\\((?P<inline>.*?)\\\)|\\\[(?P<block>.*?)\\\])\s*</\1>', re.DOTALL
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The files of the site, with the notebook's page."""
    notebook = json.loads(Path(config.docs_dir, NOTEBOOK).read_text(encoding="utf-8"))
    files.append(File.generated(config, ITS_PAGE, content="\n\n".join(parts(notebook))))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """A page whose links to the notebook lead to the notebook's page."""
    return markdown.replace(f"({NOTEBOOK})", f"({ITS_PAGE})")


def on_page_content(content: str, **_: object) -> str:
    """A page with its formulas as MathML."""
    return _FORMULA.sub(_formula, content)


def parts(notebook: dict[str, Any]) -> Iterator[str]:
    """The cells of a notebook and what they show, in Markdown."""
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        yield source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```"
        for output in cell.get("outputs", ()):
            data = output["data"]
            if "image/png" in data:
                yield f"![what it shows](data:image/png;base64,{data['image/png']})"
            else:
                yield "```\n{}\n```".format("".join(data["text/plain"]))


def _formula(found: re.Match[str]) -> str:
    inline = found["inline"] is not None
    text = html.unescape(found["inline"] if inline else found["block"]).strip()
    formula = convert(text, display="inline" if inline else "block")
    return formula if inline else f'<div class="formula">{formula}</div>'
