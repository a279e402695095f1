"""``docs/metrics.md``, generated from the table of metrics; a test demands that it is fresh.

``python -m hil.scenario.metrics_page docs/metrics.md`` rewrites it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from hil.scenario.expect import METRICS, Metric, MetricKind, example, keys_of

_KINDS: Final[Mapping[MetricKind, tuple[str, str, str]]] = {
    "latency": (
        "Latencies",
        (
            "Quantile `stat` of a time, judged by the order statistic that bounds it at "
            "`confidence`; late shots that come together are counted as episodes."
        ),
        "`clean` (default) or `all`",
    ),
    "rate": (
        "Rates",
        (
            "Share of shots, judged by the one-sided Clopper-Pearson bound at `confidence`, "
            "widened where events come in clusters."
        ),
        "`clean` (default) or `all`",
    ),
    "slope": (
        "Slopes",
        (
            "Time per shot, least squares through batch means, judged by the t interval at "
            "`confidence`."
        ),
        "`clean` (default) or `all`",
    ),
    "load": (
        "Loads",
        (
            "Mean over the run, judged by the t interval of batch means at `confidence`; the "
            "windows of a batch may depend on one another."
        ),
        "`clean` (default) or `all`",
    ),
    "ratio": (
        "Ratios",
        (
            "Ratio of two sums over the run, judged by the t interval of a ratio of sums over 20 "
            "stretches of shots at `confidence`."
        ),
        "`clean` (default) or `all`",
    ),
    "count": (
        "Counts",
        (
            "Every event counts, warm-up and fault windows included; exact, no bound. A count that "
            "nothing counted is a RIG ERROR."
        ),
        "always `all`",
    ),
}
_HEAD: Final = """# Metrics

Generated from `hil/scenario/expect.py` by `make docs`; do not edit. What a verdict makes of a
figure and its bound stands in [verdict.md](verdict.md), the stamps T0 to T10 in [time.md](time.md).

Scope `clean` leaves out shots of the warm-up and of fault windows. All times are scenario time; a
live run at pace 1 has the wall clock as scenario time. Hops of the last block add up to
`latency.end_to_end` exactly, shot by shot; their quantiles do not. A hop that did not happen is no
sample of that hop.
"""


def page() -> str:
    """The whole page."""
    return "\n".join([_HEAD, *(_section(kind) for kind in _KINDS)])


def _section(kind: MetricKind) -> str:
    title, judged, scope = _KINDS[kind]
    rows = [metric for metric in METRICS.values() if metric.kind == kind]
    keys = ", ".join(f"`{key}`" for key in keys_of(rows[0]) if key != "metric")
    lines = [
        f"## {title}",
        "",
        judged,
        f"Keys beside `metric`: {keys}. Scope: {scope}.",
        "",
        "| metric | unit | definition | example |",
        "|---|---|---|---|",
        *(_row(metric) for metric in rows),
    ]
    return "\n".join(lines) + "\n"


def _row(metric: Metric) -> str:
    named = {"1": "per shot", "ps": "time", "ps/shot": "time per shot"}
    unit = "ratio" if metric.kind in ("load", "ratio") else named.get(metric.unit, metric.unit)
    return f"| `{metric.name}` | {unit} | {metric.what}. | `{example(metric)}` |"


def main(arguments: Sequence[str]) -> int:
    """Entry of ``python -m hil.scenario.metrics_page FILE``."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m hil.scenario.metrics_page FILE\n")
        return 2
    Path(arguments[0]).write_text(page(), encoding="utf-8")
    sys.stdout.write(f"{arguments[0]}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
