"""Numbers as people read them; every writer prints these texts, none formats on its own."""

from __future__ import annotations

import math
from typing import Final

from hil.units import format_time

NEVER: Final = "never"
"""Shown where a quantile falls on shots that were never answered."""
_TIMES: Final = (("s", 10**12), ("ms", 10**9), ("us", 10**6), ("ns", 10**3))
NONE: Final = "-"


def figure(value: float | None, unit: str) -> str:
    """A figure with its unit.

    Args:
        value: the number; ``None`` gives ``-``, infinity ``never``.
        unit: ``ps``, ``ps/shot``, ``1`` (rate) or ``count``.
    """
    if value is None:
        return NONE
    if math.isinf(value):
        return NEVER
    if unit == "ps":
        return duration(int(value))
    if unit == "ps/shot":
        return _slope(value)
    if unit == "count":
        return count(int(value))
    return rate(value)


def limit(value: float | None, unit: str) -> str:
    """A stated limit, exactly as it is compared: ``60 us``, ``1.00e-3``."""
    if value is None:
        return NONE
    if unit in {"ps", "ps/shot"}:
        exact = format_time(int(value))
        number = exact.rstrip("numps/")
        return f"{number} {exact[len(number) :]}{unit.removeprefix('ps')}"
    return figure(value, unit)


def duration(ps: int) -> str:
    """A time with four significant digits: ``14.75 us``, ``170.0 ns``, ``750 ps``.

    Rounded half up in integers; histograms resolve 2^-12, so that more digits would mislead.
    """
    size, sign = abs(ps), "-" if ps < 0 else ""
    for unit, factor in _TIMES:
        if size < factor - factor // 20_000:
            continue
        for places in (3, 2, 1, 0):
            digits = (2 * size * 10**places + factor) // (2 * factor)
            if digits < 10**4 or places == 0:
                whole, part = divmod(digits, 10**places)
                tail = f".{part:0{places}d}" if places else ""
                return f"{sign}{whole:,}{tail} {unit}"
    return f"{sign}{size} ps"


def rate(value: float) -> str:
    """A rate with three significant digits: ``0``, ``1.00e-2``, ``0.250``, ``1``."""
    if value in {0.0, 1.0}:
        return f"{value:.0f}"
    if value >= 0.1:
        return f"{value:.3f}"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def count(value: int) -> str:
    """A whole number with thousands separated: ``1,234,567``."""
    return f"{value:,}"


def interval(lower: float | None, upper: float | None, unit: str) -> str:
    """Both bounds, the unit once if it is the same: ``14.686 .. 14.762 us``."""
    low, high = figure(lower, unit), figure(upper, unit)
    if low == high:
        return low
    head, _, low_unit = low.partition(" ")
    if low_unit and high.endswith(f" {low_unit}"):
        low = head
    return f"{low} .. {high}"


def percent(confidence: float) -> str:
    """``0.95`` -> ``95 %``."""
    return f"{100 * confidence:.6g} %"


def _slope(value: float) -> str:
    """Time per shot with three significant digits."""
    if value == 0:
        return "0 ps/shot"
    size = abs(value)
    unit, factor = next((t for t in _TIMES if size >= 0.9995 * t[1]), ("ps", 1))
    scaled = value / factor
    if abs(scaled) < 1e-3:
        mantissa, exponent = f"{scaled:.2e}".split("e")
        return f"{mantissa}e{int(exponent)} {unit}/shot"
    places = max(0, 2 - math.floor(math.log10(abs(scaled) * 1.0005)))
    return f"{scaled:,.{places}f} {unit}/shot"
