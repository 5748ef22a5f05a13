"""Data whose relevant behaviours are known: how much of the oracle's gain is recovered."""

from __future__ import annotations

from dataclasses import replace

from cdr.paper.baselines import about_untrained, untrained
from cdr.paper.result_table import assemble, oracle_notes
from cdr.paper.study import Results, Study, variants
from cdr.paper.table_document import document_of
from cdr.report import Document


def document(results: Results) -> Document:
    """The table, and the shares of the oracle's gain that learned weights recover."""
    more = untrained(results)
    table = assemble(results.study, results.runs, more)
    shown = document_of(table, results.study)
    return replace(shown, notes=(*oracle_notes(table), *shown.notes, *about_untrained(more)))


STUDY = Study(
    name="generated",
    title="Data whose relevant behaviours are known",
    about="what is learned where the truth is known",
    methods=variants("S", "0", "base", "ours", "search", "retrain", "oracle"),
    models=("conet",),
    document=document,
    seeds=6,
    in_paper=False,
    generated=True,
    hidden=("search",),
)
