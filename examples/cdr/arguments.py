"""How the command lines show their options."""

from __future__ import annotations

from typing import Any

import tyro


def optional(metavar: str, default: str = "") -> Any:
    """How the help text shows an option that may be left out."""
    hint = f"(default: {default})" if default else ""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=hint)
