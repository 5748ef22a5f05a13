"""A hypergradient against finite differences of the inner problem, solved again."""

from __future__ import annotations

from reweight.checking.check import check_hypergradient
from reweight.checking.report import CheckReport, CheckRow

__all__ = ["CheckReport", "CheckRow", "check_hypergradient"]
