"""Text files, plain or gzipped, in blocks of whole lines, within limits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cdr.data.cells import reason
from cdr.data.limits import Limits

_BLOCK = 1 << 24


def opened(path: Path) -> Any:
    """A file to be read from its beginning, unpacked if its name ends in .gz."""
    # Opened by python: pyarrow takes no names that are not UTF-8.
    return _unpacked(pa.PythonFile(path.open("rb"), mode="r"), path)


def _unpacked(raw: Any, path: Path) -> Any:
    return pa.CompressedInputStream(raw, "gzip") if path.name.endswith(".gz") else raw


def blocks(
    path: Path,
    limits: Limits,
    *,
    returns: bool = False,
    progress: Callable[[int], None] = lambda read: None,
) -> Iterator[bytes]:
    r"""Blocks of whole lines: each ends behind a line end, but perhaps for the last one.

    Args:
        path: The file.
        limits: Of its size and of its lines.
        returns: Whether "\r" by itself ends a line, as it does in tables; in records it does not.
        progress: Told how many bytes of the file have been read.

    Raises:
        ValueError: The file cannot be unpacked, or is beyond the limits.
        OSError: The file cannot be read.
    """
    rest, size, lines = b"", 0, 0
    with path.open("rb") as raw:
        stream = _unpacked(raw, path)
        while block := _read(stream, path):
            size += len(block)
            limits.refuse_size(path, raw.tell(), size)
            progress(raw.tell())
            # Not behind a "\r" that is the last byte: a "\n" may follow.
            end = max(block.rfind(b"\n"), block.rfind(b"\r", 0, -1) if returns else -1) + 1
            whole, rest = (rest + block[:end], block[end:]) if end else (b"", rest + block)
            if whole:
                lines += _checked_lines(whole, lines, path, limits, returns)
                yield whole
            if len(rest) > limits.line:
                raise limits.too_long(path, lines + 1)
    if rest:
        yield rest


def _checked_lines(text: bytes, before: int, path: Path, limits: Limits, returns: bool) -> int:
    """How many lines end in a text; none may be too long."""
    if len(text) > limits.line:
        characters = np.frombuffer(text, np.uint8)
        is_end = characters == ord("\n")
        ends = np.flatnonzero(is_end | (characters == ord("\r")) if returns else is_end)
        lengths = np.diff(ends, prepend=-1)
        if lengths.max(initial=0) > limits.line:
            start = int(ends[lengths.argmax()] - lengths.max()) + 1
            raise limits.too_long(path, before + line_ends(text[:start], returns) + 1)
    return line_ends(text, returns)


def line_ends(text: bytes, returns: bool = True) -> int:
    r"""How many lines end in a text: by "\n", "\r\n" and, if `returns`, "\r" alone."""
    ends = text.count(b"\n")
    if not returns or b"\r" not in text:
        return ends
    return ends + text.count(b"\r") - text.count(b"\r\n")


def _read(stream: Any, path: Path) -> bytes:
    try:
        block: bytes = stream.read(_BLOCK)
    except OSError as error:
        if not path.name.endswith(".gz"):
            raise
        raise ValueError(
            f"{path} cannot be decompressed ({reason(error)}). It is cut off or not what its name "
            "says: get it again."
        ) from error
    return block
