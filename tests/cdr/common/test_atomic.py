"""Files and folders appear complete or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cdr.common import RenameError, new_file, new_folder


def test_a_file_replaces_the_earlier_one_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    for text in ("one", "two"):
        with new_file(path) as partial:
            partial.write_text(text)
            assert not path.exists() or path.read_text() == "one"
        assert path.read_text() == text and os.listdir(path.parent) == ["file"]


def test_a_file_is_as_before_after_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("one")
    with pytest.raises(KeyboardInterrupt), new_file(tmp_path / "file") as partial:
        partial.write_text("half")
        raise KeyboardInterrupt
    assert (tmp_path / "file").read_text() == "one" and os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("exclusive", [False, True])
def test_a_folder_appears_when_the_block_ends(tmp_path: Path, exclusive: bool) -> None:
    with new_folder(tmp_path / "deep" / "one", exclusive=exclusive) as partial:
        (partial / "file").write_text("x")
        assert not (tmp_path / "deep" / "one").exists()
    assert os.listdir(tmp_path / "deep") == ["one"]
    with pytest.raises(ValueError), new_folder(tmp_path / "new" / "two", exclusive=exclusive):
        raise ValueError
    assert os.listdir(tmp_path) == ["deep"]


def test_one_writer_only_where_it_is_exclusive(tmp_path: Path) -> None:
    with (
        new_folder(tmp_path / "one", exclusive=True),
        pytest.raises(FileExistsError),
        new_folder(tmp_path / "one", exclusive=True),
    ):
        pytest.fail("the block ran")


def test_a_folder_is_replaced_only_if_asked_for(tmp_path: Path) -> None:
    for text in ("old", "new"):
        with new_folder(tmp_path / "one", replace=True) as partial:
            (partial / "file").write_text(text)
    assert (tmp_path / "one" / "file").read_text() == "new" and os.listdir(tmp_path) == ["one"]
    with pytest.raises(RenameError) as caught, new_folder(tmp_path / "one") as partial:
        (partial / "file").write_text("kept")
    assert (caught.value.partial / "file").read_text() == "kept"
    assert (tmp_path / "one" / "file").read_text() == "new"


def test_a_complete_folder_is_kept_where_it_may_not_be_renamed(tmp_path: Path) -> None:
    def refuse() -> None:
        raise PermissionError("no")

    with (
        pytest.raises(PermissionError),
        new_folder(tmp_path / "one", before_rename=refuse) as partial,
    ):
        (partial / "file").write_text("kept")
    assert (partial / "file").read_text() == "kept" and not (tmp_path / "one").exists()
