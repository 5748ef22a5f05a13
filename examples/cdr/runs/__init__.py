"""Trainings as jobs: processes, folders of results, logs, and the grid of finished ones."""

from __future__ import annotations

from cdr.runs.devices import usable_device
from cdr.runs.folders import check_output, output_folder, run_folder
from cdr.runs.grid import Completed, Grid, Run, complete, follow, options_read
from cdr.runs.logs import KeptLog, logged
from cdr.runs.machine import commit, environment
from cdr.runs.memory import out_of_memory
from cdr.runs.processes import launched
from cdr.runs.runner import Source, Task
from cdr.runs.signals import Ended, ending_by_signals
from cdr.runs.streams import lasting_output
from cdr.runs.titles import item_titles
from cdr.runs.unfinished import Unfinished

__all__ = [
    "Completed",
    "Ended",
    "Grid",
    "KeptLog",
    "Run",
    "Source",
    "Task",
    "Unfinished",
    "check_output",
    "commit",
    "complete",
    "ending_by_signals",
    "environment",
    "follow",
    "item_titles",
    "lasting_output",
    "launched",
    "logged",
    "options_read",
    "out_of_memory",
    "output_folder",
    "run_folder",
    "usable_device",
]
