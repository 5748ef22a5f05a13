"""Files and folders that are written under a temporary name and renamed when they are complete.

A reader never sees half of one, and a writer that is killed leaves the earlier version as it was.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


class RenameError(OSError):
    """A complete folder could not be renamed; it still lies under its temporary name.

    Args:
        partial: The temporary name.
        error: What the operating system reported.
    """

    def __init__(self, partial: Path, error: OSError) -> None:
        super().__init__(error.errno, error.strerror, str(partial))
        self.partial = partial


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A file that replaces ``path`` when the block ends without an error.

    Args:
        path: The final name. Missing parent folders are made.

    Yields:
        The temporary name, in the same folder; the file is there and empty.

    Raises:
        OSError: The folder cannot be written to.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial.touch()
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def new_folder(
    path: Path,
    *,
    exclusive: bool = False,
    replace: bool = False,
    before_rename: Callable[[], None] = lambda: None,
) -> Iterator[Path]:
    """A folder that gets the name ``path`` when the block ends without an error.

    After an error in the block, the temporary folder and the parent folders made for it are
    removed.

    Args:
        path: The final name. Missing parent folders are made.
        exclusive: Take one temporary name for all processes, so that only one of them can write.
        replace: Remove a folder that has the final name already.
        before_rename: Called when the folder is complete. If it raises, the complete folder keeps
            its temporary name.

    Yields:
        The temporary name, in the same parent folder; the folder is there and empty.

    Raises:
        FileExistsError: ``exclusive``, and the temporary folder is there already.
        OSError: No folder can be made there.
        RenameError: The complete folder could not be renamed.
    """
    partial = path.with_name(f"{path.name}.partial{'' if exclusive else f'-{os.getpid()}'}")
    if not exclusive:
        shutil.rmtree(partial, ignore_errors=True)
    made = [folder for folder in partial.parents if not folder.exists()]
    partial.mkdir(parents=True)
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        for folder in made:
            with suppress(OSError):
                folder.rmdir()
        raise
    before_rename()
    old = path.with_name(f"{path.name}.old-{os.getpid()}")
    try:
        if replace and path.exists():
            path.rename(old)
        partial.rename(path)
    except OSError as error:
        raise RenameError(partial, error) from error
    shutil.rmtree(old, ignore_errors=True)
