"""What every part uses: option checks, json, files, nested tensors, processes."""

from __future__ import annotations

from cdr.common.atomic import (
    RenameError,
    new_file,
    new_folder,
    remove_empty,
    rename_folder,
    sweep_all,
)
from cdr.common.checking import at_least, positive, refuse, share, widths
from cdr.common.jsonable import encoded, to_json, write_json
from cdr.common.locks import abandoned, locked
from cdr.common.nested import flattened, map_tensors, tensors_in, with_tensors
from cdr.common.processes import ALONE, Processes, Stopped

__all__ = [
    "ALONE",
    "Processes",
    "RenameError",
    "Stopped",
    "abandoned",
    "at_least",
    "encoded",
    "flattened",
    "locked",
    "map_tensors",
    "new_file",
    "new_folder",
    "positive",
    "refuse",
    "remove_empty",
    "rename_folder",
    "share",
    "sweep_all",
    "tensors_in",
    "to_json",
    "widths",
    "with_tensors",
    "write_json",
]
