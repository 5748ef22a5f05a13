"""Texts from files, made fit to be shown: nothing in them controls what shows them."""

from __future__ import annotations

import re

# Those that change the direction of what stands behind them.
_DIRECTIONS = (*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F, 0x061C)
_SHOWN = {
    **{code: 0x2400 + code for code in range(32)},  # pictures of control characters
    127: 0x2421,
    **dict.fromkeys((*range(128, 160), *_DIRECTIONS, 0x2028, 0x2029, 0xFEFF), 0xFFFD),
    **dict.fromkeys(range(0xD800, 0xE000), 0xFFFD),  # halves of pairs, which no file can hold
}
_BUT_BLANKS = {code: shown for code, shown in _SHOWN.items() if chr(code) not in "\t\n"}


# What markdown, its tables, html in it, and formulas begin or end with. A bracket does so before a
# parenthesis, another bracket or a colon, an underscore at the end of a word, a star before more.
_MARKUP = re.compile(r"[\\`<>|$~&]|\*(?!$)|\](?=[(\[:])|(?<![^\W_])_|_(?![^\W_])")
_FIRST = re.compile(r"^(?:#{1,6}(?=\s|$)|[+-](?=[\s-]|$)|\d+(?=[.)](?:\s|$)))")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def in_line(text: str) -> str:
    r"""The text in one line, with symbols in the place of all control characters.

    Example:
        >>> in_line("a\x1b[31m\nb")
        'a␛[31m␊b'
    """
    return text.translate(_SHOWN)


def in_markdown(text: str) -> str:
    r"""The text in one line of markdown within others, such as a cell, which shows it as it is.

    Example:
        >>> print(in_markdown("<b>|$x$ Toys_and_Games [a](b)"))
        \<b\>\|\$x\$ Toys_and_Games [a\](b)
    """
    return _MARKUP.sub(_escaped, in_line(text))


def as_paragraph(text: str) -> str:
    r"""The same of a text that begins a paragraph, where further signs mean something.

    Example:
        >>> print(as_paragraph("# 1"), as_paragraph("1. a"))
        \# 1 1\. a
    """
    return _FIRST.sub(_escaped, in_markdown(text))


def _escaped(found: re.Match[str]) -> str:
    sign = found[0]
    return f"{sign}\\" if sign.isdecimal() else f"\\{sign}"


def in_csv(value: object) -> object:
    r"""The value for a csv file: a text that a spreadsheet would calculate gets a quote in front.

    Example:
        >>> in_csv("=1+1"), in_csv("base"), in_csv(-1)
        ("'=1+1", 'base', -1)
    """
    if not isinstance(value, str):
        return value
    shown = in_line(value)
    return f"'{shown}" if value.lstrip().startswith(_FORMULA) else shown


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
