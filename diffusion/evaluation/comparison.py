"""Comparisons as Markdown, LaTeX, CSV and a picture."""

import csv
import io
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from diffusion import media
from diffusion.evaluation.pictures import comparison_picture
from diffusion.evaluation.seeds import Comparison, Mean, Row, mean
from diffusion.media.atomic import atomic, check_regular

NAME = "comparison"  # of the files
OTHERS = ("seeds", "calls", "seconds", "images seen")
FIRST = ("frechet_", "fid_", "sliced_wasserstein_", "vlb ", "ode ")  # scores that are shown where nobody chose
_LATEX = {
    "\\": r"\textbackslash{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\^{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
}


def shown(comparisons: Sequence[Comparison], chosen: Sequence[str] | None) -> list[Comparison]:
    """The comparisons with the scores that are wanted alone, the lowest mean of the first one on top.

    Args:
        comparisons: with all scores.
        chosen: how their names begin, and those without one are left out; ["all"] is each score, None those of `FIRST`,
            or each of a comparison without one of these.

    Raises:
        ValueError: no score has such a name.
    """
    every = list(dict.fromkeys(name for one in comparisons for name in columns(one)))
    beginnings = [""] if chosen == ["all"] else FIRST if chosen is None else chosen
    if chosen not in (None, ["all"]):
        for beginning in beginnings:
            if not beginning or not any(name.startswith(beginning) for name in every):
                raise ValueError(f"scores={beginning}: no score begins so; there are {', '.join(every)}")
    found = []
    for one in comparisons:
        wanted = [name for beginning in beginnings for name in columns(one) if name.startswith(beginning)]
        if not wanted and chosen is None:
            wanted = columns(one)
        rows = [
            replace(row, scores={name: row.scores[name] for name in wanted if name in row.scores}) for row in one.rows
        ]
        if wanted:
            found.append(replace(one, rows=sorted(rows, key=lambda row: _place(row.scores.get(wanted[0])))))
    return found


def _place(values: Sequence[float] | None) -> float:
    """The lowest mean comes first; rows without a finite one come last, in their order."""
    value = math.inf if values is None else mean(values).value
    return value if math.isfinite(value) else math.inf


def columns(comparison: Comparison) -> list[str]:
    """The scores of any row."""
    return list(dict.fromkeys(name for row in comparison.rows for name in row.scores))


def markdown(comparison: Comparison) -> str:
    """A caption, the table, what has to be known to read it."""
    scores = columns(comparison)
    rows = [["", *scores, *OTHERS], ["---"] * (1 + len(scores) + len(OTHERS))]
    rows += [
        [_line(row.name).replace("|", r"\|"), *(_cell(row, score, _plain) for score in scores), *_others(row)]
        for row in comparison.rows
    ]
    lines = [f"| {' | '.join(cells)} |" for cells in rows]
    return "\n".join([f"{caption(comparison)}:", "", *lines, *[f"\n{_line(note)}." for note in comparison.notes]])


def latex(comparison: Comparison) -> str:
    """A table for the package booktabs."""
    scores = columns(comparison)
    head = ["", *scores, *OTHERS]
    lines = [" & ".join(map(_escaped, head)) + r" \\", r"\midrule"]
    for row in comparison.rows:
        cells = [_escaped(row.name), *(_cell(row, score, _in_latex) for score in scores), *map(_escaped, _others(row))]
        lines.append(" & ".join(cells) + r" \\")
    notes = [f"% {_line(note)}" for note in comparison.notes]
    return "\n".join(
        [
            *(r"\begin{table}", r"\centering", rf"\caption{{{_escaped(caption(comparison))}.}}"),
            *(rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}", r"\toprule", *lines, r"\bottomrule", r"\end{tabular}"),
            *(*notes, r"\end{table}"),
        ]
    )


def as_csv(comparisons: Iterable[Comparison]) -> str:
    """One line a row and score, with the bounds of the interval; every number in full."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["judged by", "settings", "score", "mean", "low", "high", *OTHERS])
    for comparison in comparisons:
        for row in comparison.rows:
            for score, values in row.scores.items():
                found = mean(values)
                half = found.half_width
                bounds = [None, None] if half is None else [found.value - half, found.value + half]
                numbers = [found.value, *bounds, found.n, row.calls, row.seconds, row.images]
                writer.writerow([caption(comparison), row.name, score, *numbers])
    return text.getvalue()


def caption(comparison: Comparison) -> str:
    """What the scores are judged by, and what stands in the cells."""
    by = comparison.judged_by
    sizes = f"{by.get('n')} {'data' if 'likelihood' in by else 'samples against as many'} of"
    return f"{sizes} {by.get('dataset')}, split {by.get('split')}; mean and 95 % interval over training seeds"


def write(folder: Path, comparisons: Sequence[Comparison]) -> list[Path]:
    """Writes all comparisons as Markdown, LaTeX and CSV into a folder, and of each a picture; returns the files."""
    texts = {
        ".md": "\n\n".join(map(markdown, comparisons)) + "\n",
        ".tex": "\n\n".join(map(latex, comparisons)) + "\n",
        ".csv": as_csv(comparisons),
    }
    pictures = [
        folder / f"{NAME}{f'_{number}' if len(comparisons) > 1 else ''}.png"
        for number in range(1, 1 + len(comparisons))
    ]
    written = [*(folder / f"{NAME}{suffix}" for suffix in texts), *pictures]
    for path in written:
        check_regular(path)
    for path, text in zip(written, texts.values(), strict=False):
        with atomic(path) as file:
            file.write(text.encode())
    for path, one in zip(pictures, comparisons, strict=True):
        media.save_picture(path, comparison_picture(caption(one), one.rows, columns(one)))
    return written


def _cell(row: Row, score: str, written: Callable[[Mean], str]) -> str:
    """A mean with its interval; with the number of seeds where it is not all of the row's."""
    if score not in row.scores:
        return "-"
    found = mean(row.scores[score])
    return written(found) + (f" ({found.n} seeds)" if found.n < len(row.seeds) else "")


def _others(row: Row) -> list[str]:
    return [
        str(len(row.seeds)),
        "-" if row.calls is None else f"{row.calls:,}",
        "-" if row.seconds is None else f"{row.seconds:.2g}" if row.seconds < 10 else f"{row.seconds:,.0f}",
        "-" if row.images is None else f"{row.images:,.0f}",
    ]


def _digits(found: Mean) -> tuple[str, str | None]:
    """Mean and half-width with two significant digits of the latter."""
    half = found.half_width
    if half is None or not math.isfinite(half) or half == 0:
        return f"{found.value:.4g}", None if half is None else f"{half:.2g}"
    if not 1e-6 < half < 1e6:
        return f"{found.value:.4g}", f"{half:.2g}"
    places = max(0, 1 - math.floor(math.log10(half)))
    return f"{found.value:.{places}f}", f"{half:.{places}f}"


def _plain(found: Mean) -> str:
    value, half = _digits(found)
    return value if half is None else f"{value} ± {half}"


def _in_latex(found: Mean) -> str:
    if not math.isfinite(found.value):
        return str(found.value)
    value, half = (part and re.sub(r"e\+?(-?)0*(\d+)", r" \\cdot 10^{\1\2}", part) for part in _digits(found))
    return f"${value}$" if half is None else rf"${value} \pm {half}$"


def _escaped(text: str) -> str:
    return "".join(_LATEX.get(sign, sign) for sign in _line(text))


def _line(text: str) -> str:
    """The text in one line: names of files can hold line breaks and other control characters."""
    return " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())
