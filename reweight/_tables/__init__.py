"""Embedding tables by the rows that a batch reads.

The cost of an outer step does not grow with the number of rows of a table: vectors over the
parameters hold the rows that the batch looks up in the place of the table.
"""

from reweight._tables.exchange import common, of_all_samples, placed, taken
from reweight._tables.graph import Graph, leaf_of
from reweight._tables.inputs import GraphInputs
from reweight._tables.lookups import looked_up
from reweight._tables.substitute import SubstituteRows
from reweight._tables.table import LookUp, Table, pick, tables_of

__all__ = [
    "taken",
    "placed",
    "of_all_samples",
    "common",
    "Graph",
    "GraphInputs",
    "LookUp",
    "SubstituteRows",
    "Table",
    "leaf_of",
    "looked_up",
    "pick",
    "tables_of",
]
