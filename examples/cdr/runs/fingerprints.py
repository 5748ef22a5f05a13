"""Data sets identified by their content."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from cdr.data import CrossDomainData, Dataset, find_dataset, foreign_pair, sha256
from cdr.runs.runner import Source

# Arguments of a loader that say where files lie, or what is refused, not what is in them.
_PLACES = ("root", "items", "cache", "limits")


class Fingerprints:
    """The content of the data of a source, wherever the data lie.

    Args:
        folder: Keeps the hashes of files, so that each is read once. A data set that has a cache
            of its own keeps them there.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._of: dict[Source, dict[str, Any]] = {}

    def of(self, source: Source) -> dict[str, Any]:
        """Name, options and content of the data of a source.

        Raises:
            FileNotFoundError: The data are not there.
        """
        if source not in self._of:
            dataset = find_dataset(source.spec)
            # A table of one's own is what is in it, wherever it lies.
            self._of[source] = {
                "spec": Path(source.spec).name,
                "options": {k: v for k, v in source.options if k not in _PLACES},
                "content": self._content(dataset, dict(source.options)),
                **_repairs(dataset, source),
            }
        return self._of[source]

    def _content(self, dataset: Dataset, options: dict[str, Any]) -> dict[str, str]:
        """The hash of each file that the data are read from, or of a generated sample."""
        if dataset.sample is not None:
            return {"sample": _sample_hash(dataset)}
        root, folder = Path(options.get("root") or "."), self._folder
        if dataset.cache_folder is not None:
            folder = dataset.cache_folder(root, options.get("cache"))
        pairs = [(options["source"], options["target"])]
        harm = options.get("harm")
        foreign = None if harm is None else foreign_pair(dataset, harm, options)
        files = dataset.files(root, pairs if foreign is None else [*pairs, foreign])
        if options.get("items") is not None:
            files["items"] = Path(options["items"])
        return {name: sha256(path, folder) for name, path in files.items()}


def _repairs(dataset: Dataset, source: Source) -> dict[str, Any]:
    """What was done to rows of the data; nothing of data that are read as they stand.

    Without it, a training on the rows as they stand in the same files, kept by a version that did
    nothing to them, would be taken for one on the data of today.
    """
    if dataset.generated:
        return {}
    try:
        repaired = dict(source.repaired)
    except ValueError:  # the training will report it
        return {}
    return {"repaired": repaired} if repaired else {}


@lru_cache
def _sample_hash(dataset: Dataset) -> str:
    """A hash of a little generated data, which changes with the generator."""
    assert dataset.sample is not None
    data: CrossDomainData = dataset.sample()
    digest = hashlib.sha256()
    for rows in (data.source, data.train, data.valid, data.test, data.extra_test):
        assert rows is not None
        for column in (rows.user, rows.item, rows.label):
            digest.update(np.ascontiguousarray(column.numpy()).tobytes())
    return digest.hexdigest()
