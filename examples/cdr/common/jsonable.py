"""Json of options, results and numpy values."""

from __future__ import annotations

import json
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np


def to_json(value: Any, indent: int | None = None) -> str:
    """Json text of dataclasses, mappings, sequences, paths and numpy values; NaN becomes null."""
    return json.dumps(_plain(value), indent=indent, ensure_ascii=False, allow_nan=False)


def write_json(path: Path, value: Any) -> None:
    """Write :func:`to_json`, indented, to a file."""
    path.write_bytes(encoded(to_json(value, indent=2) + "\n"))


def encoded(text: str) -> bytes:
    """A text as bytes of UTF-8, whatever the locale.

    A path that is not of the locale's encoding has its bytes in the text, as Python's surrogates;
    they become those bytes again. Other surrogates become escapes.
    """
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace")


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, (np.generic, np.ndarray)):
        return _plain(value.tolist())
    if isinstance(value, float) and not np.isfinite(value):
        return None
    if isinstance(value, Path):
        return str(value)
    return value
