"""What the example has to know of a data set."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cdr.data.schema import CrossDomainData

Pair = tuple[str, str]
"""Source and target domain of a scenario; several sources are joined with "+"."""

_NAMED = 4  # sources, in the heading of a column; of more, how many they are


@dataclass(frozen=True)
class Published:
    """Statistics of a scenario that were published.

    Args:
        source: Its source domain.
        target: Its target domain.
        counts: The numbers, by their names in `CrossDomainData.statistics`.
        paper_name: What BIAO (WWW'23) calls the scenario, "" if it is not in the paper.
    """

    source: str
    target: str
    counts: Mapping[str, int]
    paper_name: str = ""


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set: how it is found, loaded, checked, fingerprinted and shown.

    A further data set is one module with such an object, and its line in
    :mod:`cdr.data.registry`.

    Args:
        name: The value of ``--data``.
        about: A few words for the help text.
        load: Loads a scenario. Of a generator: ``load(**options)``; else
            ``load(root, source=..., target=..., **options)``.
        holds: What the folder ``--root`` has to hold, in words; "" where nothing is read from it.
        scenarios: The scenarios that the bare name stands for; the first is what `load` takes if
            no domain is named. Without any, two domains have to be named.
        flags: Options of `load` that the command line may set, beside root, source and target.
        is_in: Whether a folder holds any of it.
        files: The files that scenarios are read from, by names that tell them apart. Raises
            FileNotFoundError, naming all that are missing.
        full_name: The name of a domain in the files, given that or another one.
        short_names: What a table calls a domain.
        prefix: What a table puts in front of the domains.
        published: What is known of scenarios, by `CrossDomainData.name`.
        titles: The titles of some items, by id, from the root, the source and the target; and from
            ``catalogue=``, the path of the table of items, where `flags` has "items".
        domains: Of a data set without scenarios the domains, with their numbers of rows where these
            are counted, from the root and the options of `load`.
        cache_folder: From the root and ``--cache``: where `load` keeps what it has read.
        sample: A little of generated data; only of a generator, whose data have no files.
    """

    name: str
    about: str
    load: Callable[..., CrossDomainData]
    holds: str = ""
    scenarios: tuple[Pair, ...] = ()
    flags: frozenset[str] = frozenset({"source_cut"})
    is_in: Callable[[Path], bool] = lambda root: False
    files: Callable[[Path, Sequence[Pair]], dict[str, Path]] = lambda root, pairs: {}
    full_name: Callable[[str], str] = lambda domain: domain
    short_names: Mapping[str, str] = field(default_factory=dict)
    prefix: str = ""
    published: Mapping[str, Published] = field(default_factory=dict)
    titles: Callable[..., Mapping[str, str]] | None = None
    domains: Callable[[Path, Mapping[str, Any]], Mapping[str, int | None]] | None = None
    cache_folder: Callable[[Path, Path | None], Path] | None = None
    sample: Callable[[], CrossDomainData] | None = None

    @property
    def generated(self) -> bool:
        """Whether every seed has data of its own, whose relevant behaviours are known."""
        return self.sample is not None

    @property
    def paper_scenarios(self) -> dict[str, Pair]:
        """The scenarios of BIAO (WWW'23), by their names in the paper."""
        known = self.published.values()
        return {one.paper_name: (one.source, one.target) for one in known if one.paper_name}

    def short_name(self, domains: str) -> str:
        """One or several domains, as a table calls them; of many, how many there are."""
        names = domains.split("+")
        if len(names) > _NAMED:
            return f"{len(names)} domains"
        return " + ".join(self.short_names.get(name, name) for name in names)


def split_domains(pairs: Sequence[Pair]) -> list[str]:
    """All domains of some scenarios, each once."""
    return list(dict.fromkeys(name for pair in pairs for each in pair for name in each.split("+")))


def table_files(folder: str) -> Callable[[Path, Sequence[Pair]], dict[str, Path]]:
    """The `files` of a data set that lies in a folder of tables.

    Args:
        folder: Its name, within the root.
    """

    def files(root: Path, pairs: Sequence[Pair]) -> dict[str, Path]:
        found = sorted((root / folder).glob("*.csv.gz"))
        if not found:
            raise FileNotFoundError(
                f"There are no .csv.gz files in {root / folder}; check --root {root}."
            )
        return {path.name: path for path in found}

    return files


def counts(
    users: int, source: int, target: int, source_items: int, target_items: int
) -> dict[str, int]:
    """Published statistics of the common users: behaviours and items before any cut by time."""
    return {
        "users": users,
        "source": source,
        "target": target,
        "source_items": source_items,
        "target_items": target_items,
    }
