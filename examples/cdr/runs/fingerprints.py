"""Data told apart by their content."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from cdr import data as datasets
from cdr.data import amazon, recbole
from cdr.data.cache import sha256
from cdr.runs.runner import Source

# Arguments of a loader that say where files lie, not what is in them.
_PLACES = ("root", "items", "cache")


class Fingerprints:
    """What the data of a source are, by content rather than by place.

    Args:
        folder: remembers the hashes of files, so that each is read once. Those of Amazon's
            original files are remembered where their tables are kept.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._of: dict[Source, dict[str, Any]] = {}

    def of(self, source: Source) -> dict[str, Any]:
        """Name, options and content of the data of a source.

        Raises:
            FileNotFoundError: no data are there.
        """
        if source not in self._of:
            told = {name: value for name, value in source.options if name not in _PLACES}
            if source.seeded:
                content = {"sample": _sample(source.spec)}
            else:
                folder = self._folder
                if source.spec == "amazon":
                    given = dict(source.options)
                    folder = amazon.cache_folder(given["root"], given.get("cache"))
                content = {name: sha256(path, folder) for name, path in _files(source).items()}
            # A file of one's own is what is in it, wherever it lies.
            spec = Path(source.spec).name
            self._of[source] = {"spec": spec, "options": told, "content": content}
        return self._of[source]


def _files(source: Source) -> dict[str, Path]:
    """The files that a source is read from, by names that tell them apart."""
    given = dict(source.options)
    root = Path(given.get("root") or ".")
    if source.spec == "amazon":
        domains = amazon.domains_of(given["source"], given["target"])
        return {path.name: path for of in amazon.find(root, domains).values() for path in of}
    if source.spec == "recbole":
        domains = [*given["source"].split("+"), given["target"]]
        return {
            f"{domain}: {kind}": path
            for domain, of in recbole.find(root, domains).items()
            for kind, path in of._asdict().items()
            if path is not None
        }
    if source.spec in ("amazon5", "epinions"):
        folder = root / source.spec
        tables = sorted(folder.glob("*.csv.gz"))
        if not tables:
            raise FileNotFoundError(f"There are no .csv.gz files in {folder}; check --root {root}.")
        return {path.name: path for path in tables}
    table = root / source.spec
    if not table.is_file():
        raise FileNotFoundError(f"There is no file {table}; check the path to the data.")
    files = {table.name: table}
    if given.get("items") is not None:
        files["items"] = Path(given["items"])
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
