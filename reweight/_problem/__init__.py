"""The bilevel problem as the user stated it, evaluated without side effects."""

from reweight._problem.bilevel import BilevelProblem, LossesFn, OuterFn, Reduction
from reweight._problem.double import batch_in_double
from reweight._problem.functional import swapped
from reweight._problem.hooks import Hooked
from reweight._problem.isolation import Isolation, isolated, parts_of, twice_differentiable
from reweight._problem.micro_batches import MicroBatches
from reweight._problem.outer_step import hypergradient, weights
from reweight._problem.processes import ranks_of, start_alike, sum_of_bits
from reweight._problem.random_state import Generators
from reweight._problem.saved import record, refuse_another
from reweight._problem.second_derivatives import disagreement
from reweight._problem.sharded import alone_on_a_plain_model
from reweight._problem.shares import rows_of
from reweight._problem.unheld import unheld

__all__ = [
    "BilevelProblem",
    "Generators",
    "Hooked",
    "Isolation",
    "LossesFn",
    "MicroBatches",
    "OuterFn",
    "Reduction",
    "batch_in_double",
    "alone_on_a_plain_model",
    "disagreement",
    "hypergradient",
    "isolated",
    "parts_of",
    "ranks_of",
    "record",
    "refuse_another",
    "rows_of",
    "start_alike",
    "sum_of_bits",
    "swapped",
    "twice_differentiable",
    "unheld",
    "weights",
]
