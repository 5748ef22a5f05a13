"""Learn how much each training sample is worth, by implicit differentiation.

Start at :func:`wrap`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from reweight._tensors import RankError
from reweight.hypergradient import Hypergradient, ImplicitHypergradient
from reweight.losses import Losses
from reweight.preconditioning import SecondMoments
from reweight.samplers import FoldSampler, PairLoader, ReorderReuseSampler, SplitSampler
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
    whole_batch,
)
from reweight.wrapping import Reweighted, wrap

if TYPE_CHECKING:
    from reweight import checkpoint, diagnostics, valuation
    from reweight.checking import CheckReport, CheckRow, check_hypergradient

__version__ = "0.1.0"

__all__ = [
    "BehaviorInputs",
    "BehavioralPerceptron",
    "CheckReport",
    "CheckRow",
    "ConjugateGradient",
    "ConstantWeighter",
    "FoldSampler",
    "GroupWeighter",
    "HistorySlices",
    "Hypergradient",
    "Identity",
    "ImplicitHypergradient",
    "LossWeighter",
    "Losses",
    "Neumann",
    "Nystrom",
    "PairLoader",
    "RankError",
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
    "checkpoint",
    "diagnostics",
    "valuation",
    "whole_batch",
    "wrap",
]

# What no training needs is loaded when it is first named, by the part that holds it.
_LATER = {
    "CheckReport": "checking",
    "CheckRow": "checking",
    "check_hypergradient": "checking",
    "checking": "checking",
    "checkpoint": "checkpoint",
    "diagnostics": "diagnostics",
    "valuation": "valuation",
}

if not TYPE_CHECKING:  # a type checker would take every name for one that exists

    def __getattr__(name: str) -> object:
        if name not in _LATER:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        part = import_module(f"{__name__}.{_LATER[name]}")
        return part if name == _LATER[name] else getattr(part, name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *_LATER})
