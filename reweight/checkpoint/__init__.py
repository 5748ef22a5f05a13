"""Checkpoints of one process or of many, checked before anything in them is read."""

from reweight.checkpoint.loader import ResumableLoader
from reweight.checkpoint.run_state import RunState
from reweight.checkpoint.saving import check, load, save
from reweight.checkpoint.tensors import from_tensors, to_tensors

__all__ = ["ResumableLoader", "RunState", "check", "from_tensors", "load", "save", "to_tensors"]
