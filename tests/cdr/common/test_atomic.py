"""Files and folders appear complete or not at all."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from cdr.common import RenameError, atomic, new_file, new_folder, sweep_all
from cdr.common.atomic import sweep


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


def test_a_folder_appears_when_the_block_ends(tmp_path: Path) -> None:
    with new_folder(tmp_path / "deep" / "one") as partial:
        (partial / "file").write_text("x")
        assert not (tmp_path / "deep" / "one").exists()
    assert os.listdir(tmp_path / "deep") == ["one"]
    with pytest.raises(ValueError), new_folder(tmp_path / "new" / "two"):
        raise ValueError
    assert os.listdir(tmp_path) == ["deep"]


def killed(folder: Path, code: str) -> None:
    """Run code in a copy of this process, which kills itself."""

    def die(*arguments: object, **told: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    process = os.fork()
    if not process:
        try:
            exec(code, {"folder": folder, "atomic": atomic, "die": die, "Path": Path})
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL


def test_what_killed_writers_have_left_is_removed_by_the_next(tmp_path: Path) -> None:
    killed(tmp_path, "with atomic.new_file(folder / 'a[1]') as p: p.write_text('half'); die()")
    killed(tmp_path, "with atomic.new_folder(folder / 'b') as p: (p / 'x').touch(); die()")
    (tmp_path / "b.partial-123").mkdir()  # as earlier versions called them
    (tmp_path / "b.partial-mine").mkdir()
    assert len(os.listdir(tmp_path)) == 4
    with (
        new_file(tmp_path / "a[1]") as one,
        new_folder(tmp_path / "b") as two,
        new_file(tmp_path / "a[1]"),
        new_folder(tmp_path / "c"),
    ):
        # What a living process writes is left to it, as is what others have named.
        sweep_all(tmp_path)
        assert one.exists() and two.exists()
    assert sorted(os.listdir(tmp_path)) == ["a[1]", "b", "b.partial-mine", "c"]


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_folder_whose_replacement_was_killed_is_there_again(tmp_path: Path, at: int) -> None:
    """Killed before the first rename, between the two, and before the old one is removed."""
    for text in ("first", "second"):
        last = f"""
renames = [0]
def rename(path, target, real=Path.rename):
    renames[0] += 1
    if renames[0] == {at}: die()
    return real(path, target)
with atomic.new_folder(folder / 'one', replace=True) as p:
    (p / 'file').write_text('second')
    Path.rename = rename
    atomic.shutil.rmtree = die
"""
        if text == "first":
            with new_folder(tmp_path / "one") as partial:
                (partial / "file").write_text("first")
        else:
            killed(tmp_path, last)
    with new_folder(tmp_path / "two"):
        pass  # another name sweeps nothing of this one
    sweep(tmp_path / "one")
    assert (tmp_path / "one" / "file").read_text() == ("second" if at == 3 else "first")
    assert sorted(os.listdir(tmp_path)) == ["one", "two"]


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
