"""What several processes read of the parameters, taken together.

Each process reads other rows of a table. A vector over the parameters holds the rows that any of
them reads, so what is exchanged grows with the batches and not with the table.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from reweight._tables.table import find
from reweight._tensors import Tree, all_samples, alone, dense, digest, flatten, shared, unflatten

# What a process uses of an entry, where it is not a number of rows.
_NOTHING, _WHOLE = -2, -1


def common(names: Iterable[str], own: Mapping[str, Tensor | None]) -> dict[str, Tensor | None]:
    """What any of the processes uses of some parameters, in the form of ``own``.

    Args:
        names: of the parameters, the same ones on all processes, in the same order.
        own: what this process uses: rows ``[r]`` of a table, or ``None``: all of a parameter.
            Parameters that it does not use are left out.
    """
    group, names = shared(), list(names)
    if group is None:
        return dict(own)
    codes = [_code(own[name]) if name in own else _NOTHING for name in names]
    alike = {each[0] for each in group.numbers(digest(repr((names, codes)).encode()))}
    if len(alike) == 1 and max(codes, default=_WHOLE) <= 0:
        return dict(own)
    of_ranks = [part.tolist() for part in group.rows(torch.tensor(codes, device="cpu"))]
    device = next((x.device for x in own.values() if x is not None), torch.device("cpu"))
    none = torch.empty(0, dtype=torch.long, device=device)
    read = [own[name] for name in names if own.get(name) is not None]
    ids = group.rows(torch.cat([none, *(x.to(device) for x in read if x is not None)]))
    pieces = [
        iter(torch.split(part, [code for code in row if code >= 0]))
        for part, row in zip(ids, of_ranks, strict=True)
    ]
    found: dict[str, Tensor | None] = {}
    for i, name in enumerate(names):
        used = [row[i] for row in of_ranks]
        rows = [next(piece) for piece, code in zip(pieces, used, strict=True) if code >= 0]
        if _WHOLE in used:
            found[name] = None
        elif rows:
            mine = own.get(name)
            found[name] = torch.unique(torch.cat(rows)).to(device if mine is None else mine.device)
    return found


def _code(rows: Tensor | None) -> int:
    return _WHOLE if rows is None else len(rows)


def placed(x: Tensor, own: Tensor | None, common: Tensor | None, shape: torch.Size) -> Tensor:
    """Values of one's own rows among those of all processes, zero in the others.

    Args:
        x: ``[r, D]`` for ``own`` rows, or all of a parameter where that is ``None``.
        own: ``[r]``, ascending, or ``None``.
        common: rows that hold ``own``, or ``None``: the whole parameter.
        shape: of the result.
    """
    if own is None:
        return x
    out = x.new_zeros(shape)
    if len(own):
        out[own if common is None else torch.searchsorted(common, own)] = x
    return out


def taken(x: Tensor, own: Tensor | None, common: Tensor | None) -> Tensor:
    """One's own rows among those of all processes; the transpose of :func:`placed`."""
    if own is None:
        return x
    if not len(own):
        return x[:0]
    return x.index_select(0, own if common is None else find(own, common)[0])


def of_all_samples(x: Tree) -> Tree:
    """A dict of sums over this process's samples, summed over all processes in one message.

    Of sparse entries, which hold rows, the rows of all processes are summed.
    """
    if alone():
        return x
    own: dict[str, Tensor | None] = {}
    for name, entry in x.items():
        own[name] = entry.coalesce().indices()[0] if entry.is_sparse else None
    union = common(x, own)
    parts: Tree = {}
    for name, entry in x.items():
        rows, all_rows = own[name], union[name]
        if all_rows is None:
            parts[name] = dense(entry)
        else:
            assert rows is not None  # else all of it is used
            shape = torch.Size((len(all_rows), *entry.shape[1:]))
            parts[name] = placed(entry.coalesce().values(), rows, all_rows, shape)
    total = unflatten(all_samples(flatten(parts)), parts)
    for name, all_rows in union.items():
        if all_rows is not None:
            total[name] = torch.sparse_coo_tensor(
                all_rows.unsqueeze(0),
                total[name],
                x[name].shape,
                is_coalesced=True,
                check_invariants=False,
            )
    return total
