"""Folders of images that are not there."""

from pathlib import Path

import pytest
from support.scripts import assert_refused, call

import train
from data.places import check_path


def test_a_folder_with_a_similar_name_is_offered(tmp_path: Path) -> None:
    (tmp_path / "My photos").mkdir()
    (tmp_path / "My photos.txt").touch()
    with pytest.raises(FileNotFoundError, match=r"My photo: no such folder \(did you mean .*/My photos\?\)"):
        check_path(tmp_path / "My photo")
    with pytest.raises(FileNotFoundError, match="no such folder; give a folder"):
        check_path(tmp_path / "elsewhere" / "My photos")


@pytest.mark.parametrize("rest", [(), ("batch_size=2",)])
def test_a_path_with_spaces_that_lost_its_quotation_marks_is_put_together(
    rest: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "my dear photos").mkdir()
    outcome = call(train, tmp_path, "dataset=folder", "dataset.path=my", "dear", "photos", *rest)
    assert_refused(outcome, "a path with spaces needs quotation marks: dataset.path='my dear photos'")


def test_a_home_that_nobody_has_is_a_folder_that_is_not_there(tmp_path: Path) -> None:
    assert_refused(
        call(train, tmp_path, "dataset=folder", "dataset.path=~nobody_has/x"), "~nobody_has/x: no such folder"
    )


def test_a_tuned_run_keeps_the_path_of_its_data(tmp_path: Path) -> None:
    arguments = ("experiment=few_step", "init_from=nowhere", "dataset=folder")
    assert_refused(call(train, tmp_path, *arguments), "there is no checkpoint nowhere")
