"""From metrics, judgements and facts to the one document."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from gpu_decoder.protocol import Reason
from hil.report import text
from hil.report.document import (
    CountRow,
    Document,
    ExpectationRow,
    Figure,
    HopRow,
    LogicalErrors,
    Pairs,
    PathRow,
    QuantileCell,
    RateRow,
    RunFacts,
    WarmupBlock,
)
from hil.verdict import stats
from hil.verdict.group import END_TO_END, HOPS, PATHS
from hil.verdict.judge import Judgement, Verdict, exit_code, run_verdict
from hil.verdict.measured import Measured, NotMeasuredError
from hil.verdict.metrics import COUNT_METRICS, Metrics

STATS: Final = ("p50", "p99", "p99.9")
CONFIDENCE: Final = 0.95
"""Of all bounds in the report that belong to no expectation."""
RATES: Final = (
    "deadline.miss_rate",
    "decoder.fallback_rate",
    "decoder.unanswered_rate",
    "window.load",
    "predecoder.density_reduction",
)


def build(metrics: Metrics, judgements: Sequence[Judgement], facts: RunFacts) -> Document:
    """Make the document of a run.

    Args:
        metrics: what was measured.
        judgements: what `hil.verdict.judge` made of it, in order.
        facts: what the runner knows.
    """
    verdict = run_verdict(judgements)
    hops = [_hop_row(name, metrics) for name in HOPS]
    counts = _counts(metrics)
    return Document(
        verdict=verdict.value,
        exit_code=exit_code(verdict),
        headline=_headline(verdict, judgements),
        facts=facts,
        shots=metrics.shots("all"),
        judged_shots=metrics.shots("clean"),
        deadline=_figure(metrics.deadline_ps, "ps"),
        pace=metrics.pace,
        simulated=metrics.time_source == "modelled",
        time_label=metrics.time_label,
        bound_confidence=CONFIDENCE,
        expectations=tuple(_expectation_row(j) for j in judgements),
        hops=_with_shares([row for row in hops if row is not None]),
        end_to_end=_hop_row(END_TO_END, metrics),
        logical=_logical(metrics),
        rates=tuple(row for name in RATES if (row := _rate_row(metrics, name)) is not None),
        backlog=_rate_row(metrics, "backlog.slope"),
        counts=counts,
        fates=_fates(metrics),
        warmup=_warmup(metrics),
        labels=(*_labels(metrics), *facts.labels),
        not_tested=(*_gaps(metrics, counts, facts), *facts.not_tested),
    )


def _figure(value: float | None, unit: str) -> Figure:
    return Figure(value, text.figure(value, unit))


def _headline(verdict: Verdict, judgements: Sequence[Judgement]) -> str:
    of = {v: [j for j in judgements if j.verdict is v] for v in Verdict}
    total = len(judgements)
    if verdict is Verdict.RIG_ERROR:
        first = min(of[verdict], key=lambda j: j.metric != "rig")  # the cause before its effects
        more = f" (and {len(of[verdict]) - 1} more)" if len(of[verdict]) > 1 else ""
        return f"The rig failed, nothing is proved: {first.id}: {first.reason}{more}"
    if verdict is Verdict.FAIL:
        names = ", ".join(j.id for j in of[verdict])
        return f"{len(of[verdict])} of {total} expectations fail: {names}"
    if verdict is Verdict.INCONCLUSIVE:
        names = ", ".join(_with_need(j) for j in of[verdict])
        return f"{len(of[verdict])} of {total} expectations need more shots: {names}"
    if verdict is Verdict.SKIP:
        return "Nothing was judged." if not judgements else "Every expectation was skipped."
    flagged = [j.id for j in judgements if j.marginal_hit]
    close = f"; beyond marginal: {', '.join(flagged)}" if flagged else ""
    skips = f", {len(of[Verdict.SKIP])} skipped" if of[Verdict.SKIP] else ""
    return f"{len(of[verdict])} of {total} expectations hold{skips}{close}"


def _with_need(judgement: Judgement) -> str:
    if judgement.shots_needed is None:
        return judgement.id
    return f"{judgement.id} (about {text.count(judgement.shots_needed)} more)"


def _expectation_row(j: Judgement) -> ExpectationRow:
    return ExpectationRow(
        id=j.id,
        metric=f"{j.metric} {j.stat}".strip(),
        scope=j.scope,
        verdict=j.verdict.value,
        measured=_figure(j.measured, j.unit),
        lower=_figure(j.lower, j.unit),
        upper=_figure(j.upper, j.unit),
        interval=text.interval(j.lower, j.upper, j.unit),
        limit=_figure(j.limit, j.unit),
        limit_text=_limit_text(j),
        unit=j.unit,
        n=j.n,
        confidence=j.confidence,
        shots_needed=j.shots_needed,
        marginal=_figure(j.marginal, j.unit),
        marginal_hit=j.marginal_hit,
        reason=j.reason,
        method=j.method,
        label=j.label,
    )


def _limit_text(j: Judgement) -> str:
    parts = []
    if j.equals is not None:
        parts.append(f"= {text.count(j.equals)}")
    if j.limit_min is not None:
        parts.append(f">= {text.limit(j.limit_min, j.unit)}")
    if j.limit_max is not None:
        parts.append(f"<= {text.limit(j.limit_max, j.unit)}")
    return ", ".join(parts) or text.NONE


def _hop_row(name: str, metrics: Metrics) -> HopRow | None:
    """Row of a hop; ``None`` if it has no sample. A backward stamp is a note, not a silence."""
    histogram = metrics.histogram(name)
    start, stop = HOPS.get(name, ("t_intended_ps", "t_applied_ps"))
    try:
        cells = tuple(
            QuantileCell(stat, _figure(m.value, "ps"), _figure(m.upper, "ps"))
            for stat in STATS
            for m in [metrics.measure(f"latency.{name}", stat, CONFIDENCE)]
        )
        n, note = metrics.measure(f"latency.{name}", "p50", CONFIDENCE).n, ""
    except NotMeasuredError as error:
        if histogram.count == 0:
            return None
        nothing = _figure(None, "ps")
        cells = tuple(QuantileCell(stat, nothing, nothing) for stat in STATS)
        n, note = histogram.count, error.what
    if n > histogram.count:
        note = f"{text.count(n - histogram.count)} unanswered count as never"
    return HopRow(
        name=name,
        start=start.removeprefix("t_").removesuffix("_ps"),
        stop=stop.removeprefix("t_").removesuffix("_ps"),
        n=n,
        minimum=_figure(histogram.minimum, "ps"),
        quantiles=cells,
        maximum=_figure(histogram.maximum, "ps"),
        share_of_median=0.0,
        note=note,
    )


def _with_shares(rows: list[HopRow]) -> tuple[HopRow, ...]:
    """Rows with their share of the sum of medians (medians do not add up to the median)."""
    medians = [row.quantiles[0].value.value or 0.0 for row in rows]
    total = sum(medians) or 1.0
    return tuple(
        HopRow(
            *(row.name, row.start, row.stop, row.n, row.minimum, row.quantiles, row.maximum),
            share_of_median=median / total,
            note=row.note,
        )
        for row, median in zip(rows, medians, strict=True)
    )


def _rate_row(
    metrics: Metrics, name: str, confidence: float = CONFIDENCE, scope: str = "clean"
) -> RateRow | None:
    try:
        measured = metrics.measure(name, "", confidence, scope)
    except NotMeasuredError:
        return None
    return _row_of(measured)


def _row_of(m: Measured) -> RateRow:
    note = m.method
    if m.clusters is not None and m.clusters.episodes:
        c = m.clusters
        note += f"; {text.count(c.episodes)} episodes, longest {text.count(c.longest)}"
    return RateRow(
        name=m.metric,
        events=m.events,
        n=m.n,
        value=_figure(m.value, m.unit),
        lower=_figure(m.lower, m.unit),
        upper=_figure(m.upper, m.unit),
        interval=text.interval(m.lower, m.upper, m.unit),
        note=note,
    )


def _logical(metrics: Metrics) -> LogicalErrors:
    two_sided = (1 + CONFIDENCE) / 2  # each end; the pair is a 95 % interval
    shot = _rate_row(metrics, "ler.per_shot", two_sided)
    group = metrics.groups["clean"]
    paths = []
    for path in PATHS:
        shots, failures = group.shots_by_path[path], group.failed_by_path[path]
        if shots:
            bounds = stats.clopper_pearson_two_sided(failures, shots, CONFIDENCE)
            interval = text.interval(bounds.lower, bounds.upper, "1")
            value = _figure(failures / shots, "1")
            paths.append(PathRow(path, shots, failures, value, interval))
    return LogicalErrors(
        shots=group.with_truth,
        failures=group.sums["failed"],
        per_shot=shot,
        per_round=_rate_row(metrics, "ler.per_round", two_sided),
        rounds=metrics.n_rounds,
        by_path=tuple(paths),
        note=f"two-sided {text.percent(CONFIDENCE)} intervals",
    )


def _counts(metrics: Metrics) -> tuple[CountRow, ...]:
    names = [*COUNT_METRICS, *sorted(set(metrics.counts) - set(COUNT_METRICS))]
    return tuple(
        CountRow(name, value, "not measured" if value is None else text.count(value))
        for name in names
        for value in [metrics.counts.get(name)]
    )


def _fates(metrics: Metrics) -> tuple[tuple[str, int], ...]:
    """How shots ended, all shots; zero rows are left out but for the first."""
    groups = list(metrics.groups.values())
    missed = sum(g.sums["miss"] for g in groups)
    lost = sum(g.sums["unanswered"] for g in groups)
    rows = [
        ("answered in time", metrics.shots("all") - missed),
        ("answered after the deadline", missed - lost),
    ]
    for path, words in (("fallback", "of these by the fallback"), ("unanswered", "unanswered")):
        for reason in Reason:
            events = sum(int(g.reasons[path][int(reason)]) for g in groups)
            rows.append((f"{words}: {reason.name.lower()}", events))
    return (rows[0], *(row for row in rows[1:] if row[1]))


def _warmup(metrics: Metrics) -> WarmupBlock:
    shots = metrics.shots("warmup")
    rows: list[tuple[str, str]] = []
    if shots:
        for metric, stat in (("latency.end_to_end", "p50"), ("latency.end_to_end", "p99")):
            rows.append((f"{metric} {stat}", _warm_value(metrics, metric, stat)))
        maximum = metrics.histogram(END_TO_END, "warmup").maximum
        rows.append(("latency.end_to_end max", text.figure(maximum, "ps")))
        rows += [(name, _warm_value(metrics, name, "")) for name in ("deadline.miss_rate",)]
    return WarmupBlock(shots, tuple(rows))


def _warm_value(metrics: Metrics, metric: str, stat: str) -> str:
    try:
        measured = metrics.measure(metric, stat, CONFIDENCE, "warmup")
    except NotMeasuredError as error:
        return error.what
    return text.figure(measured.value, measured.unit)


def _labels(metrics: Metrics) -> tuple[str, ...]:
    out = [f"Latencies are {metrics.time_label}."]
    if metrics.pace != 1:
        out.append(
            f"Wall timing informational: pace {metrics.pace}; queueing, deadlines and fallback are "
            "computed in scenario time from unscaled measured durations."
        )
    return tuple(out)


def _gaps(metrics: Metrics, counts: Sequence[CountRow], facts: RunFacts) -> tuple[str, ...]:
    out = []
    missing = [row.name for row in counts if row.value is None]
    if missing:
        out.append(f"Not counted in this run: {', '.join(missing)}.")
    unseen = [hop for hop in HOPS if metrics.histogram(hop).count == 0]
    if unseen:
        out.append(f"No sample of hop {', '.join(unseen)}.")
    if not any(g.sums["fallback"] for g in metrics.groups.values()):
        out.append("The fallback decoder answered no shot.")
    if not facts.faults:
        out.append("No fault was injected: what detectors would miss is not known from this run.")
    disturbed = metrics.shots("disturbed")
    if disturbed:
        out.append(f"{text.count(disturbed)} shots in fault windows are not judged (scope clean).")
    return tuple(out)


def facts_table(document: Document) -> Pairs:
    """Run facts in reading order, for the head of a report."""
    facts = document.facts
    rows = [
        ("scenario", facts.scenario_id),
        ("profile", f"{facts.profile or facts.level} (level {facts.level})"),
        ("shots", f"{text.count(document.shots)}, judged {text.count(document.judged_shots)}"),
        ("seed", str(facts.seed)),
        ("deadline", document.deadline.text),
        ("scenario time", text.figure(facts.simulated_ps, "ps")),
        ("wall time", f"{facts.wall_s:.1f} s" if facts.wall_s is not None else text.NONE),
        ("pace", "simulated time" if document.simulated else str(document.pace)),
        ("started", facts.created_utc or text.NONE),
        ("run", facts.run_id),
    ]
    stated = {name for name, _ in facts.workload}
    return (*(row for row in rows if row[0] not in stated), *facts.workload)
