"""Python literals from files, read within limits: nothing is executed, nothing can crash."""

from __future__ import annotations

import ast
import re
from typing import TypeGuard

STRING = r"""(?:'[^'\\]*(?:\\.[^'\\]*)*'|"[^"\\]*(?:\\.[^"\\]*)*")"""
"""A python string without its prefix."""

_STRING = re.compile(STRING, re.DOTALL)
# All but what nests: brackets, and signs, each of which is a level to the parser.
_OTHERS = re.compile(r"[^()\[\]{}+\-~]+")


def literal(text: str, max_nesting: int) -> object:
    """The value of a literal; None for anything else, and for one that is nested more deeply.

    Example:
        >>> literal("[['Toys', 1]]", 2), literal("[[['Toys']]]", 2), literal("print()", 2)
        ([['Toys', 1]], None, None)
    """
    if _depth(text, max_nesting) > max_nesting:
        return None
    try:
        value: object = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None
    return value


def _depth(text: str, max_nesting: int) -> int:
    """How deep a text is nested, or more; 0 where it surely is not too deep."""
    if sum(text.count(sign) for sign in "([{+-~") <= max_nesting:
        return 0
    depth = deepest = signs = 0
    for sign in _OTHERS.sub("", _STRING.sub(" ", text)):
        if sign in "+-~":
            signs += 1  # also those of sums, which nest as well
        else:
            depth += 1 if sign in "([{" else -1
            deepest = max(deepest, depth)
    return deepest + signs


def is_text(value: object) -> TypeGuard[str]:
    """Whether a value is a string that is not empty and can be written as UTF-8."""
    if not isinstance(value, str) or not value:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
