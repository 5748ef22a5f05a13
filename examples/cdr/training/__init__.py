"""Options, variants and the training of one recommendation model."""

from __future__ import annotations

from cdr.training.chance import COLLAPSED, MEANING, RESTARTED, counted, in_a_cell, remark, warning
from cdr.training.ensemble import ensemble
from cdr.training.evaluation import NUM_SOURCE, Scores, score
from cdr.training.graphs import CapturedStep
from cdr.training.learner import Learner
from cdr.training.leniency import Leniency, fit_leniency
from cdr.training.loop import Training
from cdr.training.metrics import (
    WEIGHT_AUC,
    auc,
    auc_contributions,
    grouped_auc,
    improvement_over,
    log_loss,
    relative_improvement,
)
from cdr.training.optimizers import LazyAdam
from cdr.training.options import (
    HOLDS_OUT,
    InnerOptions,
    Options,
    OuterOptions,
    PerceptronOptions,
    SearchOptions,
)
from cdr.training.pairs import Fold, pair_sampler
from cdr.training.presets import PresetName, preset
from cdr.training.procedure import CROSSFIT_EDITION, WITH_WEIGHTS, train
from cdr.training.result import Result
from cdr.training.same_users import SameUsers
from cdr.training.saves import Saves
from cdr.training.side_by_side import train_side_by_side
from cdr.training.variants import VARIANTS, Plan, check_variants, plan, variant_label

__all__ = [
    "COLLAPSED",
    "CROSSFIT_EDITION",
    "CapturedStep",
    "HOLDS_OUT",
    "Fold",
    "InnerOptions",
    "LazyAdam",
    "Learner",
    "Leniency",
    "MEANING",
    "NUM_SOURCE",
    "Options",
    "OuterOptions",
    "PerceptronOptions",
    "Plan",
    "PresetName",
    "RESTARTED",
    "Result",
    "SameUsers",
    "Saves",
    "Scores",
    "SearchOptions",
    "Training",
    "VARIANTS",
    "WEIGHT_AUC",
    "WITH_WEIGHTS",
    "auc",
    "auc_contributions",
    "check_variants",
    "counted",
    "ensemble",
    "fit_leniency",
    "grouped_auc",
    "in_a_cell",
    "improvement_over",
    "log_loss",
    "pair_sampler",
    "plan",
    "preset",
    "remark",
    "relative_improvement",
    "score",
    "train",
    "train_side_by_side",
    "variant_label",
    "warning",
]
