"""Numbers in the form in which tables print them."""

from __future__ import annotations


def short(value: float, sign: str = "") -> str:
    """Four decimals, without the zero in front of them."""
    return f"{value:{sign}.4f}".replace("0.", ".", 1)


def signed(value: float) -> str:
    """A difference of AUCs."""
    return short(value, "+").replace("-", "−")


def p_value(p: float | None) -> str:
    """Three decimals."""
    if p is None:
        return ""
    return "<.001" if p < 0.0005 else f"{p:.3f}"


def percent(value: float | None) -> str:
    """A difference in percent, two decimals."""
    return "" if value is None else f"{value:+.2f}%".replace("-", "−")
