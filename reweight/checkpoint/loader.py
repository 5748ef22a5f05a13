"""A ``DataLoader`` whose place in an epoch is part of a state."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from reweight._problem import Generators
from reweight._tensors import held
from reweight.checkpoint import random_states
from reweight.samplers import FoldSampler, ReorderReuseSampler, SplitSampler

_OF_PAIRS = (FoldSampler, ReorderReuseSampler, SplitSampler)


@dataclass
class _Epoch:
    """An epoch that has begun.

    Attributes:
        start: all that decides which batches it has, in plain values.
        position: how many of them were handed out.
    """

    start: dict[str, Any]
    position: int = 0


class ResumableLoader:
    """A ``DataLoader``, and where in its epoch a training is.

    Each ``iter()`` is one epoch of the loader. Everything that the loader draws in this process, it
    draws from a stream of its own, which a number from torch's global generator begins in every
    epoch; so do the seeds of its workers. A state is that number, the states of generators and
    samplers at the beginning of the epoch, and how many batches were handed out.

    An epoch that is resumed is loaded again from its beginning, without handing out what was handed
    out before: the batches that follow are those of an epoch that was not interrupted, bit for bit,
    random augmentation in workers included. ``iter()`` takes the time of loading these batches.

    After the last batch of an epoch the state is that of its end: a loop over it gets no batch
    more, and goes on behind.

    A ``ReorderReuseSampler`` or another sampler of pairs has :class:`reweight.PairLoader`.

    Args:
        loader: over samples by index or a stream, with workers or without. A generator that it was
            given serves nothing else. What a data set itself remembers from one sample to the next
            is not part of the state.

    Raises:
        TypeError: ``loader`` is no ``DataLoader``.
        ValueError: its batches can't be repeated: ``persistent_workers=True`` keeps the random
            states of workers over epochs, ``in_order=False`` their order to chance.

    Example:
        >>> import torch
        >>> from torch.utils.data import DataLoader
        >>> from reweight.checkpoint import ResumableLoader
        >>> def loader():
        ...     return ResumableLoader(DataLoader(torch.arange(6), batch_size=2, shuffle=True))
        >>> first = loader()
        >>> batches = iter(first)
        >>> _ = next(batches)
        >>> second = loader()
        >>> second.load_state_dict(first.state_dict())
        >>> [batch.tolist() for batch in second] == [batch.tolist() for batch in batches]
        True
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        _check(loader)
        self.loader = loader
        samplers: list[Any] = [loader.sampler, loader.batch_sampler]
        samplers.append(getattr(loader.batch_sampler, "sampler", None))
        owners = {id(owner): owner for owner in (loader, *samplers)}.values()
        found = (getattr(owner, "generator", None) for owner in owners)
        generators = [g for g in found if isinstance(g, random_states.KINDS)]
        self._generators = list({id(g): g for g in generators}.values())
        self._samplers = [each for each in owners if hasattr(each, "load_state_dict")]
        self._epoch: _Epoch | None = None
        self._loaded: _Epoch | None = None

    def __len__(self) -> int:
        """Number of batches in an epoch."""
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        """Begin the next epoch, or continue the one that ``load_state_dict`` restored.

        Raises:
            ValueError: the loader has fewer batches than were handed out of the restored epoch.
        """
        epoch, self._loaded = self._loaded, None
        if epoch is None:
            epoch = _Epoch(self._start())
        else:
            self._go_back_to(epoch.start)
        # An iterator that was left early moves its own epoch only.
        self._epoch = epoch
        stream = _Stream(epoch.start["seed"])
        # Now, and not with the next batch: where no further one is asked for, the generators of the
        # next epoch have to be where an epoch that was begun leaves them.
        batches = self._forward(epoch.position, stream) if epoch.position else None
        return self._batches(epoch, stream, batches)

    def _batches(
        self, epoch: _Epoch, stream: _Stream, batches: Iterator[Any] | None
    ) -> Iterator[Any]:
        if batches is None:
            with stream.used():
                batches = iter(self.loader)
        while True:
            with stream.used():
                batch = next(batches, stream)
            if batch is stream:
                return
            epoch.position += 1
            yield batch

    def _forward(self, done: int, stream: _Stream) -> Iterator[Any]:
        """The batches of an epoch after those that were handed out before."""
        with stream.used():
            batches = iter(self.loader)
        for position in range(done):
            with stream.used():
                batch = next(batches, stream)
            if batch is stream:
                raise ValueError(
                    f"the loader has {position} batches, and the state was taken after batch "
                    f"{done} of an epoch: build it with the data set and the batch size of the run "
                    "that was saved"
                )
        return batches

    def _start(self) -> dict[str, Any]:
        return {
            "seed": int(torch.empty((), dtype=torch.int64).random_()),
            "generators": [random_states.of_generator(each) for each in self._generators],
            "samplers": [each.state_dict() for each in self._samplers],
        }

    def _go_back_to(self, start: Mapping[str, Any]) -> None:
        """Give generators and samplers their states of the beginning of an epoch."""
        for generator, saved in zip(self._generators, start["generators"], strict=True):
            random_states.set_generator(generator, saved)
        for sampler, saved in zip(self._samplers, start["samplers"], strict=True):
            sampler.load_state_dict(saved)

    def state_dict(self) -> dict[str, Any]:
        """The epoch and the place in it, in plain values; workers may have loaded further."""
        epoch = self._loaded or self._epoch
        if epoch is None:
            return {"version": 1, "start": None, "position": 0}
        return {"version": 1, "start": epoch.start, "position": epoch.position}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next ``iter()`` continue where ``state`` was taken.

        Raises:
            ValueError: it is no such state, or of a loader with other generators or samplers.
        """
        keys = {"version", "start", "position"}
        if not isinstance(state, Mapping) or not keys <= state.keys() or state["version"] != 1:
            raise ValueError(
                "this is not a state of a ResumableLoader (version 1): pass the loader's own entry "
                "of the checkpoint"
            )
        start, self._epoch, self._loaded = state["start"], None, None
        if start is None:
            return
        for name, own in (("generators", self._generators), ("samplers", self._samplers)):
            if len(start[name]) != len(own):
                raise ValueError(
                    f"the state is of a loader with {len(start[name])} {name}, and this one has "
                    f"{len(own)}: build it as it was when it was saved"
                )
        self._loaded = _Epoch(start, state["position"])


class _Stream:
    """States of the global generators on the CPU that only one epoch of a loader uses.

    Args:
        seed: of the stream.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._generators = Generators(set())
        self._state: Any = None

    @contextmanager
    def used(self) -> Iterator[None]:
        """Draw from the stream while the context is open."""
        with held():
            outside = self._generators.now()
            if self._state is None:
                torch.default_generator.manual_seed(self._seed)
                random.seed(self._seed)
                np.random.seed(self._seed % 2**32)
            else:
                self._generators.put(self._state)
            try:
                yield
            finally:
                self._state = self._generators.now()
                self._generators.put(outside)


def _check(loader: Any) -> None:
    if not isinstance(loader, DataLoader):
        raise TypeError(
            f"loader is a {type(loader).__name__}, not a torch.utils.data.DataLoader; a loader "
            "with a state_dict of its own needs no wrapper"
        )
    if any(isinstance(each, _OF_PAIRS) for each in (loader.sampler, loader.batch_sampler)):
        raise TypeError(
            "the loader has a sampler of pairs, of which a DataLoader with workers leaves out an "
            "epoch: use reweight.PairLoader(dataset, sampler), which has a state"
        )
    if loader.persistent_workers:
        raise ValueError(
            "persistent_workers=True keeps the random states of workers from one epoch to the "
            "next, where no state can reach them: leave it out"
        )
    if not getattr(loader, "in_order", True):
        raise ValueError(
            "in_order=False hands out batches in the order in which workers finish, which no run "
            "can repeat: leave it out"
        )
