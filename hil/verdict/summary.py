"""Between metrics and a trace file: /summary and /expect out, metrics of a recorded run in.

Kept apart from `hil.verdict.metrics`, because the trace room loads HDF5.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from gpu_decoder.protocol import Reason
from gpu_decoder.windows import WindowPlan
from hil.scenario.expect import Expectation
from hil.timebase import MISSING_PS
from hil.trace.extras import HopSummary, TraceExtras
from hil.trace.schema import Block, ByteWidths, Record, block, clip, code
from hil.verdict import stats
from hil.verdict.density import EventCounts
from hil.verdict.group import END_TO_END, GROUPS, HOPS, LATENCIES, latency_name
from hil.verdict.histogram import Histogram
from hil.verdict.judge import Judgement, Verdict, limits_of
from hil.verdict.metrics import Metrics

if TYPE_CHECKING:
    from hil.trace.reader import Trace

SUMMARY_QUANTILES: Final = (0.0, 0.5, 0.9, 0.99, 0.999, 0.9999, 1.0)
SUMMARY_CONFIDENCE: Final = 0.95
_STAMPS: Final = tuple(dict.fromkeys(name for pair in HOPS.values() for name in pair))
_VERDICTS: Final = {
    Verdict.PASS: "pass",
    Verdict.FAIL: "fail",
    Verdict.INCONCLUSIVE: "inconclusive",
    Verdict.RIG_ERROR: "rig_error",
    Verdict.SKIP: "skipped",
}


def extras(metrics: Metrics, judgements: Sequence[Judgement]) -> TraceExtras:
    """What the final trace file keeps of the verdict: /expect and /summary."""
    return TraceExtras(expect=expect_rows(judgements), summary=to_summary(metrics))


def to_summary(metrics: Metrics) -> dict[str, HopSummary]:
    """Distributions of all hops and the whole way, for /summary.

    ``decode`` holds the clean shots, ``decode.warmup`` and ``decode.disturbed`` the others; hops
    without a sample are left out. `from_summary` gives the histograms back.
    """
    out = {}
    for group in GROUPS:
        for latency in LATENCIES:
            histogram = metrics.groups[group].histograms[latency]
            if histogram.count:
                out[_summary_name(latency, group)] = _summary(histogram)
    return out


def from_summary(summary: Mapping[str, HopSummary]) -> dict[str, dict[str, Histogram]]:
    """Histograms by group and latency, as `to_summary` took them."""
    out: dict[str, dict[str, Histogram]] = {group: {} for group in GROUPS}
    for name, table in summary.items():
        latency, _, group = name.partition(".")
        filled = table.counts > 0
        extent = np.array([table.values_ps[0], table.values_ps[-1]], np.int64)
        out[group or "clean"][latency] = Histogram.from_arrays(
            table.edges_ps[:-1][filled], table.counts[filled], extent
        )
    return out


def expect_rows(judgements: Sequence[Judgement]) -> Block | None:
    """Rows of /expect, one per judgement; ``None`` if nothing was judged."""
    if not judgements:
        return None
    missing = math.nan

    def numbers(name: str) -> list[float]:
        values = [getattr(judgement, name) for judgement in judgements]
        return [missing if value is None else float(value) for value in values]

    exact = [missing if j.equals is None else float(j.equals) for j in judgements]
    high, low = numbers("limit_max"), numbers("limit_min")
    return block(
        "expect",
        len(judgements),
        ByteWidths(1, 1, 1),
        id=[clip("expect", "id", j.id) for j in judgements],
        metric=[clip("expect", "metric", j.metric) for j in judgements],
        stat=[clip("expect", "stat", j.stat) for j in judgements],
        unit=[clip("expect", "unit", j.unit) for j in judgements],
        limit_max=np.where(np.isnan(exact), high, exact),
        limit_min=np.where(np.isnan(exact), low, exact),
        marginal=numbers("marginal"),
        measured=numbers("measured"),
        ci_low=numbers("lower"),
        ci_high=numbers("upper"),
        confidence=numbers("confidence"),
        n=[j.n for j in judgements],
        episodes=[j.episodes for j in judgements],
        clock_u=0.0,
        verdict=[code("expect", "verdict", _VERDICTS[j.verdict]) for j in judgements],
        marginal_hit=[j.marginal_hit for j in judgements],
        reason=[clip("expect", "reason", j.reason) for j in judgements],
    )


def from_trace(trace: Trace) -> Metrics:
    """Metrics of a recorded run, by the code that watches a live one.

    Rates, end-to-end latency and backlog come from /shots. Hops come from the rows of /rounds at
    record level ``rounds`` and from /summary at level ``shots``, where /rounds holds exceptions
    only (clusters of late hops, the load of windows and what a pre-decoder left are not known
    then). Counts that a file does not hold stay unmeasured.
    """
    resolved = trace.meta["resolved"]
    qpu, decoder = resolved["system"]["qpu"], resolved["system"]["decoder"]
    full = trace.record_level == "rounds" and "rounds" in trace.streams
    expect = {name: Expectation.model_validate(e) for name, e in resolved["expect"].items()}
    watch = limits_of(expect)
    metrics = Metrics(
        int(trace.meta["n_observables"]),
        qpu["round_period_ps"],
        qpu["shot_period_ps"],
        resolved["run"]["warmup"]["shots"],
        decoder["deadline_ps"],
        "measured" if trace.measured else "modelled",
        max(1, trace.pace),
        watch={m: x for m, x in watch.items() if full or latency_name(m) == END_TO_END},
        window_time_ps=_window_time_ps(resolved["system"]),
    )
    decoded = full and "decodes" in trace.streams
    for record in trace.records():
        metrics.update(
            record["shots"],
            last_blocks(record) if full else {},
            _window_services(record, decoder.get("window", {})) if full else None,
            _events(record) if decoded and decoder.get("predecoder") else None,
        )
        if decoded:
            metrics.add_counts(_decode_counts(record))
    if not full:
        for group, histograms in from_summary({h: trace.summary(h) for h in trace.hops}).items():
            for hop in HOPS:
                if hop in histograms:
                    metrics.groups[group].histograms[hop] = histograms[hop]
    return metrics


def last_blocks(record: Record) -> dict[str, NDArray[np.int64]]:
    """Stamps of each shot's last block (the final readout), int64 [n], from whole shots."""
    shots, rounds = record["shots"], record["rounds"]
    row = shots["first_round_row"].astype(np.int64) + shots["n_rounds"].astype(np.int64)
    return {name: rounds[name][row] for name in _STAMPS}


def _window_time_ps(system: Mapping[str, Any]) -> int | None:
    commit = system["decoder"].get("window", {}).get("commit")
    return None if commit is None else commit * system["qpu"]["round_period_ps"]


def _window_services(record: Record, window: Mapping[str, Any]) -> NDArray[np.int64] | None:
    """Service time of each sliding window, int64 [n, w], from the first round that it commits."""
    if window.get("commit") is None:
        return None
    shots, rounds = record["shots"], record["rounds"]
    plan = WindowPlan(int(shots["n_rounds"][0]) + 1, window["commit"], window["buffer"])
    row = shots["first_round_row"].astype(np.int64)[:, np.newaxis] + plan.first_round
    start, end = rounds["t_decode_start_ps"][row], rounds["t_decode_end_ps"][row]
    return np.where(start == MISSING_PS, MISSING_PS, end - start)


def _events(record: Record) -> EventCounts:
    """Events before and behind the pre-decoder, per shot; -1 where the fallback or nobody answered.

    A shot that the pre-decoder answered has one row of /decodes without a reason to fall back.
    """
    decodes, shots = record["decodes"], record["shots"]
    own = decodes["fallback"] == Reason.NONE
    rows = np.searchsorted(shots["shot"], decodes["shot"][own])
    before = np.zeros(shots["shot"].shape, np.int64)
    left = np.full(shots["shot"].shape, -1, np.int64)
    before[rows] = decodes["events_in"][own]
    left[rows] = decodes["events_out"][own]
    return EventCounts(before, left)


def _decode_counts(record: Record) -> dict[str, int]:
    """Substituted backends and shots decoded under another epoch, as /decodes tells."""
    decodes, shots = record["decodes"], record["shots"]
    changed = np.zeros(decodes["shot"].shape, np.bool_)
    for part in ("backend", "precision", "global"):
        changed |= decodes[f"{part}_requested"] != decodes[f"{part}_executed"]
    own = shots["epoch"][np.searchsorted(shots["shot"], decodes["shot"])]
    mixed = (decodes["epoch"] != own) | (decodes["epoch_echo"] != decodes["epoch"])
    return {
        "decoder.backend_mismatch": int(np.count_nonzero(changed)),
        "shots.mixed_epoch": int(np.unique(decodes["shot"][mixed]).shape[0]),
    }


def _summary_name(latency: str, group: str) -> str:
    return latency if group == "clean" else f"{latency}.{group}"


def _summary(histogram: Histogram) -> HopSummary:
    columns = histogram.to_arrays()
    low, high, counts = columns["edges_ps"], columns["last_ps"], columns["counts"]
    edges: list[int] = []
    bins: list[int] = []
    for start, stop, count in zip(low.tolist(), high.tolist(), counts.tolist(), strict=True):
        if edges and edges[-1] != start:
            bins.append(0)  # an empty stretch between two filled buckets
            edges.append(start)
        elif not edges:
            edges.append(start)
        edges.append(stop + 1)
        bins.append(count)
    n = histogram.count
    values, lower, upper = [], [], []
    for q in SUMMARY_QUANTILES:
        rank = min(n, max(1, math.ceil(q * n - 1e-9)))
        values.append(histogram.order_statistic(rank)[1] if q else histogram.minimum)
        inside = 0.0 < q < 1.0
        floor = stats.lower_rank(n, q, SUMMARY_CONFIDENCE) if inside else None
        roof = stats.upper_rank(n, q, SUMMARY_CONFIDENCE) if inside else None
        lower.append(MISSING_PS if floor is None else histogram.order_statistic(floor)[0])
        upper.append(MISSING_PS if roof is None else histogram.order_statistic(roof)[1])
    return HopSummary(
        edges_ps=np.array(edges, np.int64),
        counts=np.array(bins, np.uint64),
        quantiles=np.array(SUMMARY_QUANTILES, np.float64),
        values_ps=np.array(values, np.int64),
        low_ps=np.array(lower, np.int64),
        high_ps=np.array(upper, np.int64),
    )
