"""Where dev batches come from: reorder-and-reuse (BIAO §3.4), the held-out split, and folds.

All samplers yield *pairs* of index tensors, one batch for the inner problem and one for the outer.
They can be stopped and resumed in the middle of an epoch. Orders are pure functions of the seed and
of the position: no global random state is read or changed. ``PairLoader`` loads the batches of
all from a data set.
"""

from reweight.samplers.fold import FoldSampler
from reweight.samplers.loader import PairLoader
from reweight.samplers.reorder_reuse import ReorderReuseSampler
from reweight.samplers.split import SplitSampler

__all__ = ["FoldSampler", "PairLoader", "ReorderReuseSampler", "SplitSampler"]
