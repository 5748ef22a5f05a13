"""What a run leaves behind: everything needed to read it, believe it and repeat it."""

from __future__ import annotations

import json
import logging
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, is_dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cdr.kept_log import logged

logger = logging.getLogger("cdr")

_PACKAGES = ("torch-reweight", "torch", "numpy", "pyarrow", "scipy", "tyro")


@contextmanager
def run_folder(path: Path) -> Iterator[Path]:
    """A folder that appears under its name only when the block has ended well.

    Until then everything lies in ``<name>.partial`` beside it, which is removed on an error.

    Raises:
        FileExistsError: there is something under that name already.
        OSError: nothing can be written there, or the name was taken in the meantime; what was
            written is kept then.
    """
    if os.path.lexists(path):
        raise FileExistsError(
            f"--out {path} exists already and is left as it is: give another name, or remove it"
        )
    partial = path.with_name(path.name + ".partial")
    made = [folder for folder in partial.parents if not folder.exists()]
    try:
        partial.mkdir(parents=True)
    except FileExistsError:
        raise FileExistsError(
            f"{partial} exists: another run is writing to it, or one was killed; remove it if "
            "none is running, or give another --out"
        ) from None
    except OSError as error:
        raise OSError(
            f"--out {path}: no folder can be made there ({error.strerror}); give another place"
        ) from error
    try:
        with logged(logging.FileHandler(partial / "log.txt", encoding="utf-8")):
            yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        for folder in made:
            with suppress(OSError):
                folder.rmdir()
        raise
    try:
        partial.rename(path)
    except OSError as error:
        raise OSError(
            f"--out {path} cannot be made any more ({error.strerror}); everything is in {partial}"
        ) from error


def write_json(path: Path, value: Any) -> None:
    """Write indented json; dataclasses and numpy values are understood, NaN becomes null."""
    path.write_text(to_json(value, indent=2) + "\n", encoding="utf-8")


def to_json(value: Any, indent: int | None = None) -> str:
    """The same as text."""
    return json.dumps(_plain(value), indent=indent, ensure_ascii=False, allow_nan=False)


def log_history(name: str, history: Sequence[Mapping[str, float]]) -> None:
    """Log a record of each epoch of a training."""
    for record in history:
        logger.info("%s %s", name, to_json(record))


def environment(device: str) -> dict[str, Any]:
    """Versions and machine of this process."""
    return {
        "python": sys.version.split()[0],
        "packages": {name: _version(name) for name in _PACKAGES},
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else "cpu",
        "threads": torch.get_num_threads(),
        "commit": _commit(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None if found.returncode == 0 else None


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
