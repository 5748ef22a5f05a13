"""Scenarios of two domains: `load` gives each of them the same form, ready for a model.

One module per data set; `registry` lists them, `schema` says what a scenario is, `split` how it is
made, `batches` how rows of it become tensors for a model.
"""

from __future__ import annotations

from cdr.data.batches import (
    Batches,
    Candidates,
    FlatHistories,
    History,
    PairBatch,
    Past,
    Windows,
)
from cdr.data.cache import sha256
from cdr.data.dataset import Dataset, Pair, Published
from cdr.data.facts import Fact, source_facts
from cdr.data.generator import generate
from cdr.data.harm import Harm, HarmKind
from cdr.data.hidden import Hidden
from cdr.data.leaks import audit
from cdr.data.limits import LIMITS, Limits
from cdr.data.manifest import Check, agrees, check, source_reading
from cdr.data.protocol import LAST_ONE, Protocol
from cdr.data.registry import DATASETS, complete, find_dataset, foreign_pair, load, require
from cdr.data.schema import (
    OTHERS,
    Behaviors,
    CrossDomainData,
    Histories,
    Interactions,
    Items,
)
from cdr.data.split import build

__all__ = [
    "DATASETS",
    "LAST_ONE",
    "LIMITS",
    "OTHERS",
    "Batches",
    "Behaviors",
    "Candidates",
    "Check",
    "CrossDomainData",
    "Dataset",
    "Harm",
    "HarmKind",
    "Hidden",
    "Histories",
    "Fact",
    "FlatHistories",
    "History",
    "Interactions",
    "Items",
    "Limits",
    "Pair",
    "PairBatch",
    "Past",
    "Protocol",
    "Published",
    "Windows",
    "agrees",
    "audit",
    "build",
    "check",
    "complete",
    "find_dataset",
    "foreign_pair",
    "generate",
    "load",
    "require",
    "sha256",
    "source_facts",
    "source_reading",
]
