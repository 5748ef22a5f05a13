"""The list of a checkpoint's files, by which damage is found before a file is read."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

NAME = "manifest.json"
_KIND = {"kind": "reweight checkpoint", "version": 1}
_BLOCK = 1 << 20

Entry = dict[str, Any]


def entries(folder: Path, names: Iterable[str]) -> dict[str, Entry]:
    """SHA-256 and size of files."""
    return {name: _entry(folder / name) for name in names}


def files(folder: Path) -> list[str]:
    """The names of all entries of a folder but the manifest, in their order."""
    return sorted(set(os.listdir(folder)) - {NAME})


def write(folder: Path, found: dict[str, Entry]) -> None:
    """Write the manifest, the last file of a checkpoint."""
    with (folder / NAME).open("w", encoding="utf-8") as file:
        json.dump({**_KIND, "files": dict(sorted(found.items()))}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def read(folder: Path) -> dict[str, Entry]:
    """The files that a checkpoint consists of; that none is missing, and none was added.

    Raises:
        ValueError: there is no manifest that can be read, or the files are others.
    """
    try:
        told = json.loads((folder / NAME).read_bytes())
        listed: dict[str, Entry] = told["files"]
        kind = {name: told[name] for name in _KIND}
        complete = all(set(entry) == {"sha256", "size"} for entry in listed.values())
    except FileNotFoundError:
        raise ValueError(
            f"{folder} has no {NAME}: it is not a checkpoint of reweight, or a copy of one that is "
            "not complete; give the folder that was saved to"
        ) from None
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise _damaged(folder, f"its {NAME} cannot be read ({error})") from error
    if kind != _KIND or not complete:
        raise _damaged(folder, f"its {NAME} is of {kind}, and {_KIND} can be read")
    found = set(files(folder))
    if missing := sorted(listed.keys() - found):
        raise _damaged(folder, f"{', '.join(missing)} is missing")
    if added := sorted(found - listed.keys()):
        raise _damaged(folder, f"{', '.join(added)} was added after it was saved")
    return listed


def compare(folder: Path, listed: dict[str, Entry], names: Iterable[str]) -> None:
    """Compare size and SHA-256 of files with those in the manifest.

    Raises:
        ValueError: one differs.
    """
    for name in names:
        path = folder / name
        if path.is_symlink() or not path.is_file():
            raise _damaged(folder, f"{name} is no file of its own")
        # A file of another size need not be read.
        size = path.stat().st_size
        if size != listed[name]["size"]:
            raise _damaged(folder, f"{name} has {size} bytes, and had {listed[name]['size']}")
        if _entry(path) != listed[name]:
            raise _damaged(folder, f"{name} has other content than when it was saved (SHA-256)")


def read_checked(folder: Path, name: str, listed: dict[str, Entry]) -> bytes:
    """The content of a file, if it is the one in the manifest.

    Raises:
        ValueError: it is not.
    """
    content = (folder / name).read_bytes()
    if hashlib.sha256(content).hexdigest() != listed[name]["sha256"]:
        raise _damaged(folder, f"{name} has other content than when it was saved (SHA-256)")
    return content


def _entry(path: Path) -> Entry:
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            size += len(block)
    return {"sha256": digest.hexdigest(), "size": size}


def _damaged(folder: Path, what: str) -> ValueError:
    return ValueError(
        f"checkpoint {folder}: {what}. Nothing of it was loaded; copy it again, or load an older "
        "one"
    )
