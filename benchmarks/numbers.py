"""How values and ratios are written, in the terminal, in REPORT.md and in the pictures."""

from __future__ import annotations

import math

NEVER = "never"


def number(value: float) -> str:
    """``value`` with three significant digits, or with all digits before the point from 100 on. Infinity is what had
    not happened when the measurement ended."""
    if math.isinf(value):
        return NEVER
    if math.isnan(value):
        return "unknown"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def times(ratio: float) -> str:
    """``ratio`` with two digits behind the point, or with two significant ones below 0.1."""
    if not math.isfinite(ratio):
        return NEVER if math.isinf(ratio) else "none"
    if ratio >= 100:
        return f"{ratio:,.0f}"
    return f"{ratio:.2f}" if ratio >= 0.1 or ratio == 0 else f"{ratio:.2g}"


def percent(share: float) -> str:
    return f"{100 * share:.2g} %" if math.isfinite(share) else times(share)
