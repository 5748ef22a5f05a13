"""What every part of the example uses: option checks, json, files, nested tensors."""

from __future__ import annotations

from cdr.common.atomic import RenameError, new_file, new_folder
from cdr.common.checking import at_least, positive, refuse, share, widths
from cdr.common.jsonable import to_json, write_json
from cdr.common.nested import flattened, map_tensors, tensors_in, with_tensors

__all__ = [
    "RenameError",
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
