"""Save a state into a folder, and load it again."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reweight.checkpoint import manifest, nested, storage
from reweight.checkpoint.members import Group, Members

_STATE = "state.json"


def save(state: Any, folder: str | os.PathLike[str], *, process_group: Group = "auto") -> None:
    """Save a state, by one process or by all processes of a group together.

    The folder appears under its name when it is complete; a save that is interrupted leaves an
    earlier checkpoint of that name as it was. Besides the files of
    ``torch.distributed.checkpoint``, it has ``state.json`` with all that is not a tensor, and
    ``manifest.json`` with the SHA-256 and the size of every file.

    Args:
        state: Tensors, numbers, strings, ``True``, ``False`` and ``None`` in any nesting of dicts,
            lists and tuples, such as a dict of the ``state_dict()`` of model, optimizers, ``wrap``
            and sampler. With several processes it is the same on all of them, but for the shards
            of a ``DTensor``: what differs between ranks, such as states of random generators, has
            to be gathered before.
        folder: On a file system that all processes see. A checkpoint there is replaced.
        process_group: ``"auto"`` is the default group where one is initialised. ``None``: this
            process saves alone.

    Raises:
        TypeError: there is something else in the state.
        ValueError: the states of the ranks differ in what is not a tensor.
        FileExistsError: the folder holds something that is not a checkpoint.
        OSError: nothing can be written there.

    Example:
        >>> import tempfile, torch
        >>> from reweight import checkpoint
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = torch.optim.Adam(model.parameters())
        >>> folder = tempfile.mkdtemp() + "/step-1"
        >>> state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": 1}
        >>> checkpoint.save(state, folder)
        >>> state = checkpoint.load(folder)
        >>> model.load_state_dict(state["model"])
        <All keys matched successfully>
        >>> state["step"]
        1
    """
    members, place = Members(process_group), Path(os.path.realpath(folder))
    described = nested.Described(state)
    digests = members.gather(lambda: hashlib.sha256(described.text.encode()).hexdigest())
    if len(set(digests)) > 1:
        ranks = [rank for rank, digest in enumerate(digests) if digest != digests[0]]
        raise ValueError(
            f"state: what is not a tensor differs between rank 0 and rank {ranks[0]}, so that it "
            "could be saved for one of them only; gather what belongs to a single rank, as "
            "{'rng': [state of rank 0, state of rank 1, ...]}"
        )
    partial = place.with_name(place.name + ".partial")
    members.on_first(lambda: _begin(place, partial))
    storage.write(partial, described.tensors, members)
    members.on_first(lambda: _write_text(partial / _STATE, described.text))
    names = manifest.files(partial)[members.rank :: members.size]
    parts = members.gather(lambda: manifest.entries(partial, names))
    members.on_first(
        lambda: _finish(place, partial, {name: e for part in parts for name, e in part.items()})
    )


def load(folder: str | os.PathLike[str], like: Any = None, *, process_group: Group = "auto") -> Any:
    """Load a state that :func:`save` has saved, with any number of processes.

    Every file is compared with the manifest before anything is read. No pickle is run: what is not
    a tensor is JSON, and the metadata of the tensors may only consist of their sizes and places.

    Args:
        folder: What was saved to.
        like: A state whose tensors say where those of the same place go: to a device, or, if it
            is a ``DTensor``, into shards. It is not changed. Tensors that it lacks come whole, on
            the CPU, on every rank.
        process_group: As for :func:`save`. All processes of it load together; they share the work
            of checking, and each gets the whole state.

    Returns:
        The state: its dicts, lists, tuples, numbers and strings, with new tensors.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it is not a checkpoint, a file was changed, is missing or was added, or a
            tensor of ``like`` has another shape or dtype.
    """
    members = Members(process_group)
    place, listed = _check(Path(os.path.realpath(folder)), members)
    text = manifest.read_checked(place, _STATE, listed).decode()
    metadata = storage.metadata_of(
        manifest.read_checked(place, storage.METADATA, listed), listed.keys()
    )
    given = nested.tensors_by_path(like)
    targets: dict[str, Tensor] = {}
    for name, path in nested.names(text).items():
        saved = storage.tensor_metadata(metadata, name)
        size, dtype = saved.size, saved.properties.dtype
        target = given.get(path)
        if target is None:
            target = torch.empty(size, dtype=dtype)
        elif (target.shape, target.dtype) != (size, dtype):
            raise ValueError(
                f"like: the tensor {'/'.join(map(str, path))} is {list(target.shape)} of "
                f"{target.dtype}, and {list(size)} of {dtype} was saved; build what is loaded as "
                "it was when it was saved"
            )
        targets[name] = torch.empty_like(target.detach())
    storage.read(place, metadata, targets, members)
    return nested.restored(text, targets)


def check(folder: str | os.PathLike[str], *, process_group: Group = "auto") -> None:
    """Compare every file of a checkpoint with the manifest; nothing of it is loaded.

    Args:
        folder: What was saved to.
        process_group: As for :func:`save`; the processes share the work.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it is not a checkpoint, or a file was changed, is missing or was added.
    """
    _check(Path(os.path.realpath(folder)), Members(process_group))


def _check(place: Path, members: Members) -> tuple[Path, dict[str, manifest.Entry]]:
    """Where the checkpoint lies, and its files, compared with the manifest."""

    def own_part() -> tuple[Path, dict[str, manifest.Entry]]:
        found = _existing(place)
        listed = manifest.read(found)
        manifest.compare(found, listed, sorted(listed)[members.rank :: members.size])
        return found, listed

    return members.gather(own_part)[members.rank]


def _existing(place: Path) -> Path:
    """The folder itself, or where a save that was killed between two renames has put it."""
    if place.is_dir():
        return place
    previous = _previous(place)
    if previous.is_dir():
        return previous
    raise FileNotFoundError(f"there is no checkpoint {place}; give the folder that was saved to")


def _previous(place: Path) -> Path:
    return place.with_name(place.name + ".previous")


def _begin(place: Path, partial: Path) -> None:
    if os.path.lexists(place) and not _replaceable(place):
        raise FileExistsError(
            f"{place} is not a checkpoint of reweight and is left as it is; give another folder"
        )
    shutil.rmtree(partial, ignore_errors=True)  # of a save that was killed
    partial.mkdir(parents=True)


def _replaceable(place: Path) -> bool:
    return place.is_dir() and ((place / manifest.NAME).is_file() or not os.listdir(place))


def _write_text(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _finish(place: Path, partial: Path, entries: dict[str, manifest.Entry]) -> None:
    manifest.write(partial, entries)
    previous = _previous(place)
    if place.is_dir():
        shutil.rmtree(previous, ignore_errors=True)
        place.rename(previous)
    partial.rename(place)
    shutil.rmtree(previous, ignore_errors=True)
