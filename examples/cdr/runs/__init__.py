"""Trainings as jobs: processes, folders of results, logs, and the grid of finished ones."""

from __future__ import annotations

from cdr.runs.devices import usable_device
from cdr.runs.folders import check_output, output_folder, run_folder
from cdr.runs.grid import Completed, Grid, Run, complete, options_read
from cdr.runs.logs import KeptLog, log_history, logged
from cdr.runs.machine import environment
from cdr.runs.processes import launched
from cdr.runs.progress import progress_bar
from cdr.runs.runner import Source, Task, run
from cdr.runs.titles import item_titles

__all__ = [
    "Completed",
    "Grid",
    "KeptLog",
    "Run",
    "Source",
    "Task",
    "check_output",
    "complete",
    "environment",
    "item_titles",
    "launched",
    "log_history",
    "logged",
    "options_read",
    "output_folder",
    "progress_bar",
    "run",
    "run_folder",
    "usable_device",
]
