"""Numbers and settings as a report writes them."""

import math
from collections.abc import Iterable

from stagecost.text import format_indices

MISSING = "–"
MOST_RANGES = 20
# A number and its unit stay on one line.
NBSP = "\N{NO-BREAK SPACE}"


def count_text(value: float) -> str:
    """Format a whole number: 12,345."""
    return f"{value:,.0f}" if math.isfinite(value) else MISSING


def percent_text(value: float) -> str:
    """Format an accuracy: 98.61 %."""
    return f"{value:.2f}{NBSP}%" if math.isfinite(value) else MISSING


def signed_points_text(value: float) -> str:
    """Format a difference of accuracies: −0.41 points."""
    if not math.isfinite(value):
        return MISSING
    # -0.004 would read as "−0.00".
    rounded = round(value, 2) + 0.0
    sign = "+" if rounded > 0 else "−" if rounded < 0 else "±"
    return f"{sign}{abs(rounded):.2f}{NBSP}points"


def points_text(value: float) -> str:
    """Format a tolerance: 0.5 points."""
    return f"{value:g}{NBSP}point{'' if value == 1 else 's'}"


def measure_text(value: float) -> str:
    """Format a loss, a ratio or a norm: three significant digits."""
    if math.isnan(value):
        return MISSING
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return f"{value:#.3g}".rstrip(".").replace("-", "−")


def short_text(value: float) -> str:
    """Format what needs no padding, such as a learning rate: 0.05."""
    return f"{value:.3g}" if math.isfinite(value) else MISSING


def operations_text(value: float) -> str:
    """Format a number of multiply-accumulates: 4.1 M."""
    if not math.isfinite(value):
        return MISSING
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            scaled = value / size
            return f"{scaled:.{0 if scaled >= 100 else 1}f}{NBSP}{unit}"
    return f"{value:.0f}"


def share_text(after: float, before: float) -> str:
    """Format what part of `before` is left: 16 %."""
    if not (math.isfinite(after) and math.isfinite(before) and before > 0):
        return MISSING
    return f"{100 * after / before:.0f}{NBSP}%"


def duration_text(seconds: float) -> str:
    """Format a time: 2.31 ms, 4.5 s, 12 min, 2.1 h."""
    if not math.isfinite(seconds):
        return MISSING
    if seconds < 0.9995:  # which three digits would round to 1,000
        return f"{1000 * seconds:.3g}{NBSP}ms"
    if seconds < 90:
        return f"{seconds:.1f}{NBSP}s"
    minutes, hours = seconds / 60, seconds / 3600
    return f"{minutes:.0f}{NBSP}min" if minutes < 100 else f"{hours:.1f}{NBSP}h"


def ranges_text(blocks: Iterable[int]) -> str:
    """Shorten a list of indices: 0, 1, 2, 9 becomes "0–2, 9"."""
    texts = format_indices(sorted(set(blocks))).replace("-", "–").split(", ")
    return ", ".join([*texts[:MOST_RANGES], "…"] if len(texts) > MOST_RANGES else texts)


def setting_text(value: object) -> str:
    """Format the value of a setting."""
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return ", ".join(setting_text(item) for item in value)
    return str(value)
