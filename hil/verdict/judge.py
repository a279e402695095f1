"""Expectations against measured figures: PASS, FAIL, INCONCLUSIVE, RIG ERROR or SKIP.

A limit ``max`` is met if the upper bound lies on or below it and broken if the lower bound lies
above it (``min`` likewise, reversed); otherwise the run has too few shots to tell. What was not
measured is a RIG ERROR. One look per run: bounds are at the stated confidence.
Rules with their sources: ``docs/verdict.md``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from hil.scenario.expect import METRICS, Expectation
from hil.verdict import needed, stats
from hil.verdict.measured import Measured, NotMeasuredError
from hil.verdict.metrics import Metrics
from hil.verdict.sender import SenderLateness

COUNT_CONFIDENCE: Final = 0.95
"""Confidence of the bound that is printed with a count of zero."""

SUBSTITUTED: Final = "decoder.backend_mismatch"
"""Metric that no run passes with: answers by something else than was asked for."""

ON_THE_WALL: Final = frozenset(
    ("deadline.miss_rate", "decoder.fallback_rate", "decoder.unanswered_rate")
)
"""Rates that depend on time, as every latency and slope does."""


class Verdict(StrEnum):
    """Outcome of an expectation or of a run."""

    PASS = "PASS"  # noqa: S105 - a verdict, not a password
    FAIL = "FAIL"
    INCONCLUSIVE = "INCONCLUSIVE"
    RIG_ERROR = "RIG ERROR"
    SKIP = "SKIP"


_WORST_FIRST: Final = (Verdict.RIG_ERROR, Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.PASS)
_EXIT_CODES: Final = {
    Verdict.PASS: 0,
    Verdict.FAIL: 1,
    Verdict.RIG_ERROR: 3,
    Verdict.INCONCLUSIVE: 4,
    Verdict.SKIP: 4,
}


@dataclass(frozen=True, slots=True)
class Judgement:
    """One expectation, judged.

    Attributes:
        id: name of the expectation.
        metric: what was judged.
        stat: ``p99.9`` ... for latencies, else empty.
        scope: ``clean`` or ``all``.
        verdict: the outcome.
        measured: point estimate, ``None`` if not measured; ``inf`` = an unanswered shot.
        lower: lower bound, ``None`` if there is none.
        upper: upper bound, ``None`` if there is none; ``inf`` = an unanswered shot.
        limit_max, limit_min, equals: the limits that were stated.
        unit: ``ps``, ``1``, ``ps/shot`` or ``count``.
        n: samples.
        confidence: of each bound.
        reason: one sentence for people.
        shots_needed: further shots that would probably decide, if inconclusive and foreseeable.
        marginal: value beyond which a PASS is flagged.
        marginal_hit: whether this PASS is.
        method: how the bounds were found.
        label: which time the figure is in, or what it rests on.
        events: events behind a rate or count.
        episodes: clusters of events, 0 if unknown.
    """

    id: str
    metric: str
    stat: str
    scope: str
    verdict: Verdict
    reason: str
    measured: float | None = None
    lower: float | None = None
    upper: float | None = None
    limit_max: float | None = None
    limit_min: float | None = None
    equals: int | None = None
    unit: str = "1"
    n: int = 0
    confidence: float = 1.0
    shots_needed: int | None = None
    marginal: float | None = None
    marginal_hit: bool = False
    method: str = ""
    label: str = ""
    events: int | None = None
    episodes: int = 0

    @property
    def limit(self) -> float | None:
        """The limit that is shown first: equals, max or min."""
        for value in (self.equals, self.limit_max, self.limit_min):
            if value is not None:
                return value
        return None


def judge(
    expect: Mapping[str, Expectation],
    metrics: Metrics,
    *,
    rig_errors: Sequence[str] = (),
    alarms: Mapping[str, int] | None = None,
    sender: SenderLateness | None = None,
) -> list[Judgement]:
    """Judge every expectation, in order of the scenario.

    Answers by another decoder, backend or precision than was asked for are a FAIL even where no
    expectation counts them.

    Args:
        expect: the scenario's expectations by id.
        metrics: what the run measured.
        rig_errors: what went wrong with the rig itself; each one is a RIG ERROR of its own.
        alarms: detectors that fired, by name, in a run without injected faults: any event is a
            FAIL. ``None``: the run had faults, or nothing was watched; no such line is made.
        sender: how late the frames of a live run left. If it did not hold the cadence, what is
            judged on the wall clock is INCONCLUSIVE: it says nothing of the system.
    """
    out = [_judge_one(name, expectation, metrics) for name, expectation in expect.items()]
    if sender is not None and not sender.held and metrics.on_the_wall:
        out = [_excused(judgement, sender) for judgement in out]
    watched = SUBSTITUTED in {spec.metric for spec in expect.values()}
    if not watched and metrics.counts.get(SUBSTITUTED):
        out.append(_judge_one("no-substitute", Expectation(metric=SUBSTITUTED, equals=0), metrics))
    if alarms is not None:
        out.append(_judge_alarms(alarms, metrics.shots()))
    out += [
        Judgement(f"rig-{number}", "rig", "", "all", Verdict.RIG_ERROR, text)
        for number, text in enumerate(rig_errors, start=1)
    ]
    return out


def skipped(expect: Mapping[str, Expectation], reason: str) -> list[Judgement]:
    """Every expectation as SKIP: nothing ran."""
    return [_blank(name, spec, Verdict.SKIP, reason) for name, spec in expect.items()]


def run_verdict(judgements: Iterable[Judgement]) -> Verdict:
    """The worst verdict; SKIP if nothing was judged (an empty list never passes)."""
    seen = {judgement.verdict for judgement in judgements}
    return next((verdict for verdict in _WORST_FIRST if verdict in seen), Verdict.SKIP)


def exit_code(verdict: Verdict) -> int:
    """PASS 0, FAIL 1, RIG ERROR 3, INCONCLUSIVE and SKIP 4."""
    return _EXIT_CODES[verdict]


def limits_of(expect: Mapping[str, Expectation]) -> dict[str, tuple[int, ...]]:
    """Latency limits to watch during the run, by metric: argument ``watch`` of `Metrics`."""
    out: dict[str, tuple[int, ...]] = {}
    for spec in expect.values():
        if spec.kind == "latency" and spec.max is not None:
            out[spec.metric] = (*out.get(spec.metric, ()), int(spec.max))
    return out


def _judge_one(name: str, spec: Expectation, metrics: Metrics) -> Judgement:
    confidence = spec.confidence if spec.confidence is not None else COUNT_CONFIDENCE
    scope = "all" if spec.kind == "count" else spec.scope
    try:
        measured = metrics.measure(spec.metric, spec.stat or "", confidence, scope)
        if spec.kind == "count":
            return _judge_count(name, spec, measured)
        return _judge_bounds(name, spec, measured, metrics)
    except NotMeasuredError as error:
        return _blank(name, spec, Verdict.RIG_ERROR, f"not measured: {error.what}{_got(error)}")


def _excused(found: Judgement, sender: SenderLateness) -> Judgement:
    """The judgement, but that a load which was not the intended one proves nothing about time."""
    timed = found.metric in ON_THE_WALL or METRICS[found.metric].kind in {"latency", "slope"}
    if not timed or found.verdict not in {Verdict.PASS, Verdict.FAIL}:
        return found
    why = f"the sender did not hold the cadence: {sender.words()}; else {found.verdict.value}"
    return replace(found, verdict=Verdict.INCONCLUSIVE, reason=why, marginal_hit=False)


def _got(error: NotMeasuredError) -> str:
    return f" ({error.got})" if error.got else ""


def _judge_count(name: str, spec: Expectation, measured: Measured) -> Judgement:
    events, target = measured.events or 0, spec.equals or 0
    if events != target:
        verdict, reason = Verdict.FAIL, f"{events} counted, {target} expected"
    elif not measured.n:
        raise NotMeasuredError("no shot to judge", where=f"{spec.metric}, scope all")
    else:
        verdict, reason = Verdict.PASS, f"{events} counted in {measured.n:,} shots"
        if events == 0 and measured.n:
            bound = stats.clopper_pearson(0, measured.n, COUNT_CONFIDENCE).upper
            reason = f"none in {measured.n:,} shots: rate below {bound:.2g} at 95 %"
    return _filled(name, spec, measured, verdict, reason)


def _judge_bounds(name: str, spec: Expectation, measured: Measured, metrics: Metrics) -> Judgement:
    sides = [
        _judge_side(spec, measured, metrics, limit, above=above)
        for limit, above in ((spec.max, True), (spec.min, False))
        if limit is not None
    ]
    worst = next(v for v in _WORST_FIRST if v in {side.verdict for side in sides})
    side = next(side for side in sides if side.verdict == worst)
    return _filled(name, spec, measured, worst, side.reason, side.shots_needed)


@dataclass(frozen=True, slots=True)
class _Side:
    """One limit judged."""

    verdict: Verdict
    reason: str
    shots_needed: int | None = None


def _judge_side(
    spec: Expectation, measured: Measured, metrics: Metrics, limit: float, *, above: bool
) -> _Side:
    """``above``: the limit is a maximum. ``min`` is the same with both bounds exchanged."""
    word = "max" if above else "min"
    near, far = (measured.upper, measured.lower) if above else (measured.lower, measured.upper)
    sign = 1 if above else -1
    met = near is not None and sign * near <= sign * limit
    broken = far is not None and sign * far > sign * limit
    note = ""
    if above and spec.kind == "latency" and (met or broken):
        agrees, note = _clusters_agree(spec, measured, metrics, met=met)
        if not agrees:
            would = Verdict.PASS if met else Verdict.FAIL
            why = f"{would} if shots were independent, but{note}: too few to prove it"
            return _Side(
                Verdict.INCONCLUSIVE, why, _more(spec, measured, metrics, limit, above=above)
            )
    if met:
        return _Side(Verdict.PASS, f"{'upper' if above else 'lower'} bound within {word}{note}")
    if broken:
        side = "lower" if above else "upper"
        return _Side(Verdict.FAIL, f"{side} bound beyond {word}{note}")
    why = _why_open(spec, measured, word)
    return _Side(Verdict.INCONCLUSIVE, why, _more(spec, measured, metrics, limit, above=above))


def _more(
    spec: Expectation, measured: Measured, metrics: Metrics, limit: float, *, above: bool
) -> int | None:
    total = needed.total_shots(spec, measured, metrics, limit, above=above)
    return None if total is None else max(1, total - measured.n)


def _clusters_agree(
    spec: Expectation, measured: Measured, metrics: Metrics, *, met: bool
) -> tuple[bool, str]:
    """Whether late shots, counted as episodes, lead to the same outcome; and words on it.

    Order statistics assume independent samples (coverage 55 % instead of 95 % in bursts). If the
    exceedances of the limit are clustered, their episode and batch bounds must agree as well.
    """
    limit = int(spec.max or 0)
    rate = metrics.exceedance(spec.metric, limit, measured.confidence, measured.scope)
    clusters = rate.clusters
    if clusters is None:
        return True, "; samples taken as independent"
    if not clusters.dependent:
        return True, ""
    share = float(1 - spec.quantile)
    note = f" {clusters.events} late shots come in {clusters.episodes} episodes"
    bound = rate.upper if met else rate.lower
    agrees = bound is not None and (bound <= share if met else bound > share)
    return agrees, f";{note}" if agrees else note


def _why_open(spec: Expectation, measured: Measured, word: str) -> str:
    if spec.kind == "latency":
        least = stats.minimum_samples(float(spec.quantile), measured.confidence)
        if measured.n < least and word == "max":
            percent = 100 * measured.confidence
            return f"{measured.n:,} samples, {spec.stat} at {percent:g} % needs {least:,}"
    if not measured.bounded:
        return f"{measured.n:,} samples give no bound"
    clusters, note = measured.clusters, ""
    if clusters is not None and clusters.dependent:
        note = f"; {clusters.events} events come in {clusters.episodes} episodes"
    return f"{word} lies between the bounds{note}"


def _judge_alarms(alarms: Mapping[str, int], n: int) -> Judgement:
    fired = {name: count for name, count in alarms.items() if count}
    total = sum(fired.values())
    text = ", ".join(f"{name} {count}" for name, count in sorted(fired.items()))
    return Judgement(
        id="no-alarms",
        metric="detectors.fired",
        stat="",
        scope="all",
        verdict=Verdict.FAIL if total else Verdict.PASS,
        reason=f"detectors fired in a run without faults: {text}" if total else "none fired",
        measured=total,
        lower=total,
        upper=total,
        equals=0,
        unit="count",
        n=n,
        events=total,
        label="every event counted",
        method="exact",
    )


def _blank(name: str, spec: Expectation, verdict: Verdict, reason: str) -> Judgement:
    return Judgement(
        id=name,
        metric=spec.metric,
        stat=spec.stat or "",
        scope=spec.scope,
        verdict=verdict,
        reason=reason,
        limit_max=spec.max,
        limit_min=spec.min,
        equals=spec.equals,
        unit=METRICS[spec.metric].unit,
        confidence=spec.confidence if spec.confidence is not None else 1.0,
        marginal=spec.marginal,
    )


def _filled(
    name: str,
    spec: Expectation,
    measured: Measured,
    verdict: Verdict,
    reason: str,
    shots_needed: int | None = None,
) -> Judgement:
    hit = False
    if verdict is Verdict.PASS and spec.marginal is not None:
        bound, sign = (measured.upper, 1) if spec.max is not None else (measured.lower, -1)
        hit = bound is not None and sign * bound > sign * spec.marginal
    return Judgement(
        id=name,
        metric=spec.metric,
        stat=spec.stat or "",
        scope=measured.scope,
        verdict=verdict,
        reason=f"{reason}; beyond marginal" if hit else reason,
        measured=measured.value,
        lower=measured.lower,
        upper=measured.upper,
        limit_max=spec.max,
        limit_min=spec.min,
        equals=spec.equals,
        unit=measured.unit,
        n=measured.n,
        confidence=measured.confidence,
        shots_needed=shots_needed,
        marginal=spec.marginal,
        marginal_hit=hit,
        method=measured.method,
        label=measured.label,
        events=measured.events,
        episodes=measured.clusters.episodes if measured.clusters else 0,
    )
