"""What a rack fit shows: the quantile picture (SVG) and the table of held-out comparisons."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from hil.rack.fit.check import Check, Statistic
from hil.units import format_ps

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.table import Table

_CURVES = (
    ("held out", "#1a1a1a", "-", 2.2),
    ("fit, recorded order", "#0a7d5a", "--", 1.8),
    ("independent draws", "#c2410c", ":", 1.8),
)
_UNITS = (("ms", 1e9), ("us", 1e6), ("ns", 1e3))
"""Units of an axis in ps, the largest first; one is used from ten of it."""
_TICKS = (0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999)


def quantile_picture(check: Check, title: str, window: int) -> str:
    """SVG: quantiles of a round and of ``window`` rounds, held out against fit and independent.

    The same check gives the same bytes.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.hashsalt": "hil", "font.size": 9, "svg.fonttype": "none"}):
        figure = Figure(figsize=(9.0, 3.9), layout="constrained")
        left, right = figure.subplots(1, 2)
        _panel(left, check, check.curves_ps, "one round")
        _panel(right, check, check.window_curves_ps, f"sum of {window} rounds in a row")
        left.legend(frameon=False, loc="upper left")
        figure.suptitle(
            f"{title}: fitted to {check.n_fit:,} rounds, judged on the next {check.n_held_out:,}",
            fontsize=10,
        )
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": "hil"})
    return out.getvalue()


def _panel(axes: Axes, check: Check, curves_ps: np.ndarray, title: str) -> None:
    """Quantiles over their level; the axis is even in the number of values above."""
    unit, unit_ps = next(
        (pair for pair in _UNITS if np.abs(curves_ps).max() >= 10 * pair[1]), _UNITS[-1]
    )
    x = -np.log10(1.0 - check.levels)
    for (name, colour, style, width), curve in zip(_CURVES, curves_ps / unit_ps, strict=True):
        axes.plot(x, curve, style, color=colour, linewidth=width, label=name)
    ticks = [q for q in _TICKS if -np.log10(1.0 - q) <= x.max() + 0.2]
    axes.set_xticks([-np.log10(1.0 - q) for q in ticks], [f"{100 * q:g}" for q in ticks])
    axes.set_xlabel("quantile, %")
    axes.set_ylabel(unit)
    axes.set_title(title, fontsize=9)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def comparison_table(title: str, statistics: Iterable[Statistic]) -> Table:
    """Rich table of comparisons."""
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for name in ("end to end", "held out", "model", "error", "allowed", "noise", ""):
        left = name in {"end to end", ""}
        table.add_column(name, justify="left" if left else "right", no_wrap=bool(name))
    for entry in statistics:
        table.add_row(*_cells(entry))
    return table


def _cells(entry: Statistic) -> tuple[str, ...]:
    if entry.unit == "ps":
        values = (format_ps(round(entry.held_out)), format_ps(round(entry.model)))
        share = [f"{100 * v:.2f}%" for v in (entry.error, entry.tolerance, entry.noise)]
    else:
        values = (f"{entry.held_out:.3f}", f"{entry.model:.3f}")
        share = [f"{v:.3f}" for v in (entry.error, entry.tolerance, entry.noise)]
    if not share[0].startswith("-"):
        share[0] = f"+{share[0]}"
    noise = f"±{share[2]}" if math.isfinite(entry.noise) else "unknown"
    return (entry.name, *values, share[0], share[1], noise, str(entry.state))
