"""What every part uses: option checks, json, files, nested tensors, processes."""

from __future__ import annotations

from cdr.common.atomic import RenameError, new_file, new_folder
from cdr.common.checking import at_least, positive, refuse, share, widths
from cdr.common.jsonable import to_json, write_json
from cdr.common.nested import flattened, map_tensors, tensors_in, with_tensors
from cdr.common.processes import ALONE, Processes, Stopped

__all__ = [
    "ALONE",
    "Processes",
    "RenameError",
    "Stopped",
    "at_least",
    "flattened",
    "map_tensors",
    "new_file",
    "new_folder",
    "positive",
    "refuse",
    "share",
    "tensors_in",
    "to_json",
    "widths",
    "with_tensors",
    "write_json",
]
