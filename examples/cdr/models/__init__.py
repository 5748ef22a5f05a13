"""Recommendation models of two domains, one a file; the file's name is that of `--model`."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from cdr.models.base import CrossDomainModel, ModelOptions


def _found() -> dict[str, type[CrossDomainModel]]:
    """The model of each file in this folder: its one subclass of CrossDomainModel.

    Raises:
        ValueError: A file has none or several, or a model has the options of another.
    """
    names = sorted(module.name for module in iter_modules(__path__) if module.name != "base")
    models: dict[str, type[CrossDomainModel]] = {}
    for name in names:
        module = import_module(f"{__name__}.{name}")
        own = [
            value
            for value in vars(module).values()
            if isinstance(value, type)
            and issubclass(value, CrossDomainModel)
            and value.__module__ == module.__name__
        ]
        if len(own) != 1:
            raise ValueError(
                f"models/{name}.py has {len(own)} subclasses of CrossDomainModel; a model is one "
                "file with one of them, and what models share lies in base.py"
            )
        for other, model in models.items():
            if model.Options is own[0].Options:
                raise ValueError(
                    f"models/{name}.py has the options of models/{other}.py, "
                    f"{model.Options.__name__}, and a run tells a model by its options; give each "
                    "of them an Options of its own, a subclass of ModelOptions"
                )
        models[name] = own[0]
    return models


MODELS = _found()

__all__ = ["MODELS", "CrossDomainModel", "ModelOptions"]
