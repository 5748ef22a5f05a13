"""Recommendation models of two domains, one a file; the file's name is that of `--model`."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from cdr.models.base import CrossDomainModel, ModelOptions


def _found() -> dict[str, type[CrossDomainModel]]:
    """The model of each file in this folder: its one subclass of CrossDomainModel."""
    names = sorted(module.name for module in iter_modules(__path__) if module.name != "base")
    models = {}
    for name in names:
        module = import_module(f"{__name__}.{name}")
        models[name] = next(
            value
            for value in vars(module).values()
            if isinstance(value, type)
            and issubclass(value, CrossDomainModel)
            and value.__module__ == module.__name__
        )
    return models


MODELS = _found()

__all__ = ["MODELS", "CrossDomainModel", "ModelOptions"]
