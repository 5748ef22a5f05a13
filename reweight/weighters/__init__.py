"""Weighters: modules that compute the weight of each sample."""

from __future__ import annotations

from reweight.weighters._histories import HistorySlices
from reweight.weighters._whole_batch import compares_samples, whole_batch
from reweight.weighters.base import SampleWeighter, stated_bounds
from reweight.weighters.constant import ConstantWeighter
from reweight.weighters.lookup import GroupWeighter, TableWeighter
from reweight.weighters.loss import LossWeighter
from reweight.weighters.perceptron import BehavioralPerceptron, BehaviorInputs

__all__ = [
    "BehaviorInputs",
    "BehavioralPerceptron",
    "ConstantWeighter",
    "GroupWeighter",
    "HistorySlices",
    "LossWeighter",
    "SampleWeighter",
    "TableWeighter",
    "compares_samples",
    "stated_bounds",
    "whole_batch",
]
