"""Texts from files, made fit to be shown: nothing in them controls the page."""

from __future__ import annotations

# Those that change the direction of what stands behind them.
_DIRECTIONS = (*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F, 0x061C)
_SHOWN = {
    **{code: 0x2400 + code for code in range(32)},  # pictures of control characters
    127: 0x2421,
    **dict.fromkeys((*range(128, 160), *_DIRECTIONS, 0x2028, 0x2029), 0xFFFD),
}
_BUT_BLANKS = {code: shown for code, shown in _SHOWN.items() if chr(code) not in "\t\n"}


def visible(text: str) -> str:
    r"""The text with symbols in the place of control characters, line ends and tabs excepted.

    Example:
        >>> visible("a\x1b[31m\n")
        'a␛[31m\n'
    """
    return text.translate(_BUT_BLANKS)


def readable(text: str, longest: int = 120) -> str:
    r"""A name in one line: with symbols for control characters, and cut where it is very long.

    Args:
        text: A name, an id or a title.
        longest: Characters that are kept.

    Example:
        >>> readable("a\x07b"), readable("abcdef", 4)
        ('a␇b', 'abc…')
    """
    shown = text.strip().translate(_SHOWN)
    if len(shown) > longest:
        shown = f"{shown[: longest - 1]}…"
    return shown or "(blank)"
