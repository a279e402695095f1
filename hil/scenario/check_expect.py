"""E601: expectations that could never PASS, whatever happens, because the run is too short."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from hil.scenario.expect import Expectation
from hil.scenario.model import RunSpec
from hil.scenario.problems import Problem
from hil.scenario.text import Document
from hil.units import format_time


@dataclass(frozen=True, slots=True)
class _Need:
    shots: int
    limit: str
    why: str


def least_shots_rate_max(limit: float, confidence: float) -> int:
    """Least n for which zero events prove a rate <= ``limit``: 1 - (1-C)^(1/n) <= limit."""
    if limit >= 1:
        return 1
    n = max(1, math.ceil(math.log1p(-confidence) / math.log1p(-limit)) - 1)
    while -math.expm1(math.log1p(-confidence) / n) > limit:
        n += 1
    return n


def least_shots_rate_min(limit: float, confidence: float) -> int:
    """Least n for which n events in n shots prove a rate >= ``limit`` < 1: (1-C)^(1/n) >= limit."""
    return max(1, math.ceil(math.log1p(-confidence) / math.log(limit)))


def least_shots_quantile_max(quantile: float, confidence: float) -> int:
    """Least n that has an upper order-statistic bound of the quantile: 1 - q^n >= C."""
    n = max(1, math.ceil(math.log1p(-confidence) / math.log(quantile)) - 1)
    while -math.expm1(n * math.log(quantile)) < confidence:
        n += 1
    return n


def least_shots_quantile_min(quantile: float, confidence: float) -> int:
    """Least n that has a lower order-statistic bound of the quantile: 1 - (1-q)^n >= C."""
    return least_shots_quantile_max(1.0 - quantile, confidence)


def _needs(expectation: Expectation) -> Iterator[_Need]:
    confidence = expectation.confidence
    if confidence is None:
        return
    kind, top, low = expectation.kind, expectation.max, expectation.min
    if kind == "rate":
        if top is not None:
            need = least_shots_rate_max(float(top), confidence)
            why = "even zero failures leave the upper bound above max"
            yield _Need(need, f"max {top:g}", why)
        if low is not None:
            need = least_shots_rate_min(float(low), confidence)
            yield _Need(need, f"min {low:g}", "even all events leave the lower bound below min")
    if kind == "latency":
        q = float(expectation.quantile)
        why = f"too few shots for a bound of {expectation.stat}"
        if top is not None:
            need = least_shots_quantile_max(q, confidence)
            yield _Need(need, f"{expectation.stat} max {format_time(int(top))}", why)
        if low is not None:
            need = least_shots_quantile_min(q, confidence)
            yield _Need(need, f"{expectation.stat} min {format_time(int(low))}", why)


def check_expectations(
    expect: Mapping[str, Expectation], run: RunSpec, document: Document
) -> Iterator[Problem]:
    """Refuse limits that the shots of the run cannot prove even in the best case."""
    for name, expectation in expect.items():
        judged = run.judged_shots if expectation.scope == "clean" else run.shots
        skipped = run.shots - judged
        for need in _needs(expectation):
            if judged >= need.shots:
                continue
            path = ("expect", name, "min" if "min" in need.limit else "max")
            behind = f", {skipped} of {run.shots} are warm-up" if skipped else ""
            yield document.problem(
                "E601",
                path,
                f"cannot PASS: {need.why}",
                got=f"{judged} judged shots{behind}",
                allowed=f">= {need.shots} shots for {need.limit} "
                f"at confidence {expectation.confidence:g}",
                fix=f"write run.shots: {need.shots + skipped}",
            )
