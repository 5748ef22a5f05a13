"""Table 1: overall performance."""

from __future__ import annotations

from cdr.paper.printed import SCENARIOS, auc_and_improvement
from cdr.paper.study import Study, variants
from cdr.paper.table_document import table_document

STUDY = Study(
    name="table1",
    title="Overall recommendation performance",
    about="the model without source (S), without source loss (0), as it is (base), and ours",
    methods=variants("S", "0", "base", "ours"),
    models=("minet", "conet"),
    document=table_document,
    printed=auc_and_improvement(
        SCENARIOS,
        """
minet S 0.7557 0.00 0.7019 0.00 0.6585 0.00 0.6706 0.00 0.5913 0.00 0.6161 0.00 0.6001 0.00
minet 0 0.7508 -1.92 0.6995 -1.19 0.6523 -3.91 0.6658 -2.81 0.5950 4.05 0.6094 -5.77 0.5885 -11.59
minet base 0.7616 2.31 0.7080 3.02 0.6540 -2.84 0.6711 0.29 0.5876 -4.05 0.6079 -7.06 0.5966 -3.50
minet ours 0.7639* 3.21 0.7145* 6.24 0.6678* 5.87 0.6883* 10.38 0.6020* 11.72 0.6212* 4.39 0.6099* 9.79
conet S 0.7633 0.00 0.7165 0.00 0.6758 0.00 0.6918 0.00 0.5999 0.00 0.6465 0.00 0.6152 0.00
conet 0 0.7643 0.38 0.7196 1.43 0.6808 2.84 0.6927 0.47 0.6134 13.51 0.6471 0.41 0.6206 4.69
conet base 0.7693 2.28 0.7239 3.42 0.6764 0.34 0.6989 3.70 0.6110 11.11 0.6471 0.41 0.6238 7.47
conet ours 0.7721* 3.34 0.7274* 5.03 0.6864* 6.03 0.7048* 6.78 0.6176* 17.72 0.6558* 6.35 0.6308* 13.54
""",  # noqa: E501
    ),
)
