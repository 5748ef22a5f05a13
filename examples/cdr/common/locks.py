"""Files and folders that belong to a process for as long as it lives.

A process that ends, in whatever way, gives its locks back. A name with a process id in it does not
tell as much: in another container, or after a restart, the same id is another process's.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # a system without such locks: nothing is known to be abandoned there
    fcntl = None  # type: ignore[assignment]

_HELD = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Hold the lock of a file or folder that is there, under whatever name it gets meanwhile.

    Yields:
        False if another process or another part of this one holds it, or if it is not there any
        more. True where the file system has no locks.
    """
    descriptor, taken = _taken(path)
    try:
        yield taken
    finally:
        if descriptor is not None:
            os.close(descriptor)


def abandoned(path: Path) -> bool:
    """Whether a file or folder is there, and is known to be held by nobody."""
    descriptor, taken = _taken(path)
    if descriptor is None:
        return False
    os.close(descriptor)
    return taken


def _taken(path: Path) -> tuple[int | None, bool]:
    """A descriptor that has the lock, if it can be had; whether the caller may go on."""
    if fcntl is None:
        return None, True
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None, False
    except OSError:  # as of a folder that may not be read
        return None, True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        return None, error.errno not in _HELD
    if not _is_still(path, descriptor):
        os.close(descriptor)
        return None, False
    return descriptor, True


def _is_still(path: Path, descriptor: int) -> bool:
    """Whether the name leads to what was opened: others may have removed it before it was held."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False
