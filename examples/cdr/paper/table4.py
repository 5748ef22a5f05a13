"""Table 4: statistics of the data, beside the published ones."""

from __future__ import annotations

from collections.abc import Mapping

from cdr.data import DATASETS, Check, CrossDomainData, check, source_reading
from cdr.paper.scenarios import Scenario
from cdr.paper.study import Results, Study
from cdr.report import Document, Sheet, sheet

# Short heads of the statistics, the paper's five first.
_COUNTED = {
    "users": "users",
    "source": "source behaviours",
    "target": "target behaviours",
    "source_items": "source items",
    "target_items": "target items",
    "source_train": "source trained on",
    "train": "target trained on",
    "users_without_source": "users without source",
}


def document(results: Results) -> Document:
    """The statistics of the data, beside the published ones."""
    rows: list[tuple[str, ...]] = []
    values: list[dict[str, object]] = []
    notes = []
    for scenario, source in results.sources.items():
        data = source.load(0)
        known = {one.statistic: one for one in check(data, scenario.dataset)}
        rows += _rows(scenario, data, known)
        values += _values(scenario, data, known)
        if scenario.in_paper:
            notes.append(
                f"{scenario.heading}: what the paper counts as source behaviours: "
                f"{source_reading(list(known.values()))}."
            )
    in_paper = any(scenario.in_paper for scenario in results.sources)
    notes.append(
        "Of the users found in both domains. Behaviours and items are counted before any cut by "
        "time; source trained on: after it; generated data: of seed 0."
    )
    return Document(
        results.study.title,
        (sheet(("scenario", *_COUNTED.values()), rows),),
        notes=tuple(notes),
        values=tuple(values),
        appendix=() if in_paper else (_paper_statistics(),),
    )


def _rows(
    scenario: Scenario, data: CrossDomainData, known: Mapping[str, Check]
) -> list[tuple[str, ...]]:
    """The statistics, and below them the published ones with a verdict on each."""
    rows = [(scenario.heading, *(f"{data.statistics[key]:,}" for key in _COUNTED))]
    if known:
        shown = [known.get(key) for key in _COUNTED]
        where = "in the paper" if scenario.in_paper else "as published"
        rows.append((where, *(f"{one.expected:,}" if one else "" for one in shown)))
        rows.append(("", *(one.verdict if one else "" for one in shown)))
    return rows


def _values(
    scenario: Scenario, data: CrossDomainData, known: Mapping[str, Check]
) -> list[dict[str, object]]:
    """A line of the csv file for each statistic."""
    values: list[dict[str, object]] = []
    for key, head in _COUNTED.items():
        one = known.get(key)
        line = {"scenario": str(scenario), "statistic": head, "here": data.statistics[key]}
        values.append(line | {"published": one and one.expected, "verdict": one and one.verdict})
    return values


def _paper_statistics() -> Sheet:
    """The paper's table, for reference."""
    published = [one for one in DATASETS["amazon"].published.values() if one.paper_name]
    counted = list(published[0].counts)
    rows = [(one.paper_name, *(f"{one.counts[key]:,}" for key in counted)) for one in published]
    heads = ("scenario", *(_COUNTED[key] for key in counted))
    return sheet(heads, rows, title="As the paper prints it (Table 4)")


STUDY = Study(
    name="table4",
    title="Statistics of the data",
    about="statistics of the data; nothing is trained",
    methods=(),
    models=("conet",),
    document=document,
)
