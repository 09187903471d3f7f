"""What keeps one way through the code, by the counts of `counts.py`."""

import counts
import mutants
import pytest


def test_no_function_asks_which_kind_a_model_is_to_choose_among_kinds() -> None:
    assert counts.ladders() == []


def test_a_configuration_changes_only_while_it_is_put_together() -> None:
    """Later changes are copies: of a resumed run's, of Lightning's options, of a graph's metadata."""
    changed = {place.file for place in counts.config_changes()}
    assert changed <= {
        "diffusion/settings/training.py",
        "diffusion/training/setup.py",
        "diffusion/training/tuning.py",
        "diffusion/runs/resume.py",
        "diffusion/training/trainer.py",
        "diffusion/exchange/onnx.py",
    }


def test_one_trainer_is_made() -> None:
    assert [place.file for place in counts.calls("Trainer")] == ["diffusion/training/trainer.py"]
    assert len(counts.calls("make_trainer")) == 1


@pytest.mark.parametrize("script", ["train", "sample", "evaluate", "export", "compare"])
def test_a_script_is_thin(script: str) -> None:
    assert len((counts.ROOT / f"{script}.py").read_text(encoding="utf-8").splitlines()) <= 125


def test_no_file_of_tests_is_longer_than_a_person_reads() -> None:
    sizes = {
        path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in (counts.ROOT / "tests").rglob("*.py")
    }
    assert {name: size for name, size in sizes.items() if size > 400} == {}


def test_the_tests_that_mutants_are_run_against_exist() -> None:
    files = {path.stem.removeprefix("test_"): path for path in (counts.ROOT / "tests").rglob("test_*.py")}
    for module, names in mutants.TESTS.items():
        assert (counts.ROOT / module).is_file(), module
        for name in names:
            file, _, test = name.partition("::")
            assert f"def {test}(" in files[file].read_text(encoding="utf-8") if test else file in files, name
