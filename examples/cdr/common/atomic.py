"""Files and folders that are written under a temporary name and renamed when they are complete.

A reader never sees half of one, and a writer that is killed leaves the earlier version as it was.
What a killed writer has left is removed by the next one of the same name, or by :func:`sweep`.
"""

from __future__ import annotations

import glob
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from cdr.common.locks import abandoned, locked

_TRIES = 10  # at a name of its own, which a sweep may take away before it is locked


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
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path)
    with ExitStack() as stack:
        partial = _own(lambda: path.with_name(f"{path.name}.{_token()}.partial"), Path.touch, stack)
        try:
            yield partial
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def new_folder(
    path: Path,
    *,
    replace: bool = False,
    before_rename: Callable[[], None] = lambda: None,
) -> Iterator[Path]:
    """A folder that gets the name ``path`` when the block ends without an error.

    After an error in the block, the temporary folder and the parent folders made for it are
    removed.

    Args:
        path: The final name. Missing parent folders are made.
        replace: Remove a folder that has the final name already.
        before_rename: Called when the folder is complete. If it raises, the complete folder keeps
            its temporary name.

    Yields:
        The temporary name, in the same parent folder; the folder is there and empty.

    Raises:
        OSError: No folder can be made there.
        RenameError: The complete folder could not be renamed.
    """
    sweep(path)
    made = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        partial = _own(lambda: path.with_name(f"{path.name}.partial-{_token()}"), Path.mkdir, stack)
        try:
            yield partial
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            remove_empty(made)
            raise
        before_rename()
        rename_folder(partial, path, replace=replace)


def rename_folder(partial: Path, path: Path, *, replace: bool = False) -> None:
    """Give a complete folder its final name.

    Killed in between, the earlier folder comes back under its name with the next :func:`sweep`.

    Args:
        partial: The temporary name.
        path: The final one.
        replace: Remove a folder that has the final name already.

    Raises:
        RenameError: It could not be renamed.
    """
    old = path.with_name(f"{path.name}.old-{_token()}")
    try:
        if replace and path.exists():
            # A sweep of another process must not take it for left.
            with locked(path):
                path.rename(old)
                partial.rename(path)
        else:
            partial.rename(path)
    except OSError as error:
        raise RenameError(partial, error) from error
    shutil.rmtree(old, ignore_errors=True)


def sweep(path: Path) -> None:
    """Remove what killed writers of ``path`` have left, and undo a replacement that they began.

    Args:
        path: A final name.
    """
    name = glob.escape(path.name)
    for found in _left(path.parent.glob(f"{name}.old-*")):
        if path.exists():
            _remove(found)
        else:
            with suppress(OSError):
                found.rename(path)
    sweep_all(path.parent, name)


def sweep_all(folder: Path, pattern: str = "*") -> None:
    """Remove what killed writers have left in a folder.

    Args:
        folder: The folder; not those in it.
        pattern: Of the final names.
    """
    for kind in (f"{pattern}.partial-*", f"{pattern}.*.partial"):
        for found in _left(folder.glob(kind)):
            _remove(found)


def remove_empty(folders: list[Path]) -> None:
    """Remove folders as far as there is nothing in them, the innermost first."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


_TOKEN = re.compile(r"\.(partial|old)-\d+(-[0-9a-f]+)?$|\.\d+(-[0-9a-f]+)?\.partial$")


def _token() -> str:
    """Part of a temporary name: the process, for a reader, and what makes it one of a kind."""
    return f"{os.getpid()}-{secrets.token_hex(4)}"


def _left(found: Iterator[Path]) -> list[Path]:
    return [each for each in found if _TOKEN.search(each.name) and abandoned(each)]


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _own(name: Callable[[], Path], make: Callable[[Path], None], stack: ExitStack) -> Path:
    """Make a file or folder that is locked until the stack is closed."""
    for _ in range(_TRIES):
        partial = name()
        make(partial)
        if stack.enter_context(locked(partial)):
            return partial
    raise OSError(f"{partial} is removed as soon as it is made; stop what removes it")
