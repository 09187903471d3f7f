"""The page of a run: what it shows, that it needs nothing else, and that it ends no run."""

import json
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
import yaml
from support.scripts import TINY, call
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import evaluate
import train
from diffusion.build import ConfigError
from diffusion.evaluation.commands import _furthest
from diffusion.evaluation.record import headline, scores_of, write_scores
from diffusion.media.atomic import WriteError
from diffusion.runs import report
from diffusion.runs.checkpoints import Checkpoint
from diffusion.runs.report import page, write_report

CONFIG = {
    "batch_size": 16,
    "lr": 0.001,
    "seed": 0,
    "dataset": {"name": "photos", "path": "<img src=x onerror=alert(1)>"},
    "denoiser": {"_target_": "diffusion.denoisers.NetworkDenoiser"},
    "trainer": {"max_steps": 100, "accumulate_grad_batches": 2},
}
METRICS = "step,train/loss,val/loss\n50,0.5,\n100,0.25,\n100,,0.3\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run of 100 steps as training leaves it, without its checkpoints."""
    made = tmp_path / "photos" / "version_0"
    (made / "samples").mkdir(parents=True)
    (made / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    (made / "metrics.csv").write_text(METRICS)
    (made / report.PREVIEW_FILE).write_bytes(b"\x89PNG")
    return made


def events_of(run: Path) -> EventAccumulator:
    events = EventAccumulator(str(run))
    events.Reload()
    return events


class Elements(HTMLParser):
    """The elements of a page and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_has_picture_curves_settings_and_commands_and_needs_no_other_file(folder: Path) -> None:
    elements = Elements(page(folder, 100))
    assert elements.sources == ["data:image/png;base64,iVBORw=="]
    assert "script" not in elements.tags
    assert elements.tags.count("polyline") == 1  # of the training loss; the one validation is a point
    assert elements.tags.count("circle") == 1
    for said in ("Finished at step 100; 3200 images seen.", "NetworkDenoiser()", "max_steps: 100"):
        assert said in elements.text


def test_a_run_that_was_stopped_shows_how_to_go_on_and_a_finished_one_how_to_train_longer(folder: Path) -> None:
    stopped = Elements(page(folder, 60)).text
    assert "Stopped at step 60 of 100" in stopped
    assert re.search(rf"^python train\.py resume={re.escape(str(folder))} +#", stopped, re.MULTILINE)
    assert f"python train.py resume={folder} trainer.max_steps=200" in Elements(page(folder, 100)).text


def test_what_stands_in_files_is_text_and_never_markup(folder: Path) -> None:
    (folder / "metrics.csv").write_text("step,val_score/<b>\n1,0.5\n2,0.25\n")
    (folder / "metrics_<i>.json").write_text(json.dumps({"scores": {"<u>": {"samples": {"value": 1.5}}}, "n": "<s>"}))
    elements = Elements(page(folder, 100))
    assert not {"b", "i", "u", "s"} & set(elements.tags)
    assert elements.tags.count("img") == 1
    for shown in ("<img src=x onerror=alert(1)>", "val_score/<b>", "<u>", "<i>", "<s>"):
        assert shown in elements.text


def test_scores_of_each_split_and_likelihoods_are_tables(folder: Path) -> None:
    rows = {"frechet_random_n2000": {"samples": {"value": 1.234567, "low": 1.0, "high": 1.5}, "real": {"value": 0.5}}}
    vlb = {"value": 3.21, "standard_error": 0.02, "unit": "bits/dim", "n": 256}
    (folder / "metrics.json").write_text(json.dumps({"scores": rows, "likelihood": {"vlb": vlb}, "n": 2000, "step": 7}))
    text = Elements(page(folder, 100)).text
    for said in ("Scores against split test", "2000 samples of step 7", "1.235 [1, 1.5]", "3.21 ± 0.02 bits/dim"):
        assert said in text


def test_no_line_ends_inside_a_figure_of_the_scores_on_a_narrow_screen(folder: Path) -> None:
    (folder / "metrics.json").write_text(json.dumps({"scores": {"density_random_n500": {}}, "n": 500, "step": 7}))
    made = page(folder, 100)
    (scores,) = re.findall(r'<div class="scores">(.*?)<h2>What next', made, re.DOTALL)
    assert "density_random_n500" in scores
    assert ".scores :is(th, td) { white-space: nowrap; }" in made


@pytest.mark.parametrize("spoil", ["config.yaml", "metrics.csv", "metrics.json"])
def test_a_damaged_file_is_a_warning_and_no_error(spoil: str, folder: Path) -> None:
    (folder / spoil).write_bytes(b"step,a\n1,x\n: [\xff")
    with pytest.warns(UserWarning, match=r"index\.html was not written: .+"):
        write_report(folder, 100)
    assert not (folder / "index.html").exists()


def test_a_full_disk_under_the_page_is_a_warning_and_no_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path) -> None:
        raise WriteError(f"cannot write {path}: No space left on device")

    monkeypatch.setattr(report, "atomic", full)
    with pytest.warns(UserWarning, match="No space left"):
        write_report(folder, 100)


def test_a_folder_that_is_no_run_gets_no_page(tmp_path: Path) -> None:
    write_report(tmp_path, 1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("group", ["watch", "train"])  # the second in older runs
def test_rates_and_gradients_have_charts_under_either_name(group: str, folder: Path) -> None:
    (folder / "metrics.csv").write_text(f"step,{group}/lr,{group}/grad_norm\n50,0.1,2\n100,0.2,3\n")
    report.write_report(folder, 100)
    page = (folder / "index.html").read_text()
    assert all(f"<h2>{heading}</h2>" in page for heading in ("Learning rate", "Gradient norm"))


def test_a_run_leaves_its_page_and_an_evaluation_adds_its_scores(tmp_path: Path) -> None:
    outcome = call(train, tmp_path, *TINY, "accelerator=cpu", "preview_every=2")
    assert outcome.code == 0, outcome.err
    run = Path("lightning_logs", "digits", "version_0")
    assert f"all of it on a page:  {run / 'index.html'}" in outcome.out
    written = tmp_path / run / "index.html"
    before = Elements(written.read_text())
    assert "Finished at step 4; 64 images seen." in before.text
    assert len(before.sources) == 1
    command = next(line for line in before.text.splitlines() if line.startswith("python evaluate.py"))
    _, _, *arguments = shlex.split(command, comments=True)
    small = ("n=100", "steps=2", "extractors=random", "cache=null", "accelerator=cpu")
    assert call(evaluate, tmp_path, *arguments, *small).code == 0
    after = Elements(written.read_text()).text
    assert "frechet_random_n100" in after and "Finished at step 4" in after
    # An older checkpoint does not make the run one that was stopped.
    checkpoints = tmp_path / run / "checkpoints"
    older = torch.load(checkpoints / "best.ckpt", weights_only=True)
    assert _furthest(tmp_path / run, older["global_step"] - 1) == 4
    assert _furthest(tmp_path, 3) == 3
    tags = [tag for kind in ("scalars", "images") for tag in events_of(tmp_path / run).Tags()[kind]]
    assert sorted({tag.partition("/")[0] for tag in tags}) == [
        "train",
        "val",
        "val_loss_by_level",
        "versus_test",
        "watch",
    ]


def test_a_headline_is_of_the_weights_and_the_step_that_were_scored(tmp_path: Path) -> None:
    def found(path: str, step: int = 100, weights: str = "ema") -> str | None:
        return headline(
            scores_of(
                Checkpoint(tmp_path / path, step, {"objective": {}, "dataset": {"name": "digits"}}, {}, None), weights
            )
        )

    record = {"step": 100, "weights": "ema", "scores": {"frechet_n9": {"samples": {"value": 2.0}, "noisy": None}}}
    write_scores(tmp_path, "test", record | {"checkpoint": "elsewhere/a.safetensors"})
    run = "checkpoints/last.ckpt"
    assert found(run) is None  # a folder of that name, and no run
    (tmp_path / "config.yaml").touch()
    assert found(run) == "frechet_n9 2"
    assert found(run, weights="raw") is None
    assert found(run, step=120) is None
    # Beside other models, a file's scores are those that name it.
    assert found("a.safetensors") == "frechet_n9 2"
    assert found("b.safetensors") is None
    for other in ({"checkpoint": "base.safetensors, a.safetensors"}, {"dataset": "mnist"}):
        write_scores(tmp_path, "test", record | {"checkpoint": "a.safetensors"} | other)
        assert found("a.safetensors") is None


@pytest.mark.parametrize("scores", [3, {"a": 1}, {"a": {"samples": {"value": 10**400}}}])
def test_a_damaged_table_of_scores_is_named(tmp_path: Path, scores: object) -> None:
    (tmp_path / "metrics.json").write_text(
        json.dumps({"step": 1, "weights": "ema", "checkpoint": "a.ckpt", "scores": scores})
    )
    with pytest.raises(ConfigError, match=r"metrics.json is damaged: score the run again"):
        scores_of(Checkpoint(tmp_path / "a.ckpt", 1, {}, {}, None), "ema")
