"""Vectors over parameters, nested containers, checks and finite differences.

Nothing here knows about models, losses or solvers.
"""

from reweight._tensors.checks import check_finite, check_loss, check_tree, some
from reweight._tensors.describe import counted, described, spread
from reweight._tensors.differences import central_difference
from reweight._tensors.float64 import InFloat64, default_double, widened_in_place
from reweight._tensors.forward_mode import moving, velocity
from reweight._tensors.nested import doubled, map_tensors, tensors_in
from reweight._tensors.ranks import AttemptError, RankError, Ranks, Traffic
from reweight._tensors.reading import (
    Pending,
    can_read,
    ends,
    inner_products,
    largest_of,
    norms_of,
    now_or_later,
    read,
)
from reweight._tensors.seam import (
    Group,
    all_entries,
    all_samples,
    alone,
    reducing,
    shared,
    sharing,
)
from reweight._tensors.vectors import (
    Blocks,
    Tree,
    axpy,
    cosine,
    dense,
    detached,
    dot,
    filled,
    flatten,
    max_abs,
    new_leaves,
    norm,
    power_of_two,
    rounding,
    scale,
    stored,
    unflatten,
    zeros_like,
)
from reweight._tensors.versions import no_compiling, set_version, shows_types

__all__ = [
    "sharing",
    "shared",
    "Traffic",
    "Ranks",
    "RankError",
    "Group",
    "AttemptError",
    "Blocks",
    "InFloat64",
    "Pending",
    "Tree",
    "all_entries",
    "all_samples",
    "alone",
    "axpy",
    "can_read",
    "central_difference",
    "check_finite",
    "check_loss",
    "check_tree",
    "cosine",
    "counted",
    "default_double",
    "dense",
    "described",
    "detached",
    "dot",
    "doubled",
    "ends",
    "filled",
    "flatten",
    "inner_products",
    "largest_of",
    "map_tensors",
    "max_abs",
    "moving",
    "new_leaves",
    "no_compiling",
    "norm",
    "norms_of",
    "now_or_later",
    "power_of_two",
    "read",
    "reducing",
    "rounding",
    "scale",
    "set_version",
    "shows_types",
    "some",
    "spread",
    "stored",
    "tensors_in",
    "unflatten",
    "velocity",
    "widened_in_place",
    "zeros_like",
]
