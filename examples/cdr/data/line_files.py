"""Large text files of one record a line, plain or gzipped: blocks of lines, and the bad ones."""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from tqdm import tqdm

from cdr.data.limits import Limits
from cdr.data.unpacking import blocks

_SHOWN = 5
_KEY = b"bad_lines"


@dataclass(frozen=True)
class BadLines:
    """Lines of a file that could not be read and were left out.

    Args:
        count: How many.
        first: Numbers of the first few; the first line of a file is line 1.
        lines: How many lines the file has, blank ones included.
        repeated: How many good lines were left out as well, for an earlier line on the same item.
    """

    count: int = 0
    first: tuple[int, ...] = ()
    lines: int = 0
    repeated: int = 0

    def __add__(self, later: BadLines) -> BadLines:
        first = (*self.first, *(number + self.lines for number in later.first))
        repeated = self.repeated + later.repeated
        return BadLines(
            self.count + later.count, first[:_SHOWN], self.lines + later.lines, repeated
        )

    def sentence(self, name: str, kind: str) -> str:
        """A sentence on the bad lines, which were left out; "" if there are none.

        Args:
            name: Name of the file.
            kind: What a good line is: "a review".
        """
        if not self.count:
            return ""
        numbers = ", ".join(f"{number:,}" for number in self.first)
        more = ", …" if self.count > len(self.first) else ""
        lines = f"line{'s' * (self.count > 1)} {numbers}{more}"
        return (
            f"{self.count:,} of {self.lines:,} lines of {name} {'are' if self.count > 1 else 'is'} "
            f"not {kind} and left out ({lines})."
        )

    def sentence_on_repeated(self, name: str) -> str:
        """A sentence on the lines that were left out for an earlier one; "" if there are none."""
        if not self.repeated:
            return ""
        return (
            f"{self.repeated:,} of {self.lines:,} lines of {name} "
            f"{'are' if self.repeated > 1 else 'is'} on an item with a line above, which counts."
        )

    def beside(self, table: pa.Table) -> pa.Table:
        """The table with this written into its metadata, where `of` finds it."""
        return table.replace_schema_metadata({_KEY: json.dumps(vars(self))})

    @staticmethod
    def of(table: pa.Table) -> BadLines:
        """The value that `beside` has written."""
        known = json.loads(table.schema.metadata[_KEY])
        return BadLines(**{**known, "first": tuple(known["first"])})


def map_blocks(
    path: Path, parse: Callable[[bytes], tuple[pa.Table, BadLines]], limits: Limits
) -> Iterator[tuple[pa.Table, BadLines]]:
    """Parse a file block by block, in threads, and yield what comes of each block in file order.

    A few blocks of 16 MiB are in memory at a time, however large the file is.

    Args:
        path: A file, gzipped if its name ends in .gz.
        parse: Takes whole lines.
        limits: Of its size and its lines.

    Raises:
        ValueError: If the file is not what its name says, is cut off, or is beyond the limits.
    """
    workers = min(8, os.cpu_count() or 1)
    waiting: deque[Future[tuple[pa.Table, BadLines]]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for block in _shown(path, limits):
                waiting.append(pool.submit(parse, block))
                if len(waiting) > workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _shown(path: Path, limits: Limits) -> Iterator[bytes]:
    """The blocks of a file, with a bar."""
    with tqdm(
        total=path.stat().st_size, unit="B", unit_scale=True, desc=path.name, disable=None
    ) as bar:
        yield from blocks(path, limits, progress=lambda read: bar.update(read - bar.n))
