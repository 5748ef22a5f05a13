"""A run that has not finished: what it was, what is kept of it, and how it goes on."""

from __future__ import annotations

import json
import logging
import os
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cdr.common import encoded, locked

logger = logging.getLogger("cdr")

TRAININGS = "trainings"
_NOTE = "resume.json"
_PARTIAL = ".partial"


@dataclass(frozen=True)
class Unfinished:
    """What a run was begun with.

    Attributes:
        arguments: Of its command line.
        folder: In which it was begun: paths among the arguments may be relative to it.
        commit: The version of the code.
        data: Name, options and content of its data.
        trainings: By name, the key of each.
    """

    arguments: tuple[str, ...]
    folder: str
    commit: str | None
    data: Mapping[str, Any]
    trainings: Mapping[str, str]

    def write(self, folder: Path) -> None:
        """Keep it in the folder of the run."""
        told = {**vars(self), "arguments": [_ascii(a) for a in self.arguments]}
        (folder / _NOTE).write_bytes(encoded(json.dumps(told, indent=2) + "\n"))

    def check(self, now: Unfinished, folder: Path) -> None:
        """Check that the same would be trained now.

        Args:
            now: What the run would be begun with now.
            folder: Where the run lies.

        Raises:
            ValueError: Something else would.
        """
        changed = differing(self.data, now.data)
        if changed:
            raise ValueError(
                f"--resume {folder}: the data are not those that the run was begun with; other "
                f"{', '.join(changed)} (it was begun in {self.folder}); bring them back, or start "
                "another run"
            )
        if self.trainings != now.trainings:
            raise ValueError(
                f"--resume {folder}: this version of the code ({now.commit}) would train something "
                f"else than the one that the run was begun with ({self.commit}); take that one, or "
                "start another run"
            )
        if self.commit != now.commit:
            logger.warning(
                "the run was begun with version %s of the code, and goes on with %s",
                self.commit,
                now.commit,
            )

    @classmethod
    def read(cls, folder: Path) -> Unfinished:
        """What :meth:`write` has kept.

        Raises:
            ValueError: It is damaged.
            FileNotFoundError: The folder is not that of such a run.
        """
        try:
            told = json.loads((folder / _NOTE).read_bytes())
            arguments = tuple(_from_ascii(a) for a in told.pop("arguments"))
            return cls(arguments, **told)
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise ValueError(
                f"{folder / _NOTE} is damaged ({error}): the run cannot go on; what it has "
                f"finished is in {folder / TRAININGS}"
            ) from error


def partial_name(path: Path) -> Path:
    """Where a run lies until it is finished."""
    return path.with_name(path.name + _PARTIAL)


def find(path: Path) -> tuple[Path, Path]:
    """The folder of an unfinished run, and its name when it is finished.

    Args:
        path: Either of the two.

    Raises:
        FileExistsError: It is finished, or something else has the name of the finished one.
        FileNotFoundError: There is no such run.
    """
    is_partial = path.name.endswith(_PARTIAL)
    final = path.with_name(path.name.removesuffix(_PARTIAL)) if is_partial else path
    partial = partial_name(final)
    if not (partial / _NOTE).is_file():
        if final.is_dir() and not partial.exists():
            forget(final)  # killed at its very end, it may have left this
            raise FileExistsError(f"--resume {path}: that run is finished; {final} has its results")
        raise FileNotFoundError(
            f"--resume {path}: there is no unfinished run; give the folder that the interrupted "
            f"run has named, which ends in {_PARTIAL}"
        )
    if os.path.lexists(final):
        raise FileExistsError(
            f"--resume {path}: {final} exists, and would be the folder of the finished run; rename "
            f"{partial} to another name that ends in {_PARTIAL}, and resume that"
        )
    return partial, final


def kept(folder: Path) -> bool:
    """Whether there is anything to go on with in the folder of an unfinished run."""
    return bool(_finished(folder) or _begun(folder))


def told(path: Path, program: str) -> str:
    """A sentence on what is kept of a run that has ended, or nothing.

    Args:
        path: Of the finished run.
        program: What to call to go on.
    """
    partial = partial_name(path)
    if not kept(partial):
        return ""
    with locked(partial) as ours:
        if not ours:  # it is another run's, which goes on
            return ""
    try:
        wanted = len(Unfinished.read(partial).trainings)
    except (OSError, ValueError):
        return ""
    finished, begun = len(_finished(partial)), len(_begun(partial))
    state = f", and the state of {begun} more" if begun else ""
    return (
        f"{finished} of {wanted} trainings are finished and kept in {partial}{state}; go on with: "
        f"{program} --resume {shlex.quote(str(partial))}"
    )


def forget(folder: Path) -> None:
    """Remove what only a run that has not finished needs: all of it is in the results."""
    (folder / _NOTE).unlink(missing_ok=True)
    shutil.rmtree(folder / TRAININGS, ignore_errors=True)


def _finished(folder: Path) -> list[Path]:
    return [p for p in folder.glob(f"{TRAININGS}/??/*") if "." not in p.name]


def _begun(folder: Path) -> list[Path]:
    return [p for p in folder.glob(f"{TRAININGS}/states/*") if any(p.iterdir())]


def _ascii(argument: str) -> str:
    """An argument as the bytes that it came as; json writes those that are no UTF-8 as escapes."""
    return os.fsencode(argument).decode("utf-8", "surrogateescape")


def _from_ascii(argument: str) -> str:
    """The argument in the locale of today."""
    return os.fsdecode(argument.encode("utf-8", "surrogateescape"))


def differing(one: Any, other: Any, place: str = "") -> Sequence[str]:
    """The names of what differs between two nested values, as ``outer.lr``."""
    if isinstance(one, dict) and isinstance(other, dict):
        names = dict.fromkeys([*one, *other])
        return [
            found
            for name in names
            for found in differing(one.get(name), other.get(name), f"{place}.{name}".lstrip("."))
        ]
    return [] if one == other else [place]
