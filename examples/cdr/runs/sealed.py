"""Folders whose whole content is known by a checksum, so that damage is noticed before it is used.

No format notices all of it by itself: of single flipped bits in json and npz files, one in two
hundred gave other numbers.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

SEAL = "sha256.json"


def write_sealed(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write files into a new folder, with their checksums in one more.

    They are on the disk, not only on their way there, when this returns.
    """
    seal = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    told = json.dumps(seal, indent=2) + "\n"
    for name, content in {**contents, SEAL: told.encode()}.items():
        with (folder / name).open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())


def read_sealed(folder: Path, names: tuple[str, ...]) -> dict[str, bytes]:
    """Files of a folder and the checksums, if there are any, after a look at all of it.

    Args:
        folder: Written by :func:`write_sealed`, or by a version that made no checksums: what is
            there is then all that is known of it.
        names: The files to read.

    Raises:
        ValueError: A file was changed, is missing or was added.
        FileNotFoundError: One of ``names`` is missing.
        OSError: A file cannot be read for now.
    """
    if not (folder / SEAL).exists():
        return {name: (folder / name).read_bytes() for name in names}
    sealed = (folder / SEAL).read_bytes()
    seal = json.loads(sealed)
    found = set(os.listdir(folder)) - {SEAL}
    if not isinstance(seal, dict) or found != seal.keys():
        raise ValueError(f"{SEAL} does not name the files that are there")
    contents = {SEAL: sealed}
    for name, expected in seal.items():
        content = (folder / name).read_bytes()
        if hashlib.sha256(content).hexdigest() != expected:
            raise ValueError(f"the content of {name} was changed")
        if name in names:
            contents[name] = content
    missing = set(names) - contents.keys()
    if missing:
        raise FileNotFoundError(f"{', '.join(sorted(missing))} is missing")
    return contents
