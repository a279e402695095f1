"""A sender that did not hold its cadence makes wall-time verdicts inconclusive, and only those."""

from __future__ import annotations

import numpy as np
import pytest
from synthetic_run import DEADLINE_PS, SHOT_PERIOD_PS, Shots

from hil.scenario.expect import Expectation
from hil.timebase import PS_PER_MS, PS_PER_US
from hil.verdict.judge import Verdict, judge, limits_of
from hil.verdict.metrics import Metrics
from hil.verdict.sender import SenderLateness

EXPECT = {
    "tail": Expectation(metric="latency.end_to_end", stat="p90", max=DEADLINE_PS, confidence=0.95),
    "fast": Expectation(metric="latency.end_to_end", stat="p90", max=1, confidence=0.95),
    "late": Expectation(metric="deadline.miss_rate", max=0.1, confidence=0.95),
    "wrong": Expectation(metric="ler.per_shot", max=0.1, confidence=0.95),
    "count": Expectation(metric="answers.missing", equals=0),
}


def sender(late: int, frames: int = 10_000) -> SenderLateness:
    """``late`` frames of so many left 2 ms late, the others 20 us."""
    made = SenderLateness.for_deadline(10 * PS_PER_MS, PS_PER_US)
    lateness = np.full(frames, 20 * PS_PER_US)
    lateness[:late] = 2 * PS_PER_MS
    made.update(lateness)
    return made


def verdicts(found: SenderLateness | None, *, source: str = "measured", pace: int = 1) -> str:
    shots = Shots(2_000)
    metrics = Metrics(
        *(1, PS_PER_US, SHOT_PERIOD_PS, shots.warmup, DEADLINE_PS, source, pace),
        watch=limits_of(EXPECT),
    )
    metrics.update(*shots.columns())
    metrics.add_counts({"answers.missing": 0})
    return " ".join(one.verdict.value for one in judge(EXPECT, metrics, sender=found))


def test_late_is_beyond_a_tenth_of_the_deadline_or_one_round_period() -> None:
    assert SenderLateness.for_deadline(10 * PS_PER_MS, PS_PER_US).tolerance_ps == PS_PER_MS
    assert SenderLateness.for_deadline(PS_PER_MS, PS_PER_MS).tolerance_ps == PS_PER_MS
    made = SenderLateness(PS_PER_MS)
    made.update(np.array([0, PS_PER_MS, PS_PER_MS + 1]))
    assert (made.frames, made.late) == (3, 1)


@pytest.mark.parametrize(("late", "held"), [(0, True), (10, True), (11, False), (10_000, False)])
def test_one_frame_in_a_thousand_may_be_late(late: int, held: bool) -> None:
    assert sender(late).held is held


def test_figures_are_order_statistics() -> None:
    made = sender(200)
    counts = made.counts()
    assert counts["sender.frames"] == 10_000
    assert counts["sender.late"] == 200
    assert counts["sender.lateness_p50_ns"] == pytest.approx(20_000, rel=1e-3)
    assert counts["sender.lateness_p99_ns"] == pytest.approx(2_000_000, rel=1e-3)
    assert counts["sender.lateness_max_ns"] == 2_000_000
    assert "200 of 10000 frames left more than 1.000 ms late" in made.words()


def test_only_what_is_judged_on_the_wall_is_excused() -> None:
    as_ever = "PASS FAIL PASS PASS PASS"
    assert verdicts(None) == as_ever
    assert verdicts(sender(10)) == as_ever
    assert verdicts(sender(11)) == "INCONCLUSIVE INCONCLUSIVE INCONCLUSIVE PASS PASS"
    assert verdicts(sender(11), pace=5) == as_ever
    assert verdicts(sender(11), source="modelled") == as_ever


def test_the_reason_says_what_it_would_have_been() -> None:
    shots = Shots(2_000)
    metrics = Metrics(1, PS_PER_US, SHOT_PERIOD_PS, shots.warmup, DEADLINE_PS, "measured", 1)
    metrics.update(*shots.columns())
    (only,) = judge({"fast": EXPECT["fast"]}, metrics, sender=sender(11))
    assert only.verdict is Verdict.INCONCLUSIVE
    assert only.reason.startswith("the sender did not hold the cadence: 11 of 10000 frames")
    assert only.reason.endswith("else FAIL")
