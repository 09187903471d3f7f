"""The page that --help prints, as wide as the terminal."""

import textwrap
from collections.abc import Mapping, Sequence

from diffusion.terminal.streams import columns

_COLUMN = 42  # where comments begin on a wide terminal


def page(command: str, usage: str, groups: Mapping[str, Sequence[str]], config: str) -> str:
    """Usage, the groups with their choices, the settings with their comments.

    Args:
        command: "python train.py".
        usage: heads the page.
        groups: name -> choices.
        config: the text of the script's file in configs/, whose settings follow its first empty line.
    """
    screen, width = columns(), max(map(len, groups), default=0)
    theirs = "; those of a group by its name and theirs: sampler.eta=0.5"
    chosen = [_filled(f"{name:<{width}}  {' '.join(choices)}", screen, width + 4) for name, choices in groups.items()]
    lines = [
        line for line in config.partition("\n\n")[2].partition("\nhydra:")[0].splitlines() if "_target_" not in line
    ]
    column, under = (_COLUMN, _COLUMN + 3) if screen >= 100 else (0, 6)
    split = [line.partition(" # ")[::2] for line in lines]
    settings = [_filled(f"{setting:<{column}} {comment}".rstrip(), screen, under) for setting, comment in split]
    return "\n".join(
        [
            usage.strip(),
            *(["\nGroups, chosen by name: sampler=ddim", *chosen] if groups else []),
            "\nSettings, by name: seed=1" + (theirs if groups else ""),
            *settings,
            f"\n{command} [name=value ...] --cfg job prints every setting that these make.",
        ]
    )


def _filled(text: str, width: int, under: int) -> str:
    """Text in lines of this width, those after the first indented by so many columns."""
    return textwrap.fill(text, width, initial_indent="  ", subsequent_indent=" " * under, break_on_hyphens=False)
