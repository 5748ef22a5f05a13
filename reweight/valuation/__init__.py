"""What to do with learned weights: gather, retrain, prune, draw, keep, and prove them."""

from reweight.valuation.collecting import Collector, collect
from reweight.valuation.pruning import Pruned, prune
from reweight.valuation.removal import RemovalCurve, removal_curve
from reweight.valuation.retraining import FixedWeights, WeightedCollate, WeightedTrainAndDev
from reweight.valuation.sampling import group_probabilities, sampling_probabilities
from reweight.valuation.values import SampleValues

__all__ = [
    "Collector",
    "FixedWeights",
    "Pruned",
    "RemovalCurve",
    "SampleValues",
    "WeightedCollate",
    "WeightedTrainAndDev",
    "collect",
    "group_probabilities",
    "prune",
    "removal_curve",
    "sampling_probabilities",
]
