"""Amazon 2014, 5-core, from the files as they were published (J. McAuley): the paper's data."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from cdr.data import amazon_files, tables
from cdr.data.accounts import NOT_COMMON, RowsRead
from cdr.data.amazon_domains import PAPER_DOMAINS, TABLE_NAMES, full_name
from cdr.data.cache import cached
from cdr.data.cells import naming
from cdr.data.dataset import Dataset, Pair, Published, counts, split_domains
from cdr.data.likes import LIKED_ABOVE
from cdr.data.limits import LIMITS, Limits
from cdr.data.line_files import BadLines
from cdr.data.protocol import LAST_ONE, Protocol
from cdr.data.schema import CrossDomainData
from cdr.data.split import build


class Files(NamedTuple):
    """The two files of a domain."""

    reviews: Path
    metadata: Path


def load(
    root: Path | str,
    source: str | Sequence[str] = "Books",
    target: str = "Toys_and_Games",
    *,
    source_cut: str = "time",
    protocol: Protocol = LAST_ONE,
    cache: Path | str | None = None,
    limits: Limits = LIMITS,
) -> CrossDomainData:
    """One or several domains of Amazon as the source for another.

    The category of an item is the second level of its first path, "others" where there is none
    and for items without metadata. Times are whole days; ties keep the order of the file. With
    several sources, items and categories have their domain's name in front ("Books/B001").

    A file is read once: what is needed of it, about a hundredth, is kept as parquet.

    Args:
        root: The folder that holds reviews_X_5.json.gz and meta_X.json.gz of each domain X, or
            that holds amazon/ with them; unpacked, .json, they will do, too.
        source: Domain to transfer from, by its name in the files or the paper's ("Books",
            "Movies", "CDs", "Elec", "Toys", "Cloth", "Kitchen"), or several (a sequence, or
            joined with "+").
        target: Domain to recommend in, likewise.
        source_cut: See :func:`cdr.data.split.build`.
        protocol: Likewise.
        cache: Where the parquet files are kept; in `root`/.cache-reweight if left out.
        limits: Of the files. What has been read within others is taken from the cache.

    Returns:
        The scenario; its notes say which lines of the files are bad.

    Raises:
        FileNotFoundError: Naming all files that are missing.
        OSError: If the cache cannot be written to.
        ValueError: If a file cannot be read, a domain is named twice, or no user is in both.
    """
    target = full_name(target)
    names = source.split("+") if isinstance(source, str) else source
    sources = tables.named_once([full_name(name) for name in names], target)
    files = find(root, (*sources, target))
    folder = cache_folder(root, cache)
    read = partial(amazon_files.reviews, limits=limits)
    reviews = {d: cached(f.reviews, folder, read) for d, f in files.items()}
    describe = partial(amazon_files.categories, limits=limits)
    metadata = {d: cached(f.metadata, folder, describe) for d, f in files.items()}
    bad = [
        BadLines.of(read[domain]).sentence(getattr(files[domain], kind).name, kind)
        for kind, read in (("reviews", reviews), ("metadata", metadata))
        for domain in files
    ]
    bad += [
        BadLines.of(metadata[d]).sentence_on_repeated(f.metadata.name) for d, f in files.items()
    ]
    where = " and ".join(f.reviews.name for f in files.values())
    where = where if len(where) <= 120 else f"the reviews in {root}"
    with naming(where):
        log, catalogue = _joined(_of_common_users(reviews, target)), _joined(metadata)
    left_out = {"that are no reviews": sum(BadLines.of(t).count for t in reviews.values())}
    left_out[NOT_COMMON] = sum(map(len, reviews.values())) - len(log)
    found = RowsRead(len(log) + sum(left_out.values()), left_out)
    log = tables.replace(log, "label", pc.greater(log["rating"], LIKED_ABOVE))
    log = tables.replace(log, "time", pc.cast(log["time"], pa.float64()))
    with naming(where):
        data = build(
            f"Amazon {'+'.join(sources)} → {target}",
            tables.interactions(log, sources, catalogue),
            tables.interactions(log, (target,), catalogue),
            source_cut=source_cut,
            protocol=protocol,
            merge_lines=True,
            found=found,
        )
    return replace(data, notes=(*filter(None, bad), *data.notes))


def cache_folder(root: Path | str, cache: Path | str | None = None) -> Path:
    """Where what is read of the files is kept; see :func:`load`."""
    return Path(root) / ".cache-reweight" if cache is None else Path(cache)


def titles(
    root: Path | str, pair: Pair, items: Collection[str], *, limits: Limits = LIMITS
) -> dict[str, str]:
    """The titles of some items, as far as the metadata have them; reads all metadata once more.

    Args:
        root: See :func:`load`.
        pair: Source and target.
        items: Their ids in the files.
        limits: Of the files.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file cannot be read.
    """
    found: dict[str, str] = {}
    for files in find(root, _domains([pair])).values():
        found |= amazon_files.titles(files.metadata, items, limits)
    return found


def _domains(pairs: Sequence[Pair]) -> list[str]:
    """All domains of some scenarios by their names in the files, each once."""
    return list(dict.fromkeys(map(full_name, split_domains(pairs))))


def find(root: Path | str, domains: Iterable[str]) -> dict[str, Files]:
    """The files of some domains, by domain.

    Args:
        root: See :func:`load`.
        domains: Names as in the files.

    Raises:
        FileNotFoundError: Naming all that are missing, and where to get them.
    """
    found, missing = {}, []
    for domain in domains:
        stems = (f"reviews_{domain}_5", f"meta_{domain}")
        reviews, metadata = (_find(Path(root), stem) for stem in stems)
        if reviews is not None and metadata is not None:
            found[domain] = Files(reviews, metadata)
        absent = (reviews is None, metadata is None)
        missing += [stem for stem, gone in zip(stems, absent, strict=True) if gone]
    if missing:
        names = "".join(f"\n  {stem}.json.gz" for stem in dict.fromkeys(missing))
        raise FileNotFoundError(
            f"These files are missing from {root} (and from {Path(root) / 'amazon'}):{names}\n"
            "Unpacked, with the ending .json, they are taken as well. They belong to J. McAuley's "
            '"Amazon product data" in its version of 2014: reviews_… are its 5-core review '
            'subsets, listed there as "small" subsets for experimentation, and meta_… its '
            "per-category metadata. The paper's short names for domains are "
            f"{', '.join(PAPER_DOMAINS)}."
        )
    return found


def _files(root: Path, pairs: Sequence[Pair]) -> dict[str, Path]:
    found = find(root, _domains(pairs))
    return {path.name: path for files in found.values() for path in files}


def _is_in(root: Path) -> bool:
    """Whether there are reviews of any domain."""
    return any(any(root.glob(f"{place}reviews_*_5.json*")) for place in ("", "amazon/"))


def _find(root: Path, stem: str) -> Path | None:
    # What was downloaded comes first: it has a checksum, and an unpacked copy may be incomplete.
    places = [f / f"{stem}{e}" for e in (".json.gz", ".json") for f in (root, root / "amazon")]
    return next((path for path in places if path.is_file()), None)


def _of_common_users(reviews: Mapping[str, pa.Table], target: str) -> dict[str, pa.Table]:
    """The reviews of users found both in a source and in the target."""
    users = {domain: pc.unique(table["user"]).dictionary for domain, table in reviews.items()}
    in_source = pa.concat_arrays([ids for domain, ids in users.items() if domain != target])
    common = {
        domain: table.filter(
            pc.is_in(table["user"], value_set=in_source if domain == target else users[target])
        )
        for domain, table in reviews.items()
    }
    if not len(common[target]):
        raise ValueError(
            f"No user is in both domains: of {len(in_source):,} users of the source and "
            f"{len(users[target]):,} of {target} none is the same. Are these files complete?"
        )
    return common


def _joined(parts: Mapping[str, pa.Table]) -> pa.Table:
    """One table of strings and numbers, with a column domain."""
    return pa.concat_tables(
        pa.table(
            {
                **{
                    name: pc.cast(column, pa.string())
                    if pa.types.is_dictionary(column.type)
                    else column
                    for name, column in zip(table.column_names, table.columns, strict=True)
                },
                "domain": pa.repeat(domain, len(table)),
            }
        )
        for domain, table in parts.items()
    )


def _published(name: str, statistics: tuple[int, int, int, int, int]) -> tuple[str, Published]:
    """A row of the paper's Table 4."""
    source, target = map(full_name, name.split("-"))
    return f"Amazon {source} → {target}", Published(source, target, counts(*statistics), name)


PUBLISHED = dict(
    _published(name, statistics)
    for name, statistics in {
        "Books-Movies": (37_388, 944_533, 792_319, 269_301, 49_273),
        "Books-CDs": (16_738, 418_653, 380_675, 191_942, 61_201),
        "Books-Elec": (28_506, 735_683, 364_267, 229_189, 52_134),
        "Books-Toys": (7_576, 317_646, 84_564, 134_350, 11_567),
        "CDs-Cloth": (4_283, 71_491, 36_319, 26_178, 15_445),
        "CDs-Kitchen": (8_144, 160_358, 96_670, 36_018, 22_550),
        "Elec-Cloth": (8_235, 99_594, 66_470, 25_816, 18_703),
    }.items()
)
"""Table 4 of BIAO (WWW'23)."""

DATASET = Dataset(
    name="amazon",
    about="Amazon's original files",
    load=load,
    holds="reviews_X_5.json.gz and meta_X.json.gz of each domain X",
    scenarios=tuple((one.source, one.target) for one in PUBLISHED.values()),
    flags=frozenset({"source_cut", "cache"}),
    is_in=_is_in,
    files=_files,
    full_name=full_name,
    short_names=TABLE_NAMES,
    published=PUBLISHED,
    titles=titles,
    cache_folder=cache_folder,
)
