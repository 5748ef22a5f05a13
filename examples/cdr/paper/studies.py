"""All tables and figures, by command. To add one, import its module and add its object."""

from __future__ import annotations

from cdr.paper import (
    behaviors,
    evidence,
    figure3,
    figure4,
    figure5,
    figure6,
    generated,
    table1,
    table2,
    table3,
    table4,
    table5,
)
from cdr.paper.study import Study

STUDIES: dict[str, Study] = {
    study.name: study
    for study in (
        table1.STUDY,
        table2.STUDY,
        table3.STUDY,
        table4.STUDY,
        table5.STUDY,
        figure3.STUDY,
        figure4.STUDY,
        figure5.STUDY,
        figure6.STUDY,
        generated.STUDY,
        evidence.STUDY,
        behaviors.STUDY,
    )
}
