"""Inline SVG of the hop latencies: the way of a median shot, and the spread of every hop.

Plain shapes with CSS classes (colours come from the page, light and dark), integer coordinates,
no script, no external reference; the same rows give the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import Final

from hil.report.document import Figure, HopRow

WIDTH: Final = 960
_LABEL: Final = 104
_RIGHT: Final = 92
_ROW: Final = 26
_TOP: Final = 34
_PLOT: Final = WIDTH - _LABEL - _RIGHT
_DECADES: Final = ((12, "s"), (9, "ms"), (6, "us"), (3, "ns"), (0, "ps"))


def waterfall(hops: Sequence[HopRow]) -> str:
    """Bars of the median hop times end to end, linear; p99 as a thin extension.

    The picture of a typical shot only: quantiles of hops do not add up to those of the sum.
    """
    starts, total = [], 0.0
    for hop in hops:
        starts.append(total)
        total += _median(hop)
    reach = max(
        [total, *(start + _value(hop, "p99") for start, hop in zip(starts, hops, strict=True))]
    )
    scale = _PLOT / reach if reach > 0 else 0.0
    parts = _linear_axis(reach, len(hops))
    for index, (start, hop) in enumerate(zip(starts, hops, strict=True)):
        y = _TOP + index * _ROW
        x, median = _LABEL + start * scale, _median(hop) * scale
        tail = max(0.0, (_value(hop, "p99") - _median(hop)) * scale)
        parts.append(_row_label(hop.name, y))
        parts.append(_rect("tail", x + median, y + 10, tail, 6))
        parts.append(_rect(f"hop h{index}", x, y + 4, max(median, 1.5), 18))
        parts.append(_text("value", WIDTH - 4, y + 17, hop.quantiles[0].value.text))
    return _svg("Median time of each hop, one after the other", parts, len(hops))


def spread(hops: Sequence[HopRow], whole: HopRow | None, deadline: Figure) -> str:
    """Logarithmic strip per hop: p50, p99, p99.9 and maximum; the deadline for the whole way."""
    rows = [*hops, *([whole] if whole is not None else [])]
    values = [v for row in rows for v in _marks(row).values() if v > 0]
    if deadline.value:
        values.append(deadline.value)
    if not values:
        return ""
    low = math.floor(math.log10(min(values)))
    high = max(low + 1, math.ceil(math.log10(max(values)) + 1e-9))

    def at(value: float) -> float:
        place = (math.log10(value) - low) / (high - low) if value > 0 else 0.0
        return _LABEL + max(0.0, place) * _PLOT

    parts = _log_axis(low, high, len(rows))
    for index, row in enumerate(rows):
        y = _TOP + index * _ROW
        parts.append(_row_label(row.name, y))
        parts += _strip(row, at, y, index if row is not whole else len(hops))
        parts.append(_text("value", WIDTH - 4, y + 17, row.maximum.text))
    if deadline.value and whole is not None:
        x, y = at(deadline.value), _TOP + (len(rows) - 1) * _ROW
        parts.append(f'<path class="deadline" d="M{_n(x)} {y - 2}v{_ROW + 4}"/>')
        anchor = "deadline-text end" if x > WIDTH - 140 else "deadline-text"
        shift = -6 if x > WIDTH - 140 else 6
        parts.append(_text(anchor, x + shift, y + _ROW + 12, f"deadline {deadline.text}"))
    return _svg("Percentiles of each hop, logarithmic", parts, len(rows), extra=20)


def _strip(row: HopRow, at: Callable[[float], float], y: int, index: int) -> list[str]:
    marks = _marks(row)
    colour = f"h{index}"
    middle = y + 13
    points = {name: at(value) for name, value in marks.items()}
    left, right = points["p50"], points["max"]
    out = [f'<path class="range {colour}" d="M{_n(left)} {middle}H{_n(right)}"/>']
    out.append(_rect(f"body {colour}", left, middle - 4, points["p99"] - left, 8))
    out.append(f'<path class="tick {colour}" d="M{_n(points["p99.9"])} {middle - 7}v14"/>')
    out.append(f'<circle class="dot {colour}" cx="{_n(left)}" cy="{middle}" r="5"/>')
    out.append(f'<circle class="ring {colour}" cx="{_n(right)}" cy="{middle}" r="4"/>')
    return out


def _marks(row: HopRow) -> dict[str, float]:
    """p50, p99, p99.9 and maximum in ps; unanswered quantiles end at the maximum."""
    top = row.maximum.value or 0.0
    marks = {cell.stat: cell.value.value for cell in row.quantiles}
    out = {
        name: top if value is None or math.isinf(value) else float(value)
        for name, value in marks.items()
    }
    out["max"] = float(top)
    return out


def _median(hop: HopRow) -> float:
    return _value(hop, "p50")


def _value(hop: HopRow, stat: str) -> float:
    return _marks(hop).get(stat, 0.0)


def _linear_axis(reach: float, rows: int) -> list[str]:
    if reach <= 0:
        return []
    step = 10 ** math.floor(math.log10(reach))
    while reach / step > 8:
        step *= 2
    while reach / step < 4:
        step /= 2
    scale = _PLOT / reach
    return [
        _grid(_LABEL + k * step * scale, _time(k * step), rows)
        for k in range(int(reach / step) + 1)
    ]


def _log_axis(low: int, high: int, rows: int) -> list[str]:
    width = _PLOT / (high - low)
    return [
        _grid(_LABEL + k * width, _time(10.0 ** (low + k)), rows) for k in range(high - low + 1)
    ]


def _grid(x: float, words: str, rows: int) -> str:
    line = f'<path class="grid" d="M{_n(x)} {_TOP - 6}v{rows * _ROW + 6}"/>'
    return line + _text("axis", x, _TOP - 14, words)


def _time(ps: float) -> str:
    for power, unit in _DECADES:
        if ps >= 10**power * 0.9999:
            return f"{ps / 10**power:g} {unit}"
    return "0" if ps == 0 else f"{ps:g} ps"


def _row_label(name: str, y: int) -> str:
    return _text("label", _LABEL - 12, y + 17, name.replace("_", " "))


def _rect(name: str, x: float, y: float, width: float, height: float) -> str:
    return (
        f'<rect class="{name}" x="{_n(x)}" y="{_n(y)}" width="{_n(max(0.0, width))}" '
        f'height="{_n(height)}" rx="2"/>'
    )


def _text(name: str, x: float, y: float, words: str) -> str:
    return f'<text class="{name}" x="{_n(x)}" y="{_n(y)}">{escape(words)}</text>'


def _svg(title: str, parts: Sequence[str], rows: int, extra: int = 6) -> str:
    height = _TOP + rows * _ROW + extra
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )


def _n(value: float) -> str:
    """Coordinate with at most one decimal."""
    return f"{value:.1f}".removesuffix(".0")
