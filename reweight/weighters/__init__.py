"""Weighters: from what is known of a sample to how much its loss counts."""

from __future__ import annotations

from .base import SampleWeighter
from .constant import ConstantWeighter
from .lookup import GroupWeighter, TableWeighter
from .loss import LossWeighter
from .perceptron import BehavioralPerceptron, BehaviorInputs

__all__ = [
    "BehaviorInputs",
    "BehavioralPerceptron",
    "ConstantWeighter",
    "GroupWeighter",
    "LossWeighter",
    "SampleWeighter",
    "TableWeighter",
]
