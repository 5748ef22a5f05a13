"""Results in numbers, tables, plots and pages."""

from __future__ import annotations

from cdr.report.baselines import (
    ABOUT_ENSEMBLES,
    ABOUT_LENIENCY,
    ENSEMBLE,
    ENSEMBLED,
    LENIENCY,
    between_ensembles,
    ensembled,
    leniency,
)
from cdr.report.comparison import Comparison, compare, paired_p_value
from cdr.report.conclusion import conclusions
from cdr.report.document import Document, Sheet, sheet
from cdr.report.learned import Learned
from cdr.report.page import Curves, learning_curves, write_page
from cdr.report.parts import Parts, try_imports, written_in_parts
from cdr.report.plots import Picture
from cdr.report.rounded import p_value, percent, short, signed
from cdr.report.run_report import Report, report
from cdr.report.summary import (
    RELA_IMPR,
    SE,
    SPREAD,
    Seeds,
    Summary,
    Trained,
    begun_again,
    detectable,
    mean_auc,
    meanings,
    nothing_learned,
    paired,
    recovered,
    summarize,
    weight_aucs,
)

__all__ = [
    "ABOUT_ENSEMBLES",
    "ABOUT_LENIENCY",
    "ENSEMBLE",
    "ENSEMBLED",
    "LENIENCY",
    "between_ensembles",
    "ensembled",
    "leniency",
    "Comparison",
    "Curves",
    "Document",
    "Learned",
    "Parts",
    "Picture",
    "RELA_IMPR",
    "Report",
    "SE",
    "SPREAD",
    "Seeds",
    "Sheet",
    "Summary",
    "Trained",
    "compare",
    "conclusions",
    "detectable",
    "learning_curves",
    "mean_auc",
    "begun_again",
    "meanings",
    "nothing_learned",
    "p_value",
    "paired",
    "paired_p_value",
    "percent",
    "recovered",
    "report",
    "sheet",
    "short",
    "signed",
    "summarize",
    "try_imports",
    "weight_aucs",
    "write_page",
    "written_in_parts",
]
