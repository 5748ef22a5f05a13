"""Ids of samples as one numpy array."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Ids: TypeAlias = NDArray[Any]  # int64 or str, [N]


def as_ids(ids: Any, name: str = "ids") -> Ids:
    """``ids`` as an int64 or a str array ``[N]``.

    Args:
        ids: a tensor, an array or a sequence of integers, or a sequence of strings.
        name: of the argument, for errors.

    Raises:
        TypeError: they are neither integers nor strings, or some are one and some the other.
        ValueError: they are not of shape ``[N]``.
    """
    values = ids.detach().cpu().numpy() if isinstance(ids, Tensor) else ids
    if not isinstance(values, np.ndarray) or values.dtype.kind == "O":
        if isinstance(values, (str, bytes)) or not hasattr(values, "__iter__"):
            raise TypeError(f"{name}={values!r}: pass one id for each sample, as a sequence [N]")
        values = list(values)
        kinds = {type(value) for value in values}
        if str in kinds and kinds != {str}:
            others = ", ".join(sorted(kind.__name__ for kind in kinds - {str}))
            raise TypeError(
                f"{name} holds strings and {others}: use one kind of id, such as str(id) for all"
            )
        if str in kinds and any("\0" in value for value in values):
            raise ValueError(f"{name} holds a string with a NUL character, which numpy would cut")
        values = np.asarray(values)
    if values.ndim != 1:
        raise ValueError(
            f"{name} has shape {tuple(values.shape)}, expected [N]: one id for each sample "
            "(.reshape(-1) removes further dimensions)"
        )
    if values.dtype.kind == "U":
        return values
    if not len(values):
        return np.empty(0, np.int64)
    if values.dtype.kind not in "iu":
        raise TypeError(
            f"{name} holds {values.dtype}: ids are integers or strings, so that two of them are "
            "equal or not. Number the samples from 0"
        )
    if values.dtype.kind == "u" and int(values.max()) > np.iinfo(np.int64).max:
        raise ValueError(f"{name} holds {int(values.max())}, which does not fit into an int64")
    return values.astype(np.int64)


def named(ids: Ids, shown: int = 5) -> str:
    """The first of them, for errors."""
    more = f" and {len(ids) - shown} more" if len(ids) > shown else ""
    return ", ".join(map(repr, ids[:shown].tolist())) + more
