"""How the command lines show their options, and what they have to know before they are parsed."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import Any

import tyro


def optional(metavar: str, default: str = "", text: str | None = None) -> Any:
    """How the help text shows an option that may be left out.

    Args:
        metavar: Stands for the value.
        default: The default in words.
        text: The help; if left out, the docstring of the field.
    """
    hint = f"(default: {default})" if default else ""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=hint, help=text)


def values(arguments: Sequence[str], flag: str) -> list[str]:
    """What is given with a flag that the defaults of others depend on."""
    found: list[str] = []
    for i, argument in enumerate(arguments):
        name, _, value = argument.partition("=")
        if name == flag:
            after = takewhile(lambda a: not a.startswith("--"), arguments[i + 1 :])
            found = [value] if value else list(after)
    return found


def without(arguments: Sequence[str], flag: str) -> list[str]:
    """The arguments without a flag and its value."""
    found: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if argument == flag:
            next(rest, None)
        elif argument.partition("=")[0] != flag:
            found.append(argument)
    return found
