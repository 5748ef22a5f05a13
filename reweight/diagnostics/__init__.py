"""Diagnostics of learned weights, of influences, and of the agreement of hypergradients."""

from reweight.diagnostics.agreement import Agreement, agreement
from reweight.diagnostics.influence import InfluenceRanking, rank_influence
from reweight.diagnostics.recorder import Recorder
from reweight.diagnostics.weights import WeightSummary, effective_sample_size, entropy

__all__ = [
    "Agreement",
    "InfluenceRanking",
    "Recorder",
    "WeightSummary",
    "agreement",
    "effective_sample_size",
    "entropy",
    "rank_influence",
]
