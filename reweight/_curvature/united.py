"""The second derivatives of several processes, over the parameters that any of them uses."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import torch
from torch import Tensor

from reweight._curvature.linearise import Linearisation, Partial
from reweight._tables import common, placed, taken
from reweight._tensors import Tree, shared


def united(linearisation: Linearisation, names: Iterable[str]) -> Linearisation:
    """A linearisation over what any of the processes uses; its products are this one's part.

    Args:
        linearisation: of this process's samples.
        names: of all of θ, in the same order on all processes.
    """
    group = shared()
    if group is None:
        return linearisation
    own: dict[str, Tensor | None] = {n: linearisation.rows.get(n) for n in linearisation.params}
    union = common(names, own)
    if union.keys() == own.keys() and not any(
        r is not None for r in (*own.values(), *union.values())
    ):
        return linearisation if linearisation.doubt is None else _with_common_doubt(linearisation)

    def restricted(v: Tree) -> Tree:
        return {n: taken(v[n], rows, union[n]) for n, rows in own.items()}

    def spread(product: Tree, v: Tree) -> Tree:
        return {
            n: placed(product[n], own[n], union[n], v[n].shape)
            if n in own
            else torch.zeros_like(v[n])
            for n in union
        }

    def hvp(v: Tree) -> Tree:
        return spread(linearisation.hvp(restricted(v)), v)

    def cross(u: Tree) -> tuple[Tree, Partial]:
        product, mixed = linearisation.cross(restricted(u))
        return spread(product, u), mixed

    def mixed(u: Tree) -> Partial:
        return linearisation.mixed(restricted(u))

    doubt = None
    if (of_own := linearisation.doubt) is not None:

        def doubt(u: Tree, product: Tree) -> float:
            return of_own(restricted(u), restricted(product))

    found = dataclasses.replace(
        linearisation,
        params=tuple(union),
        hvp=hvp,
        cross=cross,
        mixed=mixed,
        doubt=doubt,
        rows={n: rows for n, rows in union.items() if rows is not None},
    )
    return found if doubt is None else _with_common_doubt(found)


def _with_common_doubt(linearisation: Linearisation) -> Linearisation:
    """The error of a sum is at most the sum of the errors."""
    group, of_own = shared(), linearisation.doubt
    assert group is not None and of_own is not None

    def doubt(u: Tree, product: Tree) -> float:
        return sum(each[0] for each in group.numbers(of_own(u, product)))

    return dataclasses.replace(linearisation, doubt=doubt)
