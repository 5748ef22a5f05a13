"""The tables and figures of the paper: what each trains, and how it is shown."""

from __future__ import annotations

from cdr.paper.result_table import Entry, Table, assemble
from cdr.paper.scenarios import Scenario, parse, require_files
from cdr.paper.studies import STUDIES
from cdr.paper.study import Cell, Method, Results, Runs, Study, cells, default_data, tasks

__all__ = [
    "Cell",
    "Entry",
    "Method",
    "Results",
    "Runs",
    "STUDIES",
    "Scenario",
    "Study",
    "Table",
    "assemble",
    "cells",
    "default_data",
    "parse",
    "require_files",
    "tasks",
]
