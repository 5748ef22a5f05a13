"""How much a file may ask of the machine before it is refused."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cdr.common import positive

GIB, MIB = 1 << 30, 1 << 20
# Small files may be as regular as they like.
_ALWAYS = 64 * MIB


@dataclass(frozen=True)
class Limits:
    """What is refused of files, since they are damaged or made to do harm.

    Raises:
        ValueError: A limit is not above 0.
    """

    max_ratio: float = 200.0
    """How many times its size a packed file may be unpacked, beyond 64 MiB. Gzip packs logs to a
    third or a thirtieth, and zeros to a thousandth."""
    max_gib: float = 64.0
    """GiB that a file may have unpacked."""
    max_line_mib: float = 4.0
    """MiB of a line, and of a row with line breaks in quotes."""
    max_nesting: int = 64
    """Brackets within brackets in a line of reviews or of metadata."""
    max_memory_gib: float = 16.0
    """GiB of memory that the columns of a table may take."""

    def __post_init__(self) -> None:
        positive("limits", self, *vars(self))

    @property
    def line(self) -> int:
        """The longest line, in bytes."""
        return int(self.max_line_mib * MIB)

    def refuse_size(self, path: Path, packed: int, unpacked: int) -> None:
        """Refuse a file that is too large.

        Args:
            path: The file.
            packed: Bytes that were read of it.
            unpacked: Bytes that came of them.

        Raises:
            ValueError: There are too many.
        """
        if unpacked > self.max_gib * GIB:
            raise ValueError(
                f"{path} has more than {self.max_gib:g} GiB unpacked. If it is what you mean to "
                "read, raise --limits.max-gib."
            )
        if unpacked > _ALWAYS and unpacked > self.max_ratio * packed:
            raise ValueError(
                f"{path} unpacks {packed:,} bytes to more than {unpacked:,}, as a file does that "
                "is made to fill the memory. If it is what you mean to read, raise "
                "--limits.max-ratio."
            )

    def refuse_memory(self, path: Path, size: int) -> None:
        """Refuse a table that takes too much memory.

        Args:
            path: Its file.
            size: Bytes of its columns so far.

        Raises:
            ValueError: There are too many.
        """
        if size > self.max_memory_gib * GIB:
            raise ValueError(
                f"{path}: its columns take more than {self.max_memory_gib:g} GiB of memory. Drop "
                "rows that are not needed, or raise --limits.max-memory-gib."
            )

    def too_long(self, path: Path, number: int, what: str = "") -> ValueError:
        """The error on a line or a row that is too long.

        Args:
            path: The file.
            number: Of the line on which it begins.
            what: What may be the cause.
        """
        return ValueError(
            f"{path}: line {number:,} is longer than {self.max_line_mib:g} MiB. "
            f"{what or 'Is a line end missing, or is it no text?'} If it is as it should be, raise "
            "--limits.max-line-mib."
        )


LIMITS = Limits()
"""Those of all readers, unless others are given."""
