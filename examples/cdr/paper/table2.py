"""Table 2: ours without each branch of the behavioral perceptron."""

from __future__ import annotations

from cdr.paper.printed import SCENARIOS, auc_and_improvement
from cdr.paper.study import Study, variants
from cdr.paper.table_document import table_document

STUDY = Study(
    name="table2",
    title="What the two branches of the behavioral perceptron do",
    about="ours without each branch of the behavioral perceptron",
    methods=variants("S", "ours", "no-global", "no-user"),
    models=("minet", "conet"),
    document=table_document,
    reference="ours",
    hidden=("S",),
    baselines=(),
    printed=auc_and_improvement(
        SCENARIOS,
        """
minet ours 0.7639 3.21 0.7145 6.24 0.6678 5.87 0.6883 10.38 0.6020 11.72 0.6212 4.39 0.6099 9.79
minet no-global 0.7632 2.93 0.7110 4.51 0.6645 3.79 0.6843 8.03 0.6016 11.28 0.6194 2.84 0.6060 5.89
minet no-user 0.7618 2.39 0.7050 1.54 0.6657 4.54 0.6792 5.04 0.5910 -0.33 0.6216 4.74 0.6048 4.70
conet ours 0.7721 3.34 0.7274 5.03 0.6864 6.03 0.7048 6.78 0.6176 17.72 0.6558 6.35 0.6308 13.54
conet no-global 0.7715 3.11 0.7265 4.62 0.6827 3.92 0.7032 5.94 0.6172 17.32 0.6524 4.03 0.6266 9.90
conet no-user 0.7692 2.24 0.7254 4.11 0.6829 4.04 0.6935 0.89 0.6176 17.72 0.6521 3.82 0.6263 9.64
""",
    ),
)
