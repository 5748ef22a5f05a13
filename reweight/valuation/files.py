"""Columns of samples in a parquet, csv or npz file, with their meaning."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Columns: TypeAlias = dict[str, NDArray[Any]]

VERSION = 1
DESCRIPTIONS = {
    "id": "id of the training sample",
    "weight": "factor of the sample's loss, without a unit; 1 leaves the loss as it is",
    "influence": (
        "derivative of the dev loss by the sample's weight, in units of the dev loss; below zero: "
        "more of this sample decreases the dev loss; mean over the times that it was seen"
    ),
    "seen": "how many times the sample was seen",
}
_KINDS: dict[str, tuple[str, type]] = {
    "weight": ("number", np.float64),
    "influence": ("number", np.float64),
    "seen": ("integer", np.int64),
}


def write(path: str | Path, columns: Columns) -> None:
    """Write a file under a temporary name and rename it when it is complete.

    Args:
        path: ends with ``.parquet``, ``.csv`` or ``.npz``.
        columns: ``[N]`` each, by the names in ``DESCRIPTIONS``.

    Raises:
        ValueError: another extension.
        ImportError: pyarrow is not installed, which parquet files need.
        FileNotFoundError: the folder does not exist.
    """
    path = Path(path)
    _format(path, _WRITERS)(path, columns)


def read(path: str | Path) -> Columns:
    """Read a file that :func:`write` wrote, or any file with these columns.

    Raises:
        ValueError: another extension, a column is missing, an entry is no number, or a newer
            version of this library wrote the file.
        ImportError: pyarrow is not installed, which parquet files need.
        FileNotFoundError: there is no such file.
    """
    path = Path(path)
    found, version = _format(path, _READERS)(path)
    if version > VERSION:
        raise ValueError(
            f"path={str(path)!r} was written in version {version} of this format, and this is "
            f"version {VERSION}: update torch-reweight"
        )
    missing = [name for name in ("id", "weight") if name not in found]
    if missing:
        raise ValueError(
            f"path={str(path)!r} has no column {missing[0]!r}: found {', '.join(found) or 'none'}; "
            "the columns are id and weight, and if known influence and seen"
        )
    columns = {"id": found["id"]}
    for name, (kind, dtype) in _KINDS.items():
        if name in found:
            try:
                columns[name] = found[name].astype(dtype)
            except (ValueError, TypeError) as error:
                raise ValueError(
                    f"path={str(path)!r}: column {name!r} holds an entry that is no {kind} "
                    f"({error})"
                ) from error
    return columns


def _format(path: Path, functions: Mapping[str, Callable[..., Any]]) -> Callable[..., Any]:
    if path.suffix.lower() not in functions:
        raise ValueError(f"path={str(path)!r}: the extension must be {', '.join(functions)}")
    return functions[path.suffix.lower()]


def _replaced(path: Path, fill: Callable[[Path], None]) -> None:
    # An ordinary file in the same folder: it gets the default permissions, unlike a tempfile.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        fill(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


# -- parquet ---------------------------------------------------------------------------------------


def _pyarrow() -> tuple[ModuleType, ModuleType]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(
            "parquet files need pyarrow: pip install pyarrow, or choose .csv or .npz",
            name="pyarrow",
        ) from error
    return pyarrow, pyarrow.parquet


def _write_parquet(path: Path, columns: Columns) -> None:
    arrow, parquet = _pyarrow()
    arrays = {name: arrow.array(values) for name, values in columns.items()}
    fields = [
        arrow.field(name, array.type, metadata={"description": DESCRIPTIONS[name]})
        for name, array in arrays.items()
    ]
    schema = arrow.schema(fields, metadata={"reweight": json.dumps(_about(columns))})
    table = arrow.table(list(arrays.values()), schema=schema)
    _replaced(path, lambda temporary: parquet.write_table(table, temporary))


def _read_parquet(path: Path) -> tuple[Columns, int]:
    _, parquet = _pyarrow()
    table = parquet.read_table(path)
    about = json.loads((table.schema.metadata or {}).get(b"reweight", b"{}"))
    return {
        name: table[name].to_numpy() for name in table.column_names if name in DESCRIPTIONS
    }, about.get("version", VERSION)


def _about(columns: Columns) -> dict[str, Any]:
    return {"version": VERSION, "columns": {name: DESCRIPTIONS[name] for name in columns}}


# -- csv -------------------------------------------------------------------------------------------


def _write_csv(path: Path, columns: Columns) -> None:
    """The table, and what it means beside it: a csv file has no place for that.

    The name and the form of the second file are those of "Metadata Vocabulary for Tabular Data"
    (W3C, 2015).
    """
    schema = [
        {
            "name": name,
            "datatype": _KINDS[name][0] if name in _KINDS else _id_type(values),
            "dc:description": DESCRIPTIONS[name],
        }
        for name, values in columns.items()
    ]
    about = {
        "@context": "http://www.w3.org/ns/csvw",
        "url": path.name,
        "dc:identifier": f"reweight {VERSION}",
        "tableSchema": {"columns": schema},
    }

    def fill(temporary: Path) -> None:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows(zip(*(values.tolist() for values in columns.values()), strict=True))

    text = json.dumps(about, indent=1) + "\n"
    _replaced(_beside(path), lambda temporary: _write_text(temporary, text))
    _replaced(path, fill)


def _read_csv(path: Path) -> tuple[Columns, int]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.reader(file))
    header, body = (rows[0], [row for row in rows[1:] if row]) if rows else ([], [])
    for number, row in enumerate(body, 2):
        if len(row) != len(header):
            raise ValueError(
                f"path={str(path)!r}: row {number} has {len(row)} entries for {len(header)} columns"
            )
    columns: Columns = {
        name: np.asarray([row[k] for row in body], dtype=str)
        for k, name in enumerate(header)
        if name in DESCRIPTIONS
    }
    about = json.loads(_beside(path).read_text("utf-8")) if _beside(path).exists() else {}
    kinds = {c["name"]: c["datatype"] for c in about.get("tableSchema", {}).get("columns", ())}
    if "id" in columns and kinds.get("id") != "string" and _are_integers(columns["id"]):
        columns["id"] = columns["id"].astype(np.int64)
    return columns, int(about.get("dc:identifier", str(VERSION)).rpartition(" ")[2])


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}-metadata.json")


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _id_type(ids: NDArray[Any]) -> str:
    return "string" if ids.dtype.kind == "U" else "integer"


def _are_integers(ids: NDArray[Any]) -> bool:
    """Whether all are written as int64 numbers are: "007" is a name."""
    try:
        return bool((ids.astype(np.int64).astype(str) == ids).all())
    except (ValueError, OverflowError):
        return False


# -- npz -------------------------------------------------------------------------------------------


def _write_npz(path: Path, columns: Columns) -> None:
    def fill(temporary: Path) -> None:
        with temporary.open("wb") as file:  # numpy would append .npz to the name
            np.savez(file, about=np.array(json.dumps(_about(columns))), **_entries(columns))

    _replaced(path, fill)


def _entries(columns: Columns) -> dict[str, Any]:
    return dict(columns)


def _read_npz(path: Path) -> tuple[Columns, int]:
    with np.load(path, allow_pickle=False) as file:
        about = json.loads(str(file["about"])) if "about" in file else {}
        return {name: file[name] for name in file if name in DESCRIPTIONS}, about.get(
            "version", VERSION
        )


_WRITERS = {".parquet": _write_parquet, ".csv": _write_csv, ".npz": _write_npz}
_READERS = {".parquet": _read_parquet, ".csv": _read_csv, ".npz": _read_npz}
