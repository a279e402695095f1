"""Verdict and trace file: what is stored, and the same figures from a file as from the run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from synthetic_run import Shots
from trace_cases import (
    DEADLINE_PS,
    N_ROUNDS,
    ROUND_PS,
    SHOT_PS,
    make_meta,
    make_record,
    write_trace,
)

from hil.scenario.expect import Expectation
from hil.trace.reader import open_trace
from hil.trace.schema import MISSING_PS, Record
from hil.verdict.group import HOPS
from hil.verdict.judge import judge, limits_of
from hil.verdict.measured import NotMeasuredError
from hil.verdict.metrics import Metrics
from hil.verdict.summary import (
    expect_rows,
    extras,
    from_summary,
    from_trace,
    last_blocks,
    to_summary,
)

RATES = ("deadline.miss_rate", "decoder.fallback_rate", "ler.per_shot", "backlog.slope")
EXPECT = {
    "tail": Expectation(metric="latency.end_to_end", stat="p99", max=7_900_000, confidence=0.95),
    "queue": Expectation(metric="latency.queue", stat="p50", max=10**9, confidence=0.95),
    "ler": Expectation(metric="ler.per_shot", max=0.9, min=0.1, marginal=0.2, confidence=0.95),
    "lost": Expectation(metric="packets.lost", equals=0),
}
RESOLVED = {
    "system": {
        "qpu": {"round_period_ps": ROUND_PS, "shot_period_ps": SHOT_PS},
        "decoder": {"deadline_ps": DEADLINE_PS},
    },
    "run": {"warmup": {"shots": 0}},
    "expect": {name: spec.model_dump(mode="json") for name, spec in EXPECT.items()},
}


def records(keep: int = 1) -> list[Record]:
    return [make_record(first, 500, keep=keep) for first in range(0, 2_000, 500)]


def live(batches: list[Record]) -> Metrics:
    """Metrics as a driver feeds them: stamps of every shot, whatever the record keeps."""
    metrics = Metrics(*(1, ROUND_PS, SHOT_PS, 0, DEADLINE_PS, "modelled"), watch=limits_of(EXPECT))
    for batch in batches:
        full = make_record(int(batch["shots"]["shot"][0]), len(batch["shots"]["shot"]))
        metrics.update(batch["shots"], last_blocks(full))
    return metrics


def write(path: Path, batches: list[Record], metrics: Metrics, level: str) -> Path:
    return write_trace(
        path,
        batches,
        level=level,
        meta=make_meta(resolved=RESOLVED),
        extras=extras(metrics, judge(EXPECT, metrics)),
    )


@pytest.mark.parametrize(("level", "keep"), [("rounds", 1), ("shots", 9)])
def test_a_file_gives_the_figures_of_the_run(tmp_path: Path, level: str, keep: int) -> None:
    batches = records(keep)
    run = live(batches)
    with open_trace(write(tmp_path / "t.h5", batches, run, level)) as trace:
        again = from_trace(trace)
    assert again.n_rounds == N_ROUNDS
    for name in RATES:
        assert again.measure(name) == run.measure(name)
    for latency in (*HOPS, "end_to_end"):
        for stat in ("p1", "p50", "p99"):
            metric = f"latency.{latency}"
            assert again.measure(metric, stat) == run.measure(metric, stat)
    assert again.time_label == run.time_label
    judged = [j.verdict for j in judge(EXPECT, again)]
    assert judged == [j.verdict for j in judge(EXPECT, run)]
    if level == "rounds":
        assert again.watch == run.watch
        assert again.counts == {"decoder.backend_mismatch": 0, "shots.mixed_epoch": 0}
    else:
        assert "latency.queue" not in again.watch  # exceptions only: clusters cannot be known
        with pytest.raises(NotMeasuredError):
            again.measure("decoder.backend_mismatch")


def test_substituted_decoders_and_mixed_epochs_are_counted_from_a_file(tmp_path: Path) -> None:
    batches = records()
    decodes = batches[1]["decodes"]
    for column, rows in (("global_executed", [3, 4, 5]), ("epoch_echo", [7, 8])):
        values = decodes[column].copy()
        values[rows] = 1
        decodes[column] = values
    with open_trace(write(tmp_path / "t.h5", batches, live(batches), "rounds")) as trace:
        counts = from_trace(trace).counts
    assert counts == {"decoder.backend_mismatch": 3, "shots.mixed_epoch": 2}


def test_summary_gives_the_histograms_back() -> None:
    shots = Shots(3_000, warmup=20)
    rng = np.random.default_rng(4)
    shots.hops["decode"] = rng.lognormal(12, 3, 3_000).astype(np.int64)
    shots.hops["uplink"] = rng.integers(-20_000, 20_000, 3_000)
    metrics = Metrics(1, 1, 1, 20, 60_000_000, "modelled")
    metrics.update(*shots.columns())
    summary = to_summary(metrics)
    assert {"decode", "decode.warmup", "end_to_end"} <= set(summary)
    assert "decode.disturbed" not in summary
    for group, histograms in from_summary(summary).items():
        for latency, histogram in histograms.items():
            original = metrics.groups[group].histograms[latency]
            assert histogram.count == original.count
            for rank in (1, 2, histogram.count // 2 + 1, histogram.count):
                assert histogram.order_statistic(rank) == original.order_statistic(rank)
    decode = summary["decode"]
    assert bool((np.diff(decode.edges_ps) > 0).all())
    assert decode.counts.shape[0] == decode.edges_ps.shape[0] - 1
    assert int(decode.counts.sum()) == 2_980
    assert decode.values_ps[0] == metrics.histogram("decode").minimum
    assert decode.values_ps[-1] == metrics.histogram("decode").maximum
    assert decode.high_ps[list(decode.quantiles).index(0.9999)] == MISSING_PS


def test_expectations_are_stored_with_their_verdicts(tmp_path: Path) -> None:
    batches = records()
    run = live(batches)
    with open_trace(write(tmp_path / "t.h5", batches, run, "rounds")) as trace:
        rows = trace.expect
        verdicts = [trace.enum_names("expect", "verdict")[code] for code in rows["verdict"]]
    assert rows["id"].tolist() == [b"tail", b"queue", b"ler", b"lost"]
    assert verdicts == ["inconclusive", "pass", "pass", "rig_error"]
    assert rows["limit_max"].tolist()[:3] == [7_900_000.0, 1e9, 0.9]
    assert rows["limit_max"][3] == rows["limit_min"][3] == 0.0
    assert np.isnan(rows["limit_min"][0])
    assert np.isnan(rows["measured"][3])
    ler = run.measure("ler.per_shot")
    assert (rows["measured"][2], rows["ci_low"][2], rows["ci_high"][2]) == (
        ler.value,
        ler.lower,
        ler.upper,
    )
    assert rows["n"].tolist() == [2_000, 2_000, 2_000, 0]
    assert rows["marginal_hit"].tolist() == [0, 0, 1, 0]
    assert rows["reason"][3].startswith(b"not measured")
    assert expect_rows([]) is None
