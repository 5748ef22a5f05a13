"""The folder that a command which can be repeated leaves its results in."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def check_output(path: Path, command: str) -> None:
    """Whether ``command`` may write its results there: it may replace its own, and nothing else.

    Raises:
        FileExistsError: there is something else under that name.
        OSError: no folder can be made there.
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


def _made_by(path: Path) -> str | None:
    """The command whose results lie there."""
    try:
        # Not command.txt, where options may stand before the command.
        made_by = json.loads((path / "config.json").read_text(encoding="utf-8"))["command"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return str(made_by)


@contextmanager
def output_folder(path: Path, command: str) -> Iterator[Path]:
    """A folder that takes the place of an earlier one of the same command when the block ends well.

    Raises:
        FileExistsError: there is something else under that name.
    """
    check_output(path, command)
    path = path.absolute()
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    old = path.with_name(f"{path.name}.old-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    check_output(path, command)
    if path.exists():
        path.rename(old)
    partial.rename(path)
    shutil.rmtree(old, ignore_errors=True)
