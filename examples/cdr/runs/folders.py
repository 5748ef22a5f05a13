"""The folders that commands leave their results in."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cdr.common import RenameError, abandoned, locked, new_folder, remove_empty, rename_folder
from cdr.runs.logs import logged
from cdr.runs.unfinished import forget, kept, partial_name


@contextmanager
def run_folder(path: Path, *, resumed: bool = False) -> Iterator[Path]:
    """A folder that appears under its name only when the block ends without an error.

    Until then everything lies in ``<name>.partial`` beside it. However the block ends, that stays
    if a training in it is finished or begun, see :mod:`cdr.runs.unfinished`; otherwise it is
    removed. The log of the block is written to ``log.txt`` in it.

    Args:
        path: The final name.
        resumed: Go on in the folder that an earlier call has left.

    Raises:
        FileExistsError: The name is taken, or another run is writing there.
        OSError: Nothing can be written there, or the name was taken while the block ran; the
            complete folder keeps its temporary name then.
    """
    if os.path.lexists(path):
        raise FileExistsError(
            f"--out {path} exists already and is left as it is: give another name, or remove it"
        )
    partial = partial_name(path)
    made = [] if resumed else _begin(path, partial)
    with locked(partial) as ours:
        if not ours:
            raise FileExistsError(f"{partial} exists: another run is writing to it")
        try:
            log = logging.FileHandler(partial / "log.txt", encoding="utf-8", errors="replace")
            with logged(log):
                yield partial
            rename_folder(partial, path)
        except RenameError as error:
            raise OSError(
                f"--out {path} cannot be made any more ({error.strerror}); everything is in "
                f"{error.partial}"
            ) from error
        except BaseException:
            if not kept(partial):
                shutil.rmtree(partial, ignore_errors=True)
                remove_empty(made)
            raise
    forget(path)


def _begin(path: Path, partial: Path) -> list[Path]:
    """Make the folder of a new run; the parents that were made for it."""
    made = [folder for folder in partial.parents if not folder.exists()]
    try:
        if partial.is_dir() and abandoned(partial):
            if kept(partial):
                raise FileExistsError(
                    f"{partial} exists, of a run that did not finish: go on with --resume "
                    f"{partial}, remove it, or give another --out"
                )
            shutil.rmtree(partial)  # killed before it had anything
        partial.mkdir(parents=True)
    except FileExistsError as error:
        if error.errno is None:
            raise
        raise FileExistsError(
            f"{partial} exists: another run is writing to it, or it is something else; give "
            "another --out"
        ) from None
    except OSError as error:
        raise OSError(
            f"--out {path}: no folder can be made there ({error.strerror}); give another place"
        ) from error
    return made


@contextmanager
def output_folder(path: Path, command: str) -> Iterator[Path]:
    """A folder that replaces an earlier one of the same command when the block ends.

    Raises:
        FileExistsError: The name is taken by something else.
    """
    check_output(path, command)
    with new_folder(
        path.absolute(), replace=True, before_rename=lambda: check_output(path, command)
    ) as partial:
        yield partial


def check_output(path: Path, command: str) -> None:
    """Check that ``command`` may write its results there: it may replace its own, nothing else.

    Raises:
        FileExistsError: The name is taken by something else.
        OSError: No folder can be made there.
    """
    if not os.path.lexists(path):
        parent = next(p for p in path.absolute().parents if p.exists())
        if not (parent.is_dir() and os.access(parent, os.W_OK)):
            raise OSError(f"--out {path}: no folder can be made in {parent}; give another place")
        return
    made_by = _made_by(path)
    if made_by != command:
        by = f"was made by reproduce.py {made_by}" if made_by else "is not a folder of results"
        raise FileExistsError(
            f"--out {path} {by} and is left as it is: give another name, or remove it"
        )


_LONGEST = 40  # of the names of commands


def _made_by(path: Path) -> str | None:
    """The command whose results lie there."""
    try:
        # Not command.txt, where options may stand before the command.
        made_by = json.loads((path / "config.json").read_text(encoding="utf-8"))["command"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
    named = isinstance(made_by, str) and made_by.isprintable() and len(made_by) <= _LONGEST
    return made_by if named else None
