"""Where the state of a training is kept while it runs, how often, and what is done with it."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch

import reweight
from cdr.common import Processes, locked

logger = logging.getLogger("cdr")

# Of the time that passes, at most a twentieth goes into saving.
_LEAST_BETWEEN = 20
# Several processes agree on the time at one in so many steps, since agreeing takes time.
_AGREED = 32


class Resumable(Protocol):
    """What has a state that can be kept."""

    @property
    def resting(self) -> bool:
        """Whether a state can be taken now."""

    def state_dict(self) -> dict[str, Any]:
        """The state."""

    def check_state(self, state: dict[str, Any], place: str) -> None:
        """ValueError if a state is of something else."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""


@dataclass(frozen=True)
class Saves:
    """Where the state of a training is kept.

    Attributes:
        folder: Of the state; it is made, and replaced by a later one.
        required: Whether the user has asked for states. They are then kept after every epoch too
            and stay, and what prevents it is an error. Otherwise it is told, and the training goes
            on or starts anew.
        seconds: Between two states, at least.
    """

    folder: Path
    required: bool = False
    seconds: float = 60.0

    def restarted(self) -> Saves:
        """For the same training with another initialization."""
        return replace(self, folder=self.folder.with_name(f"{self.folder.name}-restarted"))

    def part(self, name: str) -> Saves:
        """For one of several trainings that a variant consists of."""
        return replace(self, folder=self.folder.with_name(f"{self.folder.name}-{name}"))

    def remove(self) -> None:
        """Remove the states of a finished training, unless the user has asked for them."""
        if not self.required:
            shutil.rmtree(self.folder.parent, ignore_errors=True)

    @contextmanager
    def held(self) -> Iterator[bool]:
        """Keep other commands, which may train the same, from using these states meanwhile.

        Yields:
            Whether they can be used here.
        """
        if self.required:
            yield True
            return
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            _told("keep", self.folder, error)
            yield False
            return
        with locked(self.folder.parent) as taken:
            yield taken


@contextmanager
def usable(saves: Saves | None) -> Iterator[Saves | None]:
    """The states while no other command uses them; None where there are none, or one does."""
    if saves is None:
        yield None
        return
    with saves.held() as taken:
        yield saves if taken else None


@dataclass
class Keeper:
    """Keeps the state of one training.

    Args:
        saves: Where.
        processes: Those that train together, and keep one state together.
    """

    saves: Saves
    processes: Processes
    _steps: int = 0
    _next: float = field(init=False)

    def __post_init__(self) -> None:
        self._next = time.monotonic() + self.saves.seconds

    def restore(self, training: Resumable) -> None:
        """Let a training go on from the state that is kept, if there is one.

        Raises:
            ValueError: It is damaged or of another training, and the user has asked for it.
        """
        folder, group = self.saves.folder, self.processes.group
        try:
            state = reweight.checkpoint.load(folder, process_group=group)
            training.check_state(state, str(folder))
        except FileNotFoundError:
            return
        except (ValueError, OSError) as error:
            if self.saves.required:
                raise
            _told("go on from", folder, error)
        else:
            training.load_state_dict(state)

    def after_step(self, training: Resumable) -> None:
        """Keep the state, if it is time to, and if it can be taken now."""
        if self.processes.size == 1:
            if time.monotonic() >= self._next and training.resting:
                self._save(training)
        elif training.resting:
            self._steps += 1
            if self._steps % _AGREED == 0 and self._time_for_all():
                self._save(training)

    def after_epoch(self, training: Resumable) -> None:
        """The same after an epoch."""
        if self.saves.required or self._time_for_all():
            self._save(training)

    def _time_for_all(self) -> bool:
        """Whether it is time to, by the clock of the first process."""
        due = self.processes.first and time.monotonic() >= self._next
        return bool(self.processes.total(torch.tensor(int(due))))

    def _save(self, training: Resumable) -> None:
        started = time.monotonic()
        state, group = training.state_dict(), self.processes.group
        try:
            reweight.checkpoint.save(state, self.saves.folder, process_group=group)
        except OSError as error:
            if self.saves.required:
                raise
            _told("keep", self.saves.folder, error)
        now = time.monotonic()
        self._next = now + max(self.saves.seconds, _LEAST_BETWEEN * (now - started))


def _told(what: str, folder: Path, error: Exception) -> None:
    logger.warning("cannot %s the state of this training in %s: %s", what, folder, error)
