"""A run as one web page, `index.html` in its folder: samples, curves, scores, settings, and what to do with it next.

The page needs no other file and no network. Everything in it is read from the run's folder, so it can be written again
whenever there is something new.
"""

import base64
import csv
import html
import json
import shlex
import string
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from diffusion.build import resolve
from diffusion.exchange.card import figure, part_in_words
from diffusion.media import svg
from diffusion.media.atomic import atomic, check_regular
from diffusion.runs.trained import KINDS
from diffusion.terminal.commands import pasted
from diffusion.terminal.progress import counted
from diffusion.trainable import Trainable

REPORT = "index.html"
CONFIG = "config.yaml"
PREVIEW_FILE = Path("samples", "preview.png")  # what a run's samples look like now
MOST_BYTES = 2_000_000  # of a picture in the page
# Charts of the table's columns: a heading, and how the names of those in it begin.
CHARTS = (
    ("Loss", ("train/loss", "val/loss")),
    ("Scores in training", ("val_score/",)),
    ("Gradient norm", ("watch/grad_norm", "train/grad_norm")),  # train/ in older runs
    ("Learning rate", ("watch/lr", "train/lr")),
)
PARTS = ("dataset", "network", "schedule", "denoiser", "objective", "optimizer", "ema", "learning_rate", "sampler")
VALUES = ("batch_size", "lr", "steps", "seed", "condition_dropout", "train_images")
TEMPLATE = Path(__file__).with_suffix(".html")


def write_report(folder: Path, step: int) -> None:
    """Writes the page of a run; warns where that cannot be done, since a page is no reason to fail.

    Args:
        folder: the run's; nothing happens if it holds no configuration.
        step: that it has come to.
    """
    if not (folder / CONFIG).exists():
        return
    try:
        text = page(folder, step)
        with atomic(folder / REPORT) as file:
            file.write(text.encode("utf-8", "backslashreplace"))  # a name of a file may hold bytes that are no text
    except Exception as error:  # whatever is wrong with a file that it reads, the run itself is whole
        reason = " ".join(str(error).split()) or type(error).__name__
        warnings.warn(f"{folder / REPORT} was not written: {reason}", stacklevel=2)


def page(folder: Path, step: int) -> str:
    """The page's text; raises ValueError, OSError or YAMLError where a file of the folder cannot be read."""
    config = yaml.safe_load(_text(folder / CONFIG))
    return string.Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=html.escape(f"{folder.parent.name}/{folder.name}"),
        state=html.escape(_state(config, step)),
        pictures="\n".join(_pictures(folder)),
        curves="\n".join(_charts(folder / "metrics.csv")),
        scores="\n".join(_scores(folder)),
        commands=_commands(folder, config, step),
        parts=_table(_settings(config)),
        config=html.escape(yaml.safe_dump(config, sort_keys=False)),
    )


def _state(config: Mapping[str, Any], step: int) -> str:
    last = config["trainer"].get("max_steps")
    images = step * config["batch_size"] * (config["trainer"].get("accumulate_grad_batches") or 1)
    at = f"Finished at step {step:,}" if _finished(config, step) else f"Stopped at step {step:,}"
    of = "" if last is None or step >= last else f" of {last:,}"
    return f"{at}{of}; {counted(images, 'image')} seen."


def _finished(config: Mapping[str, Any], step: int) -> bool:
    last = config["trainer"].get("max_steps")
    return last is not None and step >= last


def _pictures(folder: Path) -> Iterable[str]:
    """The samples of a model that draws; of another, what its run has drawn of it."""
    paths = [folder / PREVIEW_FILE] if (folder / PREVIEW_FILE).exists() else sorted(folder.glob("*.png"))
    for path in paths:
        check_regular(path)
        if path.stat().st_size <= MOST_BYTES:
            content, name = base64.b64encode(path.read_bytes()).decode(), html.escape(path.stem)
            yield f'<img src="data:image/png;base64,{content}" alt="{name}">'


def _charts(path: Path) -> Iterable[str]:
    """A heading and a chart for each kind of figure that the table has."""
    columns: dict[str, list[tuple[float, float]]] = {}
    if path.is_file():
        for row in csv.DictReader(_text(path).splitlines()):
            for name, value in row.items():
                if value and name != "step":
                    columns.setdefault(name, []).append((float(row["step"]), float(value)))
    for heading, beginnings in CHARTS:
        named = {name: points for name, points in columns.items() if name.startswith(beginnings)}
        # Losses share a unit; scores have units of their own, so each has its own chart.
        groups = [named] if heading == "Loss" else [{name: points} for name, points in named.items()]
        charts = (svg.curves(group, "optimizer step", logarithmic=heading == "Loss") for group in groups)
        drawn = [chart for chart in charts if chart]
        if drawn:
            yield "\n".join([f"<h2>{heading}</h2>", *drawn])


def _scores(folder: Path) -> Iterable[str]:
    """What `evaluate.py` found, a table for each split."""
    for path in sorted(folder.glob("metrics*.json")):
        record = json.loads(_text(path))
        split = path.stem.removeprefix("metrics").lstrip("_") or "test"
        rows = [
            (name, figure(row, "samples"), figure(row, "real"), figure(row, "noisy"))
            for name, row in record.get("scores", {}).items()
        ]
        heads = ("", "samples", "real training data", "with noise")
        likelihoods = [
            (f"likelihood, {kind}", f"{found['value']:.4g} ± {found['standard_error']:.2g} {found['unit']}")
            for kind, found in record.get("likelihood", {}).items()
        ]
        yield f"<h2>Scores against split {html.escape(split)}</h2>"
        if rows:
            drawn = f"{record.get('n')} samples of step {record.get('step')}; [intervals]."
            yield f'<p class="soft">{html.escape(drawn)}</p>'
            yield _table(rows, heads)
        if likelihoods:
            yield _table(likelihoods)


def _commands(folder: Path, config: Mapping[str, Any], step: int) -> str:
    """What to do with the run, as it can be pasted into a shell."""
    spec, kind = pasted(folder), _kind(config)
    lines = []
    if kind in KINDS:
        lines.append((KINDS[kind].use.format(spec), KINDS[kind].purpose))
    if kind == "denoiser":
        lines.append((f"python evaluate.py ckpt={spec}", "score its samples"))
    if _finished(config, step):
        lines.append((f"python train.py resume={spec} trainer.max_steps={2 * step}", "train it as long again"))
    else:
        lines.append((f"python train.py resume={spec}", "go on where it stopped"))
    lines.append((f"tensorboard --logdir {shlex.quote(str(folder))}", "see every curve"))
    width = max(len(command) for command, _ in lines)
    text = "\n".join(f"{command:<{width}}  # {purpose}" for command, purpose in lines)
    return f"<pre>{html.escape(text)}</pre>"


def _kind(config: Mapping[str, Any]) -> str:
    """What people call a model of this configuration."""
    cls = resolve(config["denoiser"]["_target_"], "denoiser")
    return cls.kind if issubclass(cls, Trainable) else ""


def _settings(config: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    for name in PARTS:
        part = config.get(name)
        if isinstance(part, Mapping):
            yield name, part_in_words(part) if "_target_" in part else str(part.get("name", ""))
    for name in VALUES:
        if config.get(name) is not None:
            yield name, str(config[name])


def _table(rows: Iterable[tuple[str, ...]], heads: tuple[str, ...] = ()) -> str:
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in heads)
    body = ("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return "\n".join(['<div class="wide"><table>', *([f"<tr>{head}</tr>"] if heads else []), *body, "</table></div>"])


def _text(path: Path) -> str:
    check_regular(path)
    return path.read_text(encoding="utf-8", errors="replace")
