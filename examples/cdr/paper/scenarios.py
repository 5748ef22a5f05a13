"""Which data a table is made on: from ``amazon5:Beauty:Toys_and_Games`` to what is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cdr.data import GENERATED, HOLDS, amazon
from cdr.data.manifest import PAPER_STATISTICS, PUBLISHED, SHORT_NAMES
from cdr.runs.runner import Source

_TOYS = "Toys_and_Games"
SETS: dict[str, tuple[tuple[str, str], ...]] = {
    "amazon5": (
        ("Beauty", _TOYS),
        (_TOYS, "Beauty"),
        ("Baby", _TOYS),
        ("Office_Products", _TOYS),
        ("Baby+Office_Products+Beauty", _TOYS),
    ),
    "epinions": (("3", "4"), ("3", "5"), ("others", "4")),
    "amazon": tuple(
        tuple(SHORT_NAMES[domain] for domain in name.split("-"))  # type: ignore[misc]
        for name in PAPER_STATISTICS
    ),
}
"""The scenarios that a data set's bare name stands for, as (source, target)."""

_SHORT = {full: short for short, full in SHORT_NAMES.items()} | {"Office_Products": "Office"}
_SYNTAX = (
    "give g1, g2, amazon, amazon5 or epinions, or SPEC:SOURCE:TARGET, as in "
    "amazon5:Beauty:Toys_and_Games (several sources joined with +); of recbole and of a file, "
    "only this"
)


@dataclass(frozen=True)
class Scenario:
    """One source and one target domain of a data set; both empty for generated data."""

    spec: str
    source: str = ""
    target: str = ""

    def __str__(self) -> str:
        return ":".join(part for part in (self.spec, self.source, self.target) if part)

    @property
    def generated(self) -> bool:
        """Whether it is made up, so that the truly relevant behaviours are known."""
        return self.spec in GENERATED

    @property
    def heading(self) -> str:
        """Short, for the head of a column."""
        if self.generated:
            return self.spec.upper()
        domains = f"{_short(self.source)} → {_short(self.target)}"
        return f"Epinions {domains}" if self.spec == "epinions" else domains

    @property
    def published(self) -> bool:
        """Whether its data set is one of which statistics may be known."""
        return self.spec in PUBLISHED

    @property
    def in_paper(self) -> str | None:
        """The paper's name for it, if it is one of the paper's."""
        if (self.source, self.target) not in SETS.get(self.spec, ()) or self.spec != "amazon":
            return None
        return f"{_short(self.source)}-{_short(self.target)}"

    def data(self, root: Path | None) -> Source:
        """What to load.

        Raises:
            ValueError: a data set without a folder that holds it.
        """
        if self.generated:
            return Source(self.spec, seeded=True)
        if root is None and self.spec in HOLDS:
            raise ValueError(
                f"--root is missing: --data {self} needs the folder that holds {HOLDS[self.spec]}"
            )
        given = (("root", root), ("source", self.source), ("target", self.target))
        return Source(self.spec, tuple((k, v) for k, v in given if v is not None))


def parse(names: Sequence[str]) -> list[Scenario]:
    """The scenarios that names stand for, each once, in the order given.

    Raises:
        ValueError: a name of another form.
    """
    found: dict[Scenario, None] = {}
    for name in names:
        if name in GENERATED:
            found[Scenario(name)] = None
            continue
        if name in SETS:
            found.update(dict.fromkeys(Scenario(name, *domains) for domains in SETS[name]))
            continue
        # From the right: the path of a file may hold colons.
        parts = name.rsplit(":", 2)
        if len(parts) < 3 or not all(parts):
            raise ValueError(f"--data {name}: {_SYNTAX}")
        spec, source, target = parts
        if spec not in HOLDS and not spec.endswith((".csv", ".csv.gz", ".parquet")):
            raise ValueError(f"--data {name}: there is no data set {spec!r}; {_SYNTAX}")
        if spec == "amazon":
            source, target = ("+".join(amazon.domains_of(side)) for side in (source, target))
        found[Scenario(spec, source, target)] = None
    if not found:
        raise ValueError(f"--data: name at least one; {_SYNTAX}")
    return list(found)


# What a table or figure is made on if nothing is named: where the paper chose, its choice, and a
# few of the others.
_CHOSEN: dict[str, dict[str, tuple[str, ...]]] = {
    "table3": {
        "amazon": (
            "amazon:Books:CDs_and_Vinyl",
            "amazon:CDs_and_Vinyl:Clothing_Shoes_and_Jewelry",
            "amazon:Electronics:Clothing_Shoes_and_Jewelry",
        ),
    },
    "table5": {"amazon": ("amazon:Books:CDs_and_Vinyl", f"amazon:Books:{_TOYS}")},
    "figure3": {
        "amazon": ("amazon:Books:Movies_and_TV", f"amazon:Books:{_TOYS}"),
        "amazon5": (f"amazon5:Beauty:{_TOYS}",),
        "epinions": ("epinions:others:4",),
    },
    "figure4": {
        "amazon": ("amazon:Books:Movies_and_TV", f"amazon:Books:{_TOYS}"),
        "amazon5": (f"amazon5:Beauty:{_TOYS}",),
        "epinions": ("epinions:3:4",),
    },
    "figure5": {
        "amazon": (f"amazon:Books:{_TOYS}", "amazon:Books:Electronics"),
        "amazon5": (f"amazon5:Beauty:{_TOYS}",),
        "epinions": ("epinions:3:4",),
    },
    "figure6": {
        "amazon": (f"amazon:Books:{_TOYS}",),
        "amazon5": (f"amazon5:Beauty:{_TOYS}",),
        "epinions": ("epinions:others:4",),
    },
    "evidence": {
        "amazon": (f"amazon:Books:{_TOYS}",),
        "amazon5": (f"amazon5:Beauty:{_TOYS}",),
        "epinions": ("epinions:3:4",),
    },
}


def default_scenarios(command: str, root: Path | None) -> tuple[str, ...]:
    """The names of what a command is run on if none is given.

    Raises:
        ValueError: the folder holds no data set that is known.
    """
    if command == "generated":
        return GENERATED
    if root is None:
        return GENERATED[:1]
    found = [name for name in ("amazon5", "epinions") if (root / name).is_dir()]
    if amazon.holds_any(root):
        found.append("amazon")
    if not found:
        raise ValueError(
            f"--root {root}: there is no folder amazon5 or epinions in it, nor files of Amazon "
            "(reviews_X_5.json.gz); give the folder that holds them, or --data"
        )
    chosen = tuple(n for name in found for n in _CHOSEN.get(command, {}).get(name, (name,)))
    return tuple(str(scenario) for scenario in _complete(parse(chosen), root))


def require(scenarios: Sequence[Scenario], root: Path | None) -> None:
    """See that the many files of Amazon are there, before anything is read.

    Raises:
        FileNotFoundError: naming all that are missing.
    """
    pairs = {str(s): (s.source, s.target) for s in scenarios if s.spec == "amazon"}
    if root is not None and pairs:
        amazon.require(root, pairs, "--data")


def _complete(scenarios: list[Scenario], root: Path) -> list[Scenario]:
    """Those whose files are there; all, for an error to name what is missing, if there are none."""
    pairs = [(s.source, s.target) for s in scenarios if s.spec == "amazon"]
    whole = amazon.complete(root, pairs)
    return [
        s for s in scenarios if s.spec != "amazon" or (s.source, s.target) in whole
    ] or scenarios


def _short(domains: str) -> str:
    return " + ".join(_SHORT.get(name, name) for name in domains.split("+"))
