"""Which data a table is made on: from ``amazon5:Beauty:Toys_and_Games`` to what is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cdr.data import (
    DATASETS,
    LAST_ONE,
    LIMITS,
    Dataset,
    Harm,
    Limits,
    Protocol,
    complete,
    find_dataset,
    require,
)
from cdr.runs import Source

GENERATED = tuple(name for name, dataset in DATASETS.items() if dataset.generated)
_BARE = [name for name, dataset in DATASETS.items() if dataset.generated or dataset.scenarios]
_SYNTAX = (
    f"give {', '.join(_BARE[:-1])} or {_BARE[-1]}, or SPEC:SOURCE:TARGET, as in "
    "amazon5:Beauty:Toys_and_Games (several sources joined with +); of recbole and of a file, "
    "only this"
)


@dataclass(frozen=True)
class Scenario:
    """One source and one target domain of a data set; both empty for generated data.

    `harm` is what is done to the source behaviours; None: they are as they are.
    """

    spec: str
    source: str = ""
    target: str = ""
    harm: Harm | None = None

    def __str__(self) -> str:
        name = ":".join(part for part in (self.spec, self.source, self.target) if part)
        return name + self._after

    @property
    def _after(self) -> str:
        return "" if self.harm is None else f", {self.harm}"

    @property
    def dataset(self) -> Dataset:
        """Its data set."""
        return find_dataset(self.spec)

    @property
    def generated(self) -> bool:
        """Whether it is generated, so that the truly relevant behaviours are known."""
        return self.dataset.generated

    @property
    def flagged(self) -> bool:
        """Whether the truly relevant behaviours are known: of generated data, and after a harm."""
        return self.generated or self.harm is not None

    @property
    def heading(self) -> str:
        """Short, for the head of a column."""
        if self.generated:
            return self.spec.upper() + self._after
        short = self.dataset.short_name
        return (
            f"{self.dataset.prefix} {short(self.source)} → {short(self.target)}".strip()
            + self._after
        )

    @property
    def in_paper(self) -> str | None:
        """The paper's name for it, if it is one of the paper's."""
        known = self.dataset.paper_scenarios if self.harm is None else {}
        pair = (self.source, self.target)
        return next((name for name, domains in known.items() if domains == pair), None)

    def data(
        self, root: Path | None, protocol: Protocol = LAST_ONE, limits: Limits = LIMITS
    ) -> Source:
        """What to load.

        Args:
            root: The folder that holds the data sets.
            protocol: Which target behaviours are trained on and tested on.
            limits: Of the files.

        Raises:
            ValueError: A data set without a folder that holds it.
        """
        given: dict[str, Any] = {"harm": self.harm}
        if protocol != LAST_ONE:  # what was trained before there were others has no such argument
            given["protocol"] = protocol
        if not self.generated:
            given |= {"root": root, "source": self.source, "target": self.target}
            given["limits"] = None if limits == LIMITS else limits
        options = tuple((name, value) for name, value in given.items() if value is not None)
        if root is None and not self.generated and self.dataset.holds:
            raise ValueError(
                f"--root is missing: --data {self} needs the folder that holds {self.dataset.holds}"
            )
        return Source(self.spec, options, seeded=self.generated)


def parse(names: Sequence[str]) -> list[Scenario]:
    """The scenarios that names stand for, each once, in the order given.

    Raises:
        ValueError: A name of another form.
    """
    found: dict[Scenario, None] = {}
    for name in names:
        dataset = DATASETS.get(name)
        if dataset is not None and dataset.generated:
            found[Scenario(name)] = None
        elif dataset is not None and dataset.scenarios:
            found.update(dict.fromkeys(Scenario(name, *pair) for pair in dataset.scenarios))
        else:
            found[_parse_one(name)] = None
    if not found:
        raise ValueError(f"--data: name at least one; {_SYNTAX}")
    return list(found)


def _parse_one(name: str) -> Scenario:
    """A scenario as SPEC:SOURCE:TARGET."""
    # From the right: the path of a file may hold colons.
    parts = name.rsplit(":", 2)
    if len(parts) < 3 or not all(parts):
        raise ValueError(f"--data {name}: {_SYNTAX}")
    spec, source, target = parts
    try:
        dataset = find_dataset(spec)
    except ValueError:
        dataset = None
    if dataset is None or dataset.generated:
        raise ValueError(f"--data {name}: there is no data set {spec!r}; {_SYNTAX}")
    source, target = (
        "+".join(dict.fromkeys(map(dataset.full_name, side.split("+"))))
        for side in (source, target)
    )
    return Scenario(spec, source, target)


def default_scenarios(root: Path | None, chosen: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """The names of the scenarios that a command is run on if none is given.

    Args:
        root: The folder that holds the data sets.
        chosen: By data set, the scenarios to take; all of a data set that is missing here.

    Raises:
        ValueError: The folder holds no data set that is known.
    """
    if root is None:
        return GENERATED[:1]
    found = [dataset for dataset in DATASETS.values() if dataset.is_in(root)]
    if not found:
        known = "; ".join(f"{d.name}: {d.holds}" for d in DATASETS.values() if d.scenarios)
        raise ValueError(
            f"--root {root}: it holds no data set that is known ({known}); give the folder that "
            "holds one, or --data"
        )
    names = [name for one in found for name in chosen.get(one.name, (one.name,))]
    return tuple(str(scenario) for scenario in _complete(parse(names), root))


def require_files(scenarios: Sequence[Scenario], root: Path | None) -> None:
    """Check that all files are there, before anything is read.

    Args:
        scenarios: Of any data sets.
        root: The folder that holds them.

    Raises:
        FileNotFoundError: Naming all files of a data set that are missing.
    """
    by_spec: dict[str, dict[str, tuple[str, str]]] = {}
    for one in scenarios:
        by_spec.setdefault(one.spec, {})[str(one)] = (one.source, one.target)
    for spec, pairs in by_spec.items():
        require(find_dataset(spec), root or Path("."), pairs, "--data")


def _complete(scenarios: list[Scenario], root: Path) -> list[Scenario]:
    """Those whose files are there; all, for an error to name what is missing, if there are none."""
    return [
        one for one in scenarios if complete(one.dataset, root, [(one.source, one.target)])
    ] or scenarios
