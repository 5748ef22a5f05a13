"""Tensors in the files of ``torch.distributed.checkpoint``, read without running their pickles."""

from __future__ import annotations

import inspect
import io
import pickle
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from reweight.checkpoint.members import Members

METADATA = ".metadata"

# What the metadata of tensors consist of. BytesStorageMetadata is not among it: torch unpickles
# what it describes.
_PLAIN = {
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    *(
        ("torch.distributed.checkpoint.metadata", name)
        for name in (
            "ChunkStorageMetadata",
            "Metadata",
            "MetadataIndex",
            "StorageMeta",
            "TensorProperties",
            "TensorStorageMetadata",
            "_MEM_FORMAT_ENCODING",
        )
    ),
}


def write(folder: Path, tensors: dict[str, Tensor], members: Members) -> None:
    """Write tensors, each rank a part; of a DTensor, each the shards that it holds."""
    with _plainly(f"writing {folder}"):
        save(dict(tensors), storage_writer=FileSystemWriter(folder), **_with(members))


def read(folder: Path, metadata: Metadata, targets: dict[str, Tensor], members: Members) -> None:
    """Read tensors into those of ``targets``, in place; into a DTensor, the shards of this rank."""
    with _plainly(f"reading {folder}"):
        load(dict(targets), storage_reader=_Reader(folder, metadata), **_with(members))


def _with(members: Members) -> dict[str, Any]:
    """The arguments that tell torch which processes work together.

    Raises:
        RuntimeError: this process is to work alone beside others, which an older torch can't.
    """
    if members.group is not None:
        return {"process_group": members.group}
    if "no_dist" in inspect.signature(save).parameters:
        return {"no_dist": True}
    # There, a process is alone where no group is initialised.
    if dist.is_available() and dist.is_initialized():
        raise RuntimeError(
            f"process_group=None saves and loads one process apart from the others, which torch "
            f"{torch.__version__} can't: use a newer torch, or let all processes take part"
        )
    return {}


def metadata_of(content: bytes, files: Collection[str]) -> Metadata:
    """The metadata of tensors in ``files``, from the content of their file.

    Raises:
        ValueError: it has more in it than the metadata of tensors, or refers to other files.
    """
    try:
        found = _Unpickler(io.BytesIO(content)).load()
    except Exception as error:  # whatever pickle makes of bytes that are none
        raise ValueError(f"the metadata of this checkpoint cannot be read: {error}") from error
    if not isinstance(found, Metadata):
        raise ValueError(f"the metadata of this checkpoint is a {type(found).__name__}")
    elsewhere = {place.relative_path for place in (found.storage_data or {}).values()} - set(files)
    if elsewhere:
        raise ValueError(f"the metadata of this checkpoint refer to {', '.join(sorted(elsewhere))}")
    return found


def tensor_metadata(metadata: Metadata, name: str) -> TensorStorageMetadata:
    """Size and dtype of a tensor.

    Raises:
        ValueError: there is no tensor of that name.
    """
    found = metadata.state_dict_metadata.get(name)
    if not isinstance(found, TensorStorageMetadata):
        raise ValueError(f"the metadata of this checkpoint have no tensor {name!r}")
    return found


class _Reader(FileSystemReader):
    """A reader that has the metadata already, and never unpickles them."""

    def __init__(self, folder: Path, metadata: Metadata) -> None:
        super().__init__(folder)
        self._checked = metadata

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return self._checked


class _Unpickler(pickle.Unpickler):
    """An unpickler of plain values and of the classes that metadata consist of."""

    def find_class(self, module: str, name: str) -> Any:
        # The path that was saved to, which nobody needs; its own class may not exist here.
        if module.partition(".")[0] == "pathlib":
            return _Nothing
        if (module, name) in _PLAIN:
            return super().find_class(module, name)
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        raise pickle.UnpicklingError(f"{module}.{name} is no part of the metadata of tensors")


class _Nothing:
    def __init__(self, *parts: str) -> None:
        pass


@contextmanager
def _plainly(what: str) -> Iterator[None]:
    """Without torch's warning that one process acts alone, and with errors that can be caught.

    Torch raises a ``BaseException`` on all ranks, which holds the error of each.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*single process.*")
        try:
            yield
        except CheckpointException as error:
            (rank, (cause, _)), *_ = error.failures.items()
            raise OSError(f"{what} failed on rank {rank}: {cause}") from error
