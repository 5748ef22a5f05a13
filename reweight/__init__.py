"""Learn how much each training sample is worth, by implicit differentiation.

Start at :func:`wrap`.
"""

from __future__ import annotations

from reweight import diagnostics, valuation
from reweight.checking import CheckReport, CheckRow, check_hypergradient
from reweight.hypergradient import Hypergradient, ImplicitHypergradient
from reweight.losses import Losses
from reweight.preconditioning import SecondMoments
from reweight.samplers import ReorderReuseSampler, SplitSampler
from reweight.solvers import (
    ConjugateGradient,
    Identity,
    Neumann,
    Nystrom,
    SampleSpace,
    Solution,
    Status,
)
from reweight.verdict import SolveInfo
from reweight.weighters import (
    BehavioralPerceptron,
    BehaviorInputs,
    ConstantWeighter,
    GroupWeighter,
    HistorySlices,
    LossWeighter,
    SampleWeighter,
    TableWeighter,
)
from reweight.wrapping import Reweighted, wrap

__version__ = "0.1.0"

__all__ = [
    "BehaviorInputs",
    "BehavioralPerceptron",
    "CheckReport",
    "CheckRow",
    "ConjugateGradient",
    "ConstantWeighter",
    "GroupWeighter",
    "HistorySlices",
    "Hypergradient",
    "Identity",
    "ImplicitHypergradient",
    "LossWeighter",
    "Losses",
    "Neumann",
    "Nystrom",
    "ReorderReuseSampler",
    "Reweighted",
    "SampleSpace",
    "SampleWeighter",
    "SecondMoments",
    "Solution",
    "SolveInfo",
    "SplitSampler",
    "Status",
    "TableWeighter",
    "check_hypergradient",
    "diagnostics",
    "valuation",
    "wrap",
]
