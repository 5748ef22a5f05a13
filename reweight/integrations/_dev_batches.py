"""The dev batches of a training, endless and at a position that a checkpoint holds."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch

from reweight._tensors import held
from reweight.integrations._processes import of_first


class DevBatches:
    """The batches of a dev loader, epoch after epoch.

    Every batch is drawn with random numbers of its own, which follow from a seed, the epoch and the
    position in it. Random numbers of the training are left as they were, and a resumed training
    gets the batches of one that was not interrupted. A ``DistributedSampler`` is told the epoch.

    Args:
        loader: a ``DataLoader``, or anything else that can be iterated over repeatedly.
        place: takes a batch to its device.

    Raises:
        TypeError: ``loader`` can be read only once, or not at all.

    Example:
        >>> from reweight.integrations._dev_batches import DevBatches
        >>> batches = DevBatches(["first", "second"])
        >>> [next(batches) for _ in range(3)]
        ['first', 'second', 'first']
        >>> resumed = DevBatches(["first", "second"])
        >>> resumed.load_state_dict(batches.state_dict())
        >>> next(resumed)
        'second'
    """

    def __init__(self, loader: Iterable[Any], place: Callable[[Any], Any] | None = None) -> None:
        if isinstance(loader, Iterator) or not hasattr(loader, "__iter__"):
            raise TypeError(
                f"dev_loader is a {type(loader).__name__}, and dev batches are read again and "
                "again: pass a DataLoader or a list of batches, [dev_batch] for a single one"
            )
        self._loader, self._place = loader, place
        samplers: list[Any] = [getattr(loader, "sampler", None)]
        samplers.append(getattr(getattr(loader, "batch_sampler", None), "sampler", None))
        found = (getattr(owner, "generator", None) for owner in (loader, *samplers))
        own = {id(g): g for g in found if isinstance(g, torch.Generator)}
        self._generators = [*own.values()]
        self._samplers = [each for each in samplers if hasattr(each, "set_epoch")]
        self._seed = (self._generators or [torch.default_generator])[0].initial_seed()
        self._epoch = self._position = 0
        self._iterator: Iterator[Any] | None = None

    def __iter__(self) -> DevBatches:
        return self

    def __next__(self) -> Any:
        """The next batch.

        Raises:
            ValueError: the loader has no batches, or fewer than the position of a loaded state.
        """
        if self._iterator is None:
            self._iterator = self._from(self._position)
        batch = next(self._iterator, self)
        if batch is self:
            if not self._position:
                raise ValueError("dev_loader has no batches: outer steps need a dev batch")
            self._epoch, self._position = self._epoch + 1, 0
            self._iterator = None
            return next(self)
        self._position += 1
        return self._place(batch) if self._place else batch

    def _from(self, start: int) -> Iterator[Any]:
        """The batches of the epoch from a position on, each drawn with its own random numbers."""
        for sampler in self._samplers:
            sampler.set_epoch(self._epoch)
        with self._random_numbers(0):
            iterator = iter(self._loader)
        position = 0
        while True:
            with self._random_numbers(position + 1):
                batch = next(iterator, self)
            if batch is self and position < start:
                raise ValueError(
                    f"the dev data have {position} batches, and the checkpoint was written after "
                    f"batch {start}: resume with the dev data of the training that wrote it"
                )
            if batch is self:
                return
            position += 1
            if position > start:
                yield batch

    @contextmanager
    def _random_numbers(self, draw: int) -> Iterator[None]:
        """Seed what loaders draw from, and put it back."""
        words = np.random.SeedSequence((self._seed, self._epoch, draw)).generate_state(1)
        seed = int(words[0])
        with held(), ExitStack() as stack:
            stack.callback(random.setstate, random.getstate())
            stack.callback(np.random.set_state, np.random.get_state())
            for generator in (torch.default_generator, *self._generators):
                stack.callback(generator.set_state, generator.get_state())
                generator.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed)
            yield

    def agree(self) -> None:
        """Draw what the first of several processes draws; its position is then that of all."""
        self._seed = of_first(self._seed)

    def state_dict(self) -> dict[str, int]:
        """The position, in plain numbers."""
        return {"seed": self._seed, "epoch": self._epoch, "position": self._position}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue from a position that :meth:`state_dict` returned."""
        self._seed, self._epoch = int(state["seed"]), int(state["epoch"])
        self._position = int(state["position"])
        self._iterator = None
