"""Checkpoints of one process or of many, checked before anything in them is read."""

from reweight.checkpoint.saving import check, load, save

__all__ = ["check", "load", "save"]
