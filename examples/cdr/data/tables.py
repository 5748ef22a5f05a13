"""Tables of behaviours: their columns, their domains, and what becomes of their rows."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cdr.data import domain_names
from cdr.data.cells import shown
from cdr.data.coded import Coded, joined, of_arrow
from cdr.data.schema import OTHERS, Interactions

_EXACT = 2.0**53  # all integers up to it are float64


def text(
    table: pa.Table, column: str, path: Path | str, *, required: bool = True
) -> pa.ChunkedArray:
    """A column as strings, "" where it is empty.

    Raises:
        ValueError: If `required` and an entry is empty, naming the first such row, or if floating-
            point numbers are so large that not every integer is one of them.
    """
    values = table[column]
    if pa.types.is_floating(values.type):
        values = _integers(values, column, path)
    values = pc.fill_null(pc.cast(values, pa.string()), "")
    empty = pc.index(values, "").as_py()
    if required and empty >= 0:
        raise ValueError(
            f"{path}: column {shown(column)} is empty in row {empty + 1} (the first below the "
            "header is row 1); fill it in or drop the row."
        )
    return values


def _integers(values: pa.ChunkedArray, column: str, path: Path | str) -> pa.ChunkedArray:
    """Floating-point ids as the integers they were before a missing one made them floats."""
    values = pc.if_else(pc.is_nan(values), None, values)
    known = values.drop_null().to_numpy()
    too_large = np.abs(known) >= 2.0 ** (np.finfo(known.dtype).nmant + 1)
    if too_large.any():
        raise ValueError(
            f"{path}: column {shown(column)} holds floating-point numbers, "
            f"{int(too_large.sum()):,} of "
            f"which, such as {known[too_large][0]:.17g}, are so large that different integers "
            "become equal. Write the ids as text or as integers."
        )
    return pc.cast(values, pa.int64()) if (known == np.floor(known)).all() else values


def numbers(
    table: pa.Table,
    column: str,
    path: Path | str,
    *,
    required: bool = False,
    kind: str = "a number",
) -> np.ndarray:
    """A column as float64, NaN where it is empty; parquet timestamps become seconds.

    Args:
        table: The table.
        column: Its column.
        path: Of the file, for messages.
        required: Whether an empty entry is an error.
        kind: What an entry has to be, for messages.

    Raises:
        ValueError: If an entry is not a finite number, or `required` and empty, naming the first
            such row and its value.
    """
    values = table[column]
    if pa.types.is_timestamp(values.type) or pa.types.is_date(values.type):
        values = _seconds(values)
    values, parsed = _parsed(values)
    empty = values.is_null(nan_is_null=pa.types.is_floating(values.type)).to_numpy()
    wrong = ~np.isfinite(parsed) & (True if required else ~empty)
    if wrong.any():
        row = int(wrong.argmax())
        raise ValueError(
            f"{path}: {shown(column)} is {shown(table[column][row].as_py())} in row {row + 1} (the "
            f"first below the header is row 1), not {kind}; {int(wrong.sum()):,} of {len(wrong):,} "
            "rows are like this. Correct or drop them."
        )
    return parsed


def places(table: pa.Table, column: str, path: Path | str) -> np.ndarray:
    """A column of positions in a chronology: whole numbers as float64, NaN where it is empty.

    Raises:
        ValueError: If an entry is no whole number, or so large that others become equal to it.
    """
    found = numbers(table, column, path)
    wrong = (np.abs(found) > _EXACT) | (found != np.floor(found)) & ~np.isnan(found)
    if wrong.any():
        row = int(wrong.argmax())
        raise ValueError(
            f"{path}: {shown(column)} is {shown(table[column][row].as_py())} in row {row + 1}, not "
            "a whole number up to 9,007,199,254,740,992. Number the rows of a user in their order."
        )
    return found


def _seconds(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Dates or timestamps as seconds since 1970, to a microsecond, in float64."""
    if pa.types.is_date32(values.type):
        values = pc.cast(values, pa.date64())
    per_second = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
    unit = per_second[getattr(values.type, "unit", "ms")]
    numbers = pc.cast(values, pa.int64())
    if unit == per_second["ns"]:
        # A float64 cannot tell apart less than a microsecond.
        numbers, unit = pc.divide(numbers, 1_000), per_second["us"]
    return pc.divide(pc.cast(numbers, pa.float64(), safe=False), float(unit))


def _parsed(values: pa.ChunkedArray) -> tuple[pa.ChunkedArray, np.ndarray]:
    """The values with null for blanks, and as float64: infinite where it is not a number."""
    is_number = pa.types.is_integer(values.type) or pa.types.is_floating(values.type)
    if is_number or pa.types.is_string(values.type):
        # Most files have a number in each row and no blank beside it: there is nothing to trim.
        with suppress(pa.ArrowInvalid):
            return values, pc.cast(values, pa.float64(), safe=False).to_numpy()
    if not is_number:
        strings = pc.utf8_trim_whitespace(pc.cast(values, pa.string()))
        values = pc.if_else(pc.equal(strings, ""), None, strings)
    try:
        return values, pc.cast(values, pa.float64(), safe=False).to_numpy()
    except pa.ArrowInvalid:  # it does not say where
        return values, np.array([_number(value) for value in values.to_pylist()])


def _number(value: str | None) -> float:
    try:
        return np.nan if value is None else float(value)
    except ValueError:
        return np.inf  # neither a number nor unknown


def replace(table: pa.Table, column: str, values: pa.ChunkedArray | np.ndarray) -> pa.Table:
    """The table with a column set anew, or added."""
    values = pa.chunked_array([values]) if isinstance(values, np.ndarray) else values
    if column not in table.column_names:
        return table.append_column(column, values)
    return table.set_column(table.schema.get_field_index(column), column, values)


def domains(
    table: pa.Table, source: str | Sequence[str], target: str, path: Path | str
) -> tuple[str, ...]:
    """The source domains that `source` names ("A", "A+B" or a sequence), checked.

    Raises:
        ValueError: If a name is not found in the table's column domain, is given twice, or is
            the target's.
    """
    found = rows_of_domains(table)
    if isinstance(source, str):
        source = (source,) if source in found else source.split("+")
    for argument, name in [*(("source", name) for name in source), ("target", target)]:
        if name not in found:
            raise ValueError(domain_names.unknown(argument, name, found, str(path)))
    return named_once(source, target)


def rows_of_domains(table: pa.Table) -> dict[str, int]:
    """How many rows each domain of a table has, by its column domain."""
    counted = pc.value_counts(table["domain"])
    return dict(zip(counted.field(0).to_pylist(), counted.field(1).to_pylist(), strict=True))


def named_once(source: str | Sequence[str], target: str) -> tuple[str, ...]:
    """The source domains that `source` names ("A", "A+B" or a sequence).

    Raises:
        ValueError: If there are none, or one is named twice or is the target.
    """
    source = source.split("+") if isinstance(source, str) else source
    if not source or len({*source, target}) != len(source) + 1:
        raise ValueError(
            f"source={shown('+'.join(source))} and target={shown(target)}: name each domain "
            "once, and at least one as the source."
        )
    return tuple(source)


def interactions(
    table: pa.Table, names: Sequence[str], catalogue: pa.Table | None = None
) -> Interactions:
    """The rows of some domains.

    Args:
        table: The columns user, item and domain (strings), label (bool), time (float64, NaN
            unknown) and, where there is one, order (float64, NaN unknown).
        names: The domains, in the order in which rows are to be listed. The items of several get
            their domain's name in front: "Beauty/B001".
        catalogue: The columns item and category (strings, "" unknown) and, where the domains do
            not share items, domain. Without it a single domain has no categories, and several
            domains are each other's.

    Returns:
        The behaviours. `order` is left out where it is not known of all rows, `time` where it is
        known of none.
    """
    parts = [table.filter(pc.equal(table["domain"], name)) for name in names]
    columns = [
        _texts(*each, catalogue, several=len(names) > 1) for each in zip(parts, names, strict=True)
    ]
    users, items, categories = zip(*columns, strict=True)
    rows = pa.concat_tables(part.drop_columns(["user", "item", "domain"]) for part in parts)
    time = rows["time"].to_numpy()
    order = rows["order"].to_numpy() if "order" in rows.column_names else np.array([np.nan])
    return Interactions(
        user=joined(users),
        item=joined(items),
        label=rows["label"].to_numpy(),
        time=None if np.isnan(time).all() else time,
        order=None if np.isnan(order).any() else order.astype(np.int64),
        category=None if None in categories else joined(categories),
    )


def _texts(
    part: pa.Table, domain: str, catalogue: pa.Table | None, several: bool
) -> tuple[Coded, Coded, Coded | None]:
    """Users, items and categories of the rows of a domain."""
    users, user = of_arrow(part["user"])
    items, item = of_arrow(part["item"])
    categories = None
    # What is told of an item is made once for each.
    if catalogue is not None:
        categories = _categories(items, domain, catalogue)
        if several:
            categories = pc.binary_join_element_wise(domain, categories, "/")
    elif several:
        categories = pa.repeat(domain, len(items))
    if several:
        items = pc.binary_join_element_wise(domain, items, "/")
    return (
        Coded(_objects(users), user),
        Coded(_objects(items), item),
        None if categories is None else Coded(_objects(categories), item),
    )


def _objects(texts: pa.Array | pa.ChunkedArray) -> np.ndarray:
    return np.asarray(texts.to_numpy(zero_copy_only=False), dtype=object)


def _categories(items: pa.Array, domain: str, catalogue: pa.Table) -> pa.Array:
    if "domain" in catalogue.column_names:
        catalogue = catalogue.filter(pc.equal(catalogue["domain"], domain))
    place = pc.index_in(items, value_set=catalogue["item"].combine_chunks())
    category = pc.fill_null(pc.take(catalogue["category"].combine_chunks(), place), "")
    return pc.if_else(pc.equal(category, ""), OTHERS, category)
