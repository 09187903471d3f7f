"""The command that draws scores against calls of the network: how it counts, what it says, that it goes on."""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from support.scripts import TINY, call

import train

sys.path.append(str(Path(__file__).parents[2] / "docs" / "pictures"))
steps = importlib.import_module("steps")


@pytest.mark.parametrize(("calls", "each", "expected"), [(1, 1, 1), (10, 1, 10), (5, 2, 3), (8, 2, 4), (2, 2, 1)])
def test_a_budget_of_calls_is_used_but_not_exceeded(calls: int, each: int, expected: int) -> None:
    count = steps.steps_for(calls, each)
    assert count == expected
    spent = [each * (n - 1) + 1 for n in (count, count + 1)]  # the last step, to data, is one call
    assert spent[0] <= calls < spent[1]


def test_the_table_names_the_fewest_calls_that_are_good_enough() -> None:
    def scores(calls: int, value: float) -> dict[str, Any]:
        return {"calls": calls, "classifier": [value, 0, 0], "random": [2 * value, 0, 0]}

    found = {"a": {"10": scores(10, 1.04), "50": scores(50, 1.0)}, "b": {"8": scores(7, 1.06)}}
    text = steps.table({"scores": found, "yardsticks": {"real": scores(0, 0.5)}})
    assert "| a |  | 1.04 / 2.08 | 1 / 2 |" in text
    assert "By classifier: best 1; within 5 % of it with the fewest calls: a at 10." in text


def test_grids_are_all_pairs_of_rho_and_end() -> None:
    options = steps.typed(["ckpt=last", "rho=[5,7]", "log_snr_max=[4,null]"])
    found = dict(steps.grids(options))
    assert list(found) == ["karras 5 to 4", "karras 5", "karras 7 to 4", "karras 7"]
    assert found["karras 5 to 4"] == {"_target_": "diffusion.samplers.KarrasGrid", "rho": 5, "log_snr_max": 4}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["last"], "name=value"),
        (["ckpt=last", "samplers=[fast]"], "sampler 'fast' does not exist"),
        (["ckpt=last", "calls=[0]"], "each at least 1"),
        (["ckpt=last", "speed=3"], "speed"),
        (["ckpt=last", "beside=[none]"], "beside=none: it has no steps.json"),
    ],
)
def test_what_is_no_option_is_refused(arguments: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        steps.typed(arguments)


def test_a_picture_has_the_methods_of_other_folders_if_they_were_scored_against_the_same_images(tmp_path: Path) -> None:
    ours = {"scores": {"a": {}}, "yardsticks": {"real": 0.5}, "found_n": 9}
    (tmp_path / "steps.json").write_text(json.dumps(ours | {"scores": {"b": {"2": 1}}}))
    assert steps.together(ours, [str(tmp_path)]) == ours | {"scores": {"a": {}, "b": {"2": 1}}}
    with pytest.raises(ValueError, match="b would be two lines of one name"):
        steps.together(ours | {"scores": {"b": {}}}, [str(tmp_path)])
    with pytest.raises(ValueError, match="other images"):
        steps.together(ours | {"yardsticks": {"real": 0.6}}, [str(tmp_path)])


def test_a_second_call_scores_only_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("diffusion.evaluation.metrics.REPLICATES", 3)
    monkeypatch.chdir(tmp_path)
    assert call(train, tmp_path, *TINY).code == 0

    def run(*more: str) -> tuple[list[str], dict[str, Any]]:
        arguments = ["ckpt=last", "n=90", "samplers=[ddim,heun,ddpm]", "grid=trailing", "out=few", *more]
        monkeypatch.setattr(sys, "argv", ["steps.py", *arguments])
        capsys.readouterr()
        steps.main()
        lines = [line for line in capsys.readouterr().out.splitlines() if " calls: classifier" in line]
        return lines, json.loads((tmp_path / "few" / "steps.json").read_text())

    lines, record = run("calls=[3]")
    assert [line.split(",")[0] for line in lines] == ["ddim", "heun"]  # not ddpm, with so few
    assert record["scores"]["heun, trailing"]["3"]["calls"] == 3
    lines, again = run("calls=[2,3]")
    assert [line.split(":")[0] for line in lines] == ["ddim, trailing, 2 calls", "heun, trailing, 2 calls"]
    assert again["scores"]["ddim, trailing"]["3"] == record["scores"]["ddim, trailing"]["3"]
    assert again["scores"]["heun, trailing"]["2"]["calls"] == 1
    assert {path.name for path in (tmp_path / "few").iterdir()} == {"steps.json", "steps.md", "steps.png"}
    with pytest.raises(ValueError, match="choose another out="):
        run("calls=[2]", "seed=1")
