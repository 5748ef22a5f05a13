"""Values from files as messages show them, and errors that name their file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

_LONGEST = 60
_LISTED = 160  # characters, so that a message with a list stays below 400


def shown(value: object, longest: int = _LONGEST) -> str:
    r"""A value as python writes it, in one line, with control characters escaped, and cut.

    Args:
        value: A cell, a name or a line, of any length.
        longest: Characters that are shown, beside the quotes.

    Example:
        >>> print(shown("a\x1b[31m"), shown("abcdefgh", 4), shown(None))
        'a\x1b[31m' 'abc…' None
    """
    if not isinstance(value, (str, bytes)):
        text = " ".join(repr(value).split())
        return text if len(text) <= longest else f"{text[: longest - 1]}…"
    text = repr(value[: longest + 1])  # never all of a long value
    room = longest + len(repr(value[:0]))
    if len(value) <= longest and len(text) <= room:
        return text
    return f"{text[: room - 2]}…{text[-1]}"


def listed(values: Iterable[object], longest: int = _LISTED) -> str:
    """As many values as a sentence has room for, and how many more there are.

    Example:
        >>> listed(["a", "b", "c"], 8)
        "'a', 'b' and 1 more"
    """
    texts = [shown(value, 40) for value in values]
    kept, length = 0, 0
    for text in texts:
        length += len(text) + 2
        if kept and length > longest + 2:
            break
        kept += 1
    more = len(texts) - kept
    return ", ".join(texts[:kept]) + (f" and {more:,} more" if more else "")


@contextmanager
def naming(path: Path | str) -> Iterator[None]:
    """Name the file in an error about its content, where the error does not do so itself.

    Raises:
        ValueError: What the block raises; also what pyarrow cannot do with a column.
    """
    try:
        yield
    except pa.ArrowException as error:
        raise ValueError(
            f"{path} cannot be read ({reason(error)}). It is damaged, or written in a way that is "
            "not read: write it again."
        ) from error
    except ValueError as error:
        if str(path) in str(error):
            raise
        raise ValueError(f"{path}: {error}") from error


def reason(error: Exception) -> str:
    """What an error says, in one line and cut."""
    text = "".join(c if c.isprintable() else " " for c in str(error)[:1000])
    text = " ".join(text.split()) or type(error).__name__
    return text if len(text) <= 120 else f"{text[:119]}…"
