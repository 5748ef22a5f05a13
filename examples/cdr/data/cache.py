"""Tables read once from large files and kept as parquet, for as long as the files do not change."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet

from cdr.common import encoded, new_file

VERSION = 3  # to be raised with every change of what is kept


def cached(path: Path, folder: Path, read: Callable[[Path], pa.Table]) -> pa.Table:
    """What `read` makes of a file, out of the folder if the file has been read before.

    A table is kept under the SHA-256 of its file, and beside it the SHA-256 of the table, which is
    compared before anything of it is read. A table that is damaged is made again.

    Args:
        path: The file.
        folder: Where tables are kept; made if it is missing.
        read: Reads the file. It keeps its dictionaries and the metadata of the table.

    Raises:
        FileNotFoundError: If the file is missing.
        OSError: If the folder cannot be written to.
        ValueError: If the file changes in the meantime; or what `read` raises.
    """
    before = _state(path)
    kept = folder / f"{path.name}-{sha256(path, folder)}-v{VERSION}.parquet"
    sealed = kept.with_name(f"{kept.name}.sha256")
    # It is missing, damaged, or of a version of pyarrow that writes what this one does not read.
    with suppress(OSError, ValueError, pa.ArrowException):
        content = kept.read_bytes()
        if sealed.read_text(encoding="ascii") == hashlib.sha256(content).hexdigest():
            table = pyarrow.parquet.read_table(pa.BufferReader(content))
            return table.unify_dictionaries().combine_chunks()
    table = read(path)
    if _state(path) != before:
        raise ValueError(
            f"{path} changed while it was read: something is still writing to it. Wait until it "
            "is complete."
        )
    with _written(kept) as partial:
        pyarrow.parquet.write_table(table, partial, compression="zstd")
        digest = _digest(partial)
    with _written(sealed) as partial:
        partial.write_text(digest, encoding="ascii")
    return table


def _state(path: Path) -> dict[str, object]:
    found = path.stat()
    times = {"modified": found.st_mtime_ns, "changed": found.st_ctime_ns}
    return {"path": str(path.resolve()), "size": found.st_size, **times}


def sha256(path: Path, folder: Path) -> str:
    """The SHA-256 of a file, which is read once for as long as its size and times stay the same.

    Args:
        path: The file.
        folder: Where the hash is kept; made if it is missing.

    Raises:
        FileNotFoundError: If the file is missing.
        OSError: If the folder cannot be written to.
    """
    state = _state(path)
    # Files of one name may lie in several places.
    place = hashlib.sha256(encoded(str(state["path"]))).hexdigest()[:8]
    note = folder / f"{path.name}-{place}.sha256.json"
    with suppress(OSError, ValueError, LookupError, TypeError, RecursionError):
        known = json.loads(note.read_text(encoding="utf-8"))
        digest = known["sha256"]
        if known == _note(state, digest):
            return str(digest)
    digest = _digest(path)
    with _written(note) as partial:
        partial.write_text(json.dumps(_note(state, digest)), encoding="utf-8")
    return digest


def _note(state: Mapping[str, object], digest: str) -> dict[str, object]:
    """What is kept of a hash, with a checksum of its own: one digit may have changed on disk."""
    content = {**state, "sha256": digest}
    return {**content, "check": hashlib.sha256(json.dumps(content).encode()).hexdigest()}


def _digest(path: Path) -> str:
    hasher = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            hasher.update(block)
    return hasher.hexdigest()


@contextmanager
def _written(path: Path) -> Iterator[Path]:
    """:func:`cdr.common.atomic.new_file`, with an error that names the options to change."""
    with ExitStack() as stack:
        try:
            partial = stack.enter_context(new_file(path))
        except OSError as error:
            raise OSError(
                f"the cache {path.parent} cannot be written to ({error.strerror}): make it "
                "writable, or name another folder (run_biao.py: --cache; reproduce.py: a --root "
                "that links to the files)"
            ) from error
        yield partial
