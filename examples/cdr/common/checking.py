"""Checks of options, whose errors name the flag of the command line."""

from __future__ import annotations

import math
from typing import Any


def at_least(least: float, section: str, options: Any, *names: str) -> None:
    """Raise unless each of these options is finite and at least ``least``; None passes."""
    for name in names:
        value = getattr(options, name)
        if value is not None and not (math.isfinite(value) and value >= least):
            refuse(section, name, value, f"it must be {least} or more")


def positive(section: str, options: Any, *names: str) -> None:
    """Raise unless each of these options is a finite number above zero; None passes."""
    for name in names:
        value = getattr(options, name)
        if value is not None and not (math.isfinite(value) and value > 0):
            refuse(section, name, value, "it must be a number above 0")


def share(section: str, options: Any, name: str) -> None:
    """Raise unless this option lies between 0 and 1."""
    value = getattr(options, name)
    if not 0 < value < 1:
        refuse(section, name, value, "it must lie between 0 and 1")


def widths(section: str, options: Any, *names: str) -> None:
    """Raise unless every width in these options is at least 1."""
    for name in names:
        value = getattr(options, name)
        if any(width < 1 for width in value):
            refuse(section, name, value, "every width must be 1 or more")


def refuse(section: str, name: str, value: Any, rule: str) -> None:
    """Raise, naming the flag that sets the option."""
    if isinstance(value, tuple):
        value = " ".join(map(str, value))
    raise ValueError(f"--{section}.{name.replace('_', '-')} {value}: {rule}.")
