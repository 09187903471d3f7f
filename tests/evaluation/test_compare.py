"""`python compare.py` as a user sees it: what is scored, what is one row, what is written, what is refused."""

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from support.scripts import Outcome, assert_refused, call

import cli
import compare
import evaluate
from diffusion.build import canonical
from diffusion.evaluation import commands
from diffusion.evaluation.comparison import latex, markdown
from diffusion.evaluation.results import flat, saved
from diffusion.evaluation.seeds import Comparison, Row
from diffusion.networks.unet import UNet
from diffusion.sampling import Pipeline

FIXTURES = Path(__file__).parents[1] / "fixtures"
QUICK = ("n=100", "extractors=random", "cache=null", "accelerator=cpu")


def run(folder: Path, number: int, **changes: Any) -> Path:
    """The run folder of a small trained model, with changes to its configuration."""
    checkpoint = torch.load(FIXTURES / "digits.ckpt", weights_only=True)
    for name, value in changes.items():
        *parts, last = name.split("__")
        node = checkpoint["config"]
        for part in parts:
            node = node[part]
        node[last] = value
    place = folder / "lightning_logs" / "digits" / f"version_{number}"
    (place / "checkpoints").mkdir(parents=True)
    torch.save(checkpoint, place / "checkpoints" / "last.ckpt")
    (place / "config.yaml").write_text(yaml.safe_dump(checkpoint["config"]))
    return place


def scored(place: Path, value: float, sampler: str = "DDIMSampler", step: int = 4, **changes: Any) -> None:
    """What evaluate.py writes of a run."""
    record = {
        "dataset": "digits", "split": "test", "checkpoint": str(place / "checkpoints" / "last.ckpt"), "weights": "ema",
        "seed": 0, "sampler": sampler, "eta": 0.0, "times": [1.0, 0.5, 0.0], "n": 180, "real": "ab", "step": step,
        "grid": {"_target_": "diffusion.samplers.TrailingGrid"}, "calls_per_sample": 2, "seconds": 0.5,
        "device": "1 x cpu", "extractors": {"random": "cd"}, "classes": {}, "notes": [],
        "scores": {
            "frechet_random_n180": {"samples": {"value": value, "low": 0, "high": 1}},
            "coverage_random_n180": {"samples": {"value": 1 - value, "low": 0, "high": 1}},
        },
    }  # fmt: skip
    (place / "metrics.json").write_text(json.dumps(record | changes))


def compared(folder: Path, *arguments: str) -> Outcome:
    outcome = call(compare, folder, *arguments)
    assert outcome.code == 0, outcome.err
    return outcome


def rows(text: str) -> list[list[str]]:
    """The cells of a Markdown table."""
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line[:1] == "|"]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two schedules with three seeds each, all scored."""
    for number in range(6):
        schedule = {"schedule__beta_end": 0.01} if number >= 3 else {}
        scored(run(tmp_path, number, seed=number % 3, preview_every=number, **schedule), 0.1 * (number + 1))
    return tmp_path


def test_saved_scores_are_averaged_over_seeds_in_markdown_latex_csv_and_a_picture(runs: Path) -> None:
    outcome = compared(runs, "runs=lightning_logs/digits", "out=table", "scores=[frechet,coverage]")
    head, _, *body = rows(outcome.out)
    assert head == ["", "frechet_random_n180", "coverage_random_n180", "seeds", "calls", "seconds", "images seen"]
    # t of two degrees of freedom times 0.1 / sqrt(3)
    assert [row[:4] for row in body] == [
        ["schedule.beta_end=0.02", "0.20 ± 0.25", "0.80 ± 0.25", "3"],
        ["schedule.beta_end=0.01", "0.50 ± 0.25", "0.50 ± 0.25", "3"],
    ]
    files = {path.name: path for path in (runs / "table").iterdir()}
    assert files.keys() == {"comparison.md", "comparison.tex", "comparison.csv", "comparison.png"}
    assert files["comparison.md"].read_text().strip() in outcome.out
    latex = files["comparison.tex"].read_text()
    assert r"schedule.beta\_end=0.02 & $0.20 \pm 0.25$ & $0.80 \pm 0.25$ & 3" in latex
    assert r"95 \% interval" in latex
    assert not re.search(r"(?<!\\)[_%#]", latex)
    table = list(csv.DictReader(files["comparison.csv"].open()))
    assert len(table) == 4
    assert float(table[0]["high"]) - float(table[0]["mean"]) == pytest.approx(4.302652729911275 * 0.1 / 3**0.5)
    assert files["comparison.png"].stat().st_size > 5000


def test_runs_that_have_come_less_far_are_another_row_but_not_with_a_budget(tmp_path: Path) -> None:
    for number, step in enumerate((4, 2)):
        scored(run(tmp_path, number, seed=number), 0.1, step=step)
    names = [row[0] for row in rows(compared(tmp_path, "runs=[0,1]").out)[2:]]
    assert names == ["trained steps=4", "trained steps=2 of 4"]
    shutil.rmtree(tmp_path / "lightning_logs")
    for number, step in enumerate((4, 5)):
        of_budget = {"budget_minutes": 1.0, "trainer__max_steps": step}
        scored(run(tmp_path, number, seed=number, **of_budget), 0.1, step=step)
    assert len(rows(compared(tmp_path, "runs=[0,1]").out)) == 3


def test_a_file_of_scores_is_of_the_run_that_it_names_wherever_it_lies(tmp_path: Path) -> None:
    first, second = run(tmp_path, 0, seed=0), run(tmp_path, 1, seed=1)
    (tmp_path / "elsewhere").mkdir()
    scored(second, 0.3)
    shutil.move(second / "metrics.json", tmp_path / "elsewhere")
    scored(first, 0.1)
    outcome = compared(tmp_path, "runs=[lightning_logs/digits,elsewhere]")
    assert rows(outcome.out)[2][1:3] == ["0.2 ± 1.3", "2"]
    shutil.move(tmp_path / "lightning_logs", tmp_path / "moved")
    (again,) = saved(tmp_path / "moved" / "digits" / "version_0", compare.choice_of)
    assert again.seed == 0
    assert_refused(
        call(compare, tmp_path, "runs=elsewhere"), "metrics.json has scores of", "which is not there any more"
    )


def test_likelihoods_have_a_table_of_their_own(tmp_path: Path) -> None:
    for number in range(2):
        found = {"n": 9, "unit": "bits/dim", "value": 2.0 + number, "seed": 0, "steps": 5, "weights": "ema"}
        place = run(tmp_path, number, seed=number)
        about = {
            "checkpoint": str(place / "checkpoints" / "last.ckpt"),
            "step": 4,
            "dataset": "digits",
            "split": "test",
        }
        scored(place, 0.1, likelihood={"vlb": found | about})
    text = compared(tmp_path, "runs=[0,1]").out
    assert [row[0:2] for row in rows(text) if row[0] == "these runs"] == [
        ["these runs", "0.1 ± 0"],
        ["these runs", "2.5 ± 6.4"],
    ]
    assert ["", "vlb in bits/dim", "seeds", "calls", "seconds", "images seen"] in rows(text)


def test_runs_are_scored_where_they_are_not_yet_and_again_if_they_were_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = [run(tmp_path, number, seed=number) for number in range(2)]
    arguments = ("runs=lightning_logs/digits", "samplers=[heun]", "steps=3", *QUICK)
    first = compared(tmp_path, *arguments)
    assert re.findall(r"scoring \d of \d: .*", first.err) == [
        "scoring 1 of 2: lightning_logs/digits/version_0, heun, 3 steps",
        "scoring 2 of 2: lightning_logs/digits/version_1, heun, 3 steps",
    ]
    ((_, _, seeds, calls, _, images),) = rows(first.out)[2:]
    assert (seeds, calls, images) == ("2", "5", "32")
    (file,) = places[0].glob("scores/*/metrics.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"step": 3}))  # of the run's 4
    asked = []
    monkeypatch.setattr(commands, "score", lambda options, *args, **kwargs: asked.append(options.ckpt))
    call(compare, tmp_path, *arguments)
    assert asked == [str(places[0].relative_to(tmp_path))]


def test_nothing_is_scored_if_one_of_the_samplers_does_not_go_with_one_of_the_runs(tmp_path: Path) -> None:
    run(tmp_path, 0)
    outcome = call(compare, tmp_path, "runs=0", "samplers=[ddim,ddpm]", "steps=90", *QUICK)
    assert_refused(outcome, "version_0, ddim, 90 steps:")
    assert not (tmp_path / "lightning_logs" / "digits" / "version_0" / "scores").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "runs= is missing"),
        (["runs=nowhere"], "there is no such folder"),
        (["runs=empty"], "no runs and no scores in this folder"),
        (["runs=0"], "no scores were saved of"),
        (["runs=0", "samplers=[dimm]"], "did you mean ddim?"),
        (["runs=0", "samplers=[ddim,ddim]"], "samplers must name at least one, and each once"),
        (["runs=0", "samplers=ddim", "grid=kar"], "grid=kar does not exist"),
        (["runs=0", "grid=karras"], "grid= does nothing for scores that are read"),
        (["runs=0", "steps=3"], "steps= does nothing for scores that are read"),
        (["runs=0", "samplers=ddim", "steps=0"], "steps must be at least 1"),
        (["runs=0", "samplers=ddim", "split=tset"], "split must be train or val or test"),
        (["runs=0", "out=file"], "out=file is a file"),
        (["runs=0", "out=''"], "out= has an empty name"),
        (["runs=[0,'']"], "runs= has an empty name"),
        (["run=0"], "write runs=..."),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(arguments: list[str], said: str, tmp_path: Path) -> None:
    run(tmp_path, 0)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    assert_refused(call(compare, tmp_path, *arguments), said)


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"scores": {"a": {"samples": {"value": "high"}}}}',
        '{"scores": {"a": 1}, "step": 1}',
        '{"scores": {"a": {}}}',
        "[" * 100_000,
    ],
)
def test_a_damaged_file_of_scores_is_named(content: str, tmp_path: Path) -> None:
    place = run(tmp_path, 0)
    (place / "metrics.json").write_text(content)
    assert_refused(call(compare, tmp_path, "runs=lightning_logs"), "metrics.json is damaged")


@pytest.mark.parametrize(
    "changes",
    [{"seconds": "x"}, {"calls_per_sample": "x"}, {"seed": [1]}, {"device": 3}, {"step": "4"}, {"step": True}],
)
def test_a_record_with_a_value_of_another_kind_is_named(changes: dict[str, Any], tmp_path: Path) -> None:
    scored(run(tmp_path, 0), 0.1, **changes)
    assert_refused(call(compare, tmp_path, "runs=lightning_logs"), "metrics.json is damaged", next(iter(changes)))


@pytest.mark.parametrize("content", ["[" * 1000, "a: &a\n  b: *a\n", "", "seed: 1\ntrainer: {}\ndataset: 3"])
def test_a_damaged_configuration_of_a_run_is_named(content: str, tmp_path: Path) -> None:
    place = run(tmp_path, 0)
    scored(place, 0.1)
    if content.startswith("a:"):
        content += (place / "config.yaml").read_text()
    (place / "config.yaml").write_text(content)
    assert_refused(call(compare, tmp_path, "runs=lightning_logs"), "config.yaml is damaged")


def test_scores_that_are_not_finite_come_last_and_have_no_interval(tmp_path: Path) -> None:
    for number, value in enumerate([float("nan"), 0.2, float("inf"), -float("inf"), 0.1, 1e308, 1e308]):
        end = [0.01, 0.02, 0.03, 0.03, 0.04, 0.05, 0.05][number]
        scored(run(tmp_path, number, seed=number % 2, schedule__beta_end=end), value)
    found = rows(compared(tmp_path, "runs=lightning_logs", "out=table").out)[2:]
    assert [row[0] for row in found] == [f"schedule.beta_end={end}" for end in (0.04, 0.02, 0.01, 0.03, 0.05)]
    assert [row[1] for row in found] == ["0.1", "0.2", "nan", "nan", "inf"]
    assert (tmp_path / "table" / "comparison.png").is_file()


@pytest.mark.parametrize("scores", ["fid", "[frechet,fid]", "[frechet,all]", "''"])
def test_a_score_that_nobody_has_is_named_with_those_that_there_are(scores: str, runs: Path) -> None:
    assert_refused(call(compare, runs, "runs=0", f"scores={scores}"), ": no score begins so", "frechet_random_n180")


def test_a_table_without_the_chosen_score_is_left_out(tmp_path: Path) -> None:
    scored(run(tmp_path, 0), 0.1)
    bound = {"dataset": "digits", "n": 180, "unit": "bits/dim", "value": 3.5, "seed": 0, "step": 4}
    likelihood = {
        "vlb": bound | {"checkpoint": str(tmp_path / "lightning_logs/digits/version_1/checkpoints/last.ckpt")}
    }
    scored(run(tmp_path, 1), 0.2, scores={}, likelihood=likelihood)
    assert "vlb in bits/dim" in compared(tmp_path, "runs=lightning_logs").out
    out = compared(tmp_path, "runs=lightning_logs", "scores=frechet").out
    assert [row[1] for row in rows(out)[2:]] == ["0.1"] and "vlb" not in out


def test_nothing_is_written_where_one_of_the_files_cannot_be(runs: Path) -> None:
    (runs / "table" / "comparison.png").mkdir(parents=True)
    outcome = call(compare, runs, "runs=lightning_logs", "out=table")
    assert outcome.code == 1 and "comparison.png is no regular file" in outcome.err
    assert [file.name for file in (runs / "table").iterdir()] == ["comparison.png"]


def test_a_quiet_comparison_prints_its_table_alone(runs: Path) -> None:
    outcome = compared(runs, "runs=lightning_logs", "out=table", "quiet=true")
    assert outcome.err == "" and len(rows(outcome.out)) == 4


def test_a_place_of_data_that_come_from_no_files_is_refused_before_anything_is_scored(tmp_path: Path) -> None:
    run(tmp_path, 0)
    outcome = call(compare, tmp_path, "runs=0", "samplers=ddim", "data_dir=elsewhere", *QUICK)
    assert_refused(outcome, "digits does not come from files")


@pytest.mark.parametrize(("sampler", "steps"), [("ddim", 4), ("heun", 4), ("predictor_corrector", 3), ("unipc", 5)])
def test_the_calls_of_a_sample_are_those_that_are_made(sampler: str, steps: int) -> None:
    choice = compare.described("sampler", sampler)
    pipeline = Pipeline.load(str(FIXTURES / "digits.ckpt"), sampler=choice, steps=steps)
    (network,) = [module for module in pipeline.denoiser.modules() if isinstance(module, UNet)]
    calls = []
    network.register_forward_pre_hook(lambda *args: calls.append(1))
    pipeline.sample(1)
    assert pipeline.calls == len(calls)


def test_a_choice_is_found_by_its_class_and_the_fewest_other_values() -> None:
    found = {
        ("sampler", "DDIMSampler", "eta", 0.0): "ddim",
        ("sampler", "DDIMSampler", "eta", 1.0): "euler_ancestral",
        ("network", "DiT", "width", 96): "dit_mini",
        ("denoiser", "NetworkDenoiser", "variance", "beta_tilde"): "edm",
        ("sampler", "NobodysSampler", "eta", 0.0): None,
        ("learning_rate", "LearningRate", "decay", "none"): None,
    }
    for (group, cls, name, value), choice in found.items():
        assert compare.choice_of(group, {"_target_": f"x.{cls}", name: value}) == choice


@pytest.mark.parametrize("group", ["denoiser", "objective", "schedule", "network", "grid", "optimizer"])
def test_a_choice_is_found_by_what_a_run_keeps_of_it(group: str) -> None:
    for name in cli.choices_of(group):
        kept = canonical(compare.described(group, name))
        assert "_target_" not in kept or compare.choice_of(group, kept) == name
        if group == "denoiser" and "precond" in kept:  # its network's parameterization counts more than a value
            of_eps = name in ("eps", "learned")
            assert compare.choice_of(group, kept | {"variance": "learned"}) == ("learned" if of_eps else name)


def test_settings_inside_parts_have_full_names() -> None:
    config = {"sampler": {"_target_": "a.b.DDIMSampler", "eta": 0.5}, "dataset": {"source": {"n": 3}}, "ema": None}
    assert flat(config, compare.choice_of) == {
        "sampler": "ddim",
        "sampler.eta": 0.5,
        "dataset.source.n": 3,
        "ema": None,
    }


def test_evaluate_records_what_a_comparison_needs(tmp_path: Path) -> None:
    run(tmp_path, 0)
    assert call(evaluate, tmp_path, "ckpt=0", "sampler=heun", "grid=uniform", "steps=3", *QUICK).code == 0
    record = json.loads((tmp_path / "lightning_logs" / "digits" / "version_0" / "metrics.json").read_text())
    assert record["calls_per_sample"] == 5
    assert record["grid"]["_target_"].endswith("UniformGrid")
    assert record["seconds"] > 0
    assert record["device"].startswith("1 x cpu")
    assert len(record["real"]) == 16


def test_signs_that_a_table_means_otherwise_are_escaped_in_names() -> None:
    row = Row("samples=a_b|c\\d<\n>", {"frechet": [1.0, 3.0]}, [0, 1], None, None, None)
    one = Comparison({"dataset": "digits", "split": "test", "n": 9}, [row], ["a\nb"])
    assert r"| samples=a_b\|c\d< > | 2 ± 13 | 2 | - | - | - |" in markdown(one)
    assert (
        r"samples=a\_b\textbar{}c\textbackslash{}d\textless{} \textgreater{} & $2 \pm 13$ & 2 & - & - & - \\"
        in latex(one)
    )
    assert "% a b\n" in latex(one)


@pytest.mark.parametrize(
    ("values", "plain", "in_latex"),
    [
        ([1e-9, 3e-9], "2e-09 ± 1.3e-08", r"$2 \cdot 10^{-9} \pm 1.3 \cdot 10^{-8}$"),
        ([1e12, 3e12], "2e+12 ± 1.3e+13", r"$2 \cdot 10^{12} \pm 1.3 \cdot 10^{13}$"),
        ([float("nan"), 1.0], "nan", "nan"),
        ([1.0, 1.0], "1 ± 0", r"$1 \pm 0$"),
    ],
)
def test_very_small_and_large_numbers_keep_their_digits(values: list[float], plain: str, in_latex: str) -> None:
    one = Comparison({}, [Row("a", {"frechet": values}, [0, 1], None, None, None)], [])
    assert f"| a | {plain} | 2 |" in markdown(one) and f"a & {in_latex} & 2 &" in latex(one)
