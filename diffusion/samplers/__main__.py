"""Every sampler with its order, whether it is stochastic, its calls of the denoiser a step, and its source.

python -m diffusion.samplers
"""

import inspect
import re
from pathlib import Path

import yaml

from diffusion.build import INSTALLED, build
from diffusion.samplers.base import Sampler
from diffusion.terminal import streams

CONFIGS = Path(__file__).parents[1 if INSTALLED else 2] / "configs" / "sampler"


def source(sampler: Sampler) -> str:
    """What its docstring cites: `Song et al. 2021, arXiv 2010.02502, eq. 12 and 16`; "-" if it cites nothing."""
    text = " ".join((inspect.getdoc(sampler) or "").split())
    cited = re.search(r"\(([^()]*arXiv \d{4}\.\d{5}[^()]*)\)", text)
    return cited[1] if cited else "-"


def table(configs: Path = CONFIGS) -> str:
    """One line for each file of `configs`, in the columns' order.

    Raises:
        FileNotFoundError: there are no such files: the project is read from its checkout.
    """
    rows = [("sampler", "order", "stochastic", "calls", "settings", "source")]
    for path in sorted(configs.glob("*.yaml")):
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        sampler: Sampler = build(config, path.stem)
        settings = ", ".join(f"{key}={value}" for key, value in config.items() if key != "_target_") or "-"
        calls = str(sampler.calls) if sampler.calls else "varies"
        row = (path.stem, str(sampler.order), "yes" if sampler.stochastic else "no", calls, settings)
        rows.append((*row, source(sampler)))
    if len(rows) == 1:
        raise FileNotFoundError(f"no samplers in {configs}: run this in a checkout of the project")
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, "", "order 0: a bias stays, however many steps are taken"])


if __name__ == "__main__":
    streams.protect()
    print(table())
