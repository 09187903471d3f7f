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
