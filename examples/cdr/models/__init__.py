"""Recommendation models of two domains."""

from cdr.models.conet import CoNet
from cdr.models.options import ModelOptions

MODELS = {"conet": CoNet}

__all__ = ["MODELS", "CoNet", "ModelOptions"]
