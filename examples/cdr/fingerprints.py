"""Data told apart by their content."""

from __future__ import annotations

import hashlib
import json
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from cdr import data as datasets
from cdr.run_folder import write_json
from cdr.runner import Source

# Arguments of a loader that say where files lie, not what is in them.
_PLACES = ("root", "items")


class Fingerprints:
    """What the data of a source are, by content rather than by place.

    Args:
        memory: a file that remembers the hashes of files, so that each is read once. A file whose
            size or time of change is another is read again.
    """

    def __init__(self, memory: Path) -> None:
        self._memory = memory
        self._of: dict[Source, dict[str, Any]] = {}

    def of(self, source: Source) -> dict[str, Any]:
        """Name, options and content of the data of a source.

        Raises:
            FileNotFoundError: no data are there.
        """
        if source not in self._of:
            told = {name: value for name, value in source.options if name not in _PLACES}
            files = _files(source)
            if source.seeded:
                content = {"sample": _sample(source.spec)}
            else:
                content = {path.name: self._hash(path) for path in files}
            # A file of one's own is what is in it, wherever it lies.
            spec = Path(source.spec).name
            self._of[source] = {"spec": spec, "options": told, "content": content}
        return self._of[source]

    def _hash(self, path: Path) -> str:
        known: dict[str, Any] = {}
        if self._memory.exists():
            known = json.loads(self._memory.read_text(encoding="utf-8"))
        stat = path.stat()
        entry = known.get(str(path.resolve()))
        if entry is None or entry[:2] != [stat.st_size, stat.st_mtime_ns]:
            entry = [stat.st_size, stat.st_mtime_ns, _sha256(path)]
            self._memory.parent.mkdir(parents=True, exist_ok=True)
            partial = self._memory.with_name(f"{self._memory.name}.partial-{os.getpid()}")
            write_json(partial, known | {str(path.resolve()): entry})
            partial.replace(self._memory)
        return str(entry[2])


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _files(source: Source) -> list[Path]:
    """The files that a source is read from."""
    if source.seeded:
        return []
    given = dict(source.options)
    root = Path(given.get("root") or ".")
    if source.spec in ("amazon5", "epinions"):
        folder = root / source.spec
        files = sorted(folder.glob("*.csv.gz"))
        if not files:
            raise FileNotFoundError(f"There are no .csv.gz files in {folder}; check --root {root}.")
        return files
    files = [root / source.spec]
    if given.get("items") is not None:
        files.append(Path(given["items"]))
    if not files[0].is_file():
        raise FileNotFoundError(f"There is no file {files[0]}; check the path to the data.")
    return files


@lru_cache
def _sample(spec: str) -> str:
    """A hash of a little generated data, which changes with the generator."""
    data = datasets.load(spec, num_users=20, num_source_items=60, num_target_items=60, seed=0)
    digest = hashlib.sha256()
    for rows in (data.source, data.train, data.valid, data.test, data.extra_test):
        assert rows is not None
        for column in (rows.user, rows.item, rows.label):
            digest.update(np.ascontiguousarray(column.numpy()).tobytes())
    return digest.hexdigest()
