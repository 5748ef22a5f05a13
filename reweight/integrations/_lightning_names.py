"""What depends on the package that Lightning was installed as, and on its ``log``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from reweight._tensors import held

# Lightning goes by two names, and each one's Trainer takes callbacks of its own base class only.
_NAMES = ("lightning.pytorch", "pytorch_lightning")
_found = [n for n in _NAMES if n in sys.modules] or [
    n for n in _NAMES if find_spec(n.split(".")[0])
][:1]
if not _found:
    raise ImportError(
        "reweight.integrations.lightning needs Lightning: pip install lightning", name="lightning"
    )
BASES = tuple(import_module(name).Callback for name in _found)


@contextmanager
def nothing_logged(pl_module: Any) -> Iterator[None]:
    """Ignore ``self.log`` in losses: outer steps evaluate them on dev batches and moved weights."""
    names = ("log", "log_dict")
    with held():
        for name in names:
            setattr(pl_module, name, lambda *args, **kwargs: None)
        try:
            yield
        finally:
            for name in names:
                delattr(pl_module, name)
