"""Processes that do jobs for this one, and end with it.

Jobs, results and errors go through pipes as bytes. Neither shared memory nor semaphores are used,
both of which lie in ``/dev/shm``: a container may have next to nothing there.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

_PATIENCE = 5.0  # seconds for a process that has nothing left to do

Tell = Callable[[str], None]
Serve = Callable[[Any, Tell], Any]
"""Does a job in a worker: what was submitted, and what takes its messages."""


@dataclass
class _Worker:
    process: SpawnProcess
    pipe: Connection
    job: Any = None


class Workers:
    """Processes that do one job at a time each. Closed, they end, whatever they do.

    A worker also ends when this process does, even if that is killed.

    Args:
        starts: For each process what it is given at its start.
        start: Called with that in the new process, first of all.
        serve: Does a job; a function of a module.
    """

    def __init__(self, starts: Sequence[Any], start: Callable[[Any], None], serve: Serve) -> None:
        self._starts, self._serve = list(starts), (start, serve)
        self._context = multiprocessing.get_context("spawn")
        self._workers: list[_Worker] = []

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def free(self) -> bool:
        """Whether a job would be begun at once."""
        return bool(self._starts) or any(worker.job is None for worker in self._workers)

    @property
    def busy(self) -> bool:
        """Whether a job is being done."""
        return any(worker.job is not None for worker in self._workers)

    def submit(self, job: Any, *arguments: Any) -> None:
        """Have a job done by a process that has none.

        Args:
            job: What its result is reported with.
            arguments: What is sent, beside it.
        """
        idle = [worker for worker in self._workers if worker.job is None]
        worker = idle[0] if idle else self._started()
        worker.job = job
        with suppress(OSError):  # it has ended, and the next events() tell so
            worker.pipe.send_bytes(pickle.dumps((job, *arguments)))

    def events(self, seconds: float) -> Iterator[tuple[Any, Any]]:
        """What has come from the workers, after a wait for it of that many seconds at most.

        Yields:
            A job and its result or, with the job None, a message.

        Raises:
            ChildProcessError: A worker has ended before its job was done.
            Exception: What a job has raised, as `(job, exception)`.
        """
        busy = {worker.pipe: worker for worker in self._workers if worker.job is not None}
        for pipe in wait(list(busy), seconds):
            worker = busy[pipe]  # type: ignore[index]
            try:
                kind, content = pickle.loads(worker.pipe.recv_bytes())
            except (EOFError, OSError) as error:
                worker.process.join(_PATIENCE)
                raise ChildProcessError(_ended(worker.process.exitcode)) from error
            if kind == "message":
                yield None, content
                continue
            job, worker.job = worker.job, None
            yield job, content

    def close(self) -> None:
        """End all processes: those without a job by themselves, the others at once."""
        for worker in self._workers:
            worker.pipe.close()
            if worker.job is not None:
                worker.process.kill()
        for worker in self._workers:
            worker.process.join(_PATIENCE)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
            worker.process.close()
        self._workers.clear()

    def _started(self) -> _Worker:
        ours, theirs = self._context.Pipe()
        given = self._starts.pop(0)
        process = self._context.Process(
            target=_work, args=(theirs, *self._serve, given), daemon=True
        )
        process.start()
        theirs.close()  # so that the end of the process is the end of the pipe
        worker = _Worker(process, ours)
        self._workers.append(worker)
        return worker


def _ended(code: int | None) -> str:
    """Why a process is likely to have ended."""
    if code is not None and code < 0:
        number = -code
        name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
        if name == "SIGKILL":
            return "a training process was killed, most likely because memory ran out: lower --jobs"
        return f"a training process was ended by {name}"
    return f"a training process has ended by itself (exit code {code}); its own output tells why"


def _work(pipe: Connection, start: Callable[[Any], None], serve: Serve, given: Any) -> None:
    """What a worker does: job after job, until the pipe is closed."""
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted too, and ends us
    start(given)

    def tell(text: str) -> None:
        pipe.send_bytes(pickle.dumps(("message", text)))

    # The pipe breaks when the parent has closed it.
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            pipe.send_bytes(_done(serve, pickle.loads(pipe.recv_bytes()), tell))


def _done(serve: Serve, job: Any, tell: Tell) -> bytes:
    """A result or an error as bytes."""
    try:
        return pickle.dumps(("done", serve(job, tell)))
    except (BrokenPipeError, ConnectionResetError):
        raise  # of tell: there is nobody to report to
    except Exception as error:
        return _failed(error)


def _failed(error: Exception) -> bytes:
    """An error as bytes, with its traceback as its cause."""
    told = RuntimeError("in a training process:\n" + traceback.format_exc())
    error.__cause__ = told
    try:
        sent = pickle.dumps(("done", Failure(error, told)))
        pickle.loads(sent)
    except Exception:  # an error that cannot be sent is told in words
        sent = pickle.dumps(
            ("done", Failure(RuntimeError(f"{type(error).__name__}: {error}"), told))
        )
    return sent


class Failure:
    """An error in the place of a result.

    Args:
        error: The error.
        cause: Where it was raised; pickle leaves an error's cause out.
    """

    def __init__(self, error: Exception, cause: Exception) -> None:
        self.error, self._cause = error, cause

    def raised(self) -> Exception:
        """The error, to be raised."""
        self.error.__cause__ = self._cause
        return self.error


def _end_with_the_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    # Without any cleaning up: another thread may be in the middle of anything.
    os._exit(1)
