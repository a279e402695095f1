"""Each fault of a link at three sizes: its own detector fires, and no other that is not explained.

Counters come from the virtual receivers, which ``tests/conformance/test_link_receivers.py`` holds
against real endpoints, the node's session and the rack's ledger. Live runs of the same kinds stand
in ``tests/integration/test_link_fault_runs.py``.
"""

from __future__ import annotations

import numpy as np
import pytest
from link_fault_cases import CASES, SCENARIO, SIZES, faulty, loaded, parsed_once

from hil.errors import ScenarioError
from hil.link.arrivals import ArrivalAudit
from hil.link.fault_plan import BLOCK, Burst, Cadence, LinkPlan, Pauses, Rule, bad_states
from hil.link.frame_fault import FrameFault
from hil.rack.link_faults import link_plans
from hil.run.faults import VirtualReceivers
from hil.scenario.faults import NAMED, may_fire
from hil.scenario.model import Scenario
from hil.seeds import generator
from hil.verdict import detectors
from hil.verdict.detectors import NAMES, alarms_of, judge_faults
from hil.verdict.faults_page import page_with_tables
from hil.verdict.judge import Verdict

__all__ = ["parsed_once"]
pytestmark = pytest.mark.usefixtures("parsed_once")

MILLION = 1_000_000
EVEN = Cadence(7_000_000, tuple(range(1_000_000, 8_000_000, 1_000_000)))
"""Seven frames a shot, one per us."""


def alarms(scenario: Scenario, batch: int = 97) -> detectors.Alarms:
    """Detectors of a virtual run of any length, batch by batch."""
    receivers = VirtualReceivers(link_plans(scenario))
    for first in range(0, scenario.run.shots, batch):
        receivers.take(first, min(batch, scenario.run.shots - first))
    return alarms_of(receivers.counters(), scenario.system.qpu.n_blocks + 1)


@pytest.mark.parametrize(("kind", "size", "link"), CASES)
def test_a_fault_is_caught_by_its_detector_and_by_no_other(kind: str, size: str, link: str) -> None:
    scenario = loaded(faulty(kind, size, link, f"caught_by: {NAMED[kind]}")).scenario
    found = alarms(scenario)
    assert found.events[NAMED[kind]] > 0
    assert {name for name, n in found.events.items() if n} <= set(may_fire(kind, "uc"))
    lines = {line.id: line.verdict for line in judge_faults(scenario, found, 1000)}
    assert lines == {"caught-bad": Verdict.PASS, "no-other-alarm": Verdict.PASS}


@pytest.mark.parametrize("kind", SIZES)
def test_a_blunt_detector_turns_its_row_red(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutation test of the testbed: the detector of the fault reads nothing."""
    monkeypatch.setattr(detectors, "READS", {**detectors.READS, NAMED[kind]: ()})
    scenario = loaded(faulty(kind, SIZES[kind][1], "up", f"caught_by: {NAMED[kind]}")).scenario
    lines = {line.id: line.verdict for line in judge_faults(scenario, alarms(scenario), 1000)}
    assert lines["caught-bad"] is Verdict.FAIL


@pytest.mark.parametrize("name", NAMES)
def test_a_detector_that_fires_without_its_fault_is_a_fail(name: detectors.Detector) -> None:
    scenario = loaded("faults={slow: {kind: delay, target: uplink, value: 1us}}").scenario
    counters = {(detectors.READS[name] or ("node.widest",))[0]: 9}
    found = alarms_of(counters, 7)
    assert [n for n in NAMES if found.events[n]] == [name]
    (line,) = judge_faults(scenario, found, 1000)
    assert (line.id, line.verdict) == ("no-other-alarm", Verdict.FAIL)
    assert name in line.reason
    assert all(v.verdict is Verdict.PASS for v in judge_faults(scenario, alarms_of({}, 7), 1000))


def test_the_tables_of_the_page_are_fresh() -> None:
    page = (SCENARIO.parents[1] / "docs" / "faults.md").read_text()
    assert page == page_with_tables(page), "run: make docs"


def test_every_detector_is_explained_and_read() -> None:
    assert set(detectors.READS) == set(detectors.MEANING) == set(NAMES)
    assert set(NAMED.values()) <= set(NAMES)


# -- the plan -------------------------------------------------------------------------------------


def drop(p: float, burst: Burst | None = None, **window: int) -> Rule:
    return Rule("r", FrameFault.DROP, **{"first": 0, "stop": MILLION, **window}, p=p, burst=burst)


def plan(*rules: Rule, frames: int = MILLION, seed: int = 5) -> LinkPlan:
    return LinkPlan(seed, "up", frames, EVEN, rules)


def test_a_million_frames_without_a_rule_raise_no_alarm() -> None:
    receiver = ArrivalAudit(plan())
    for first in range(0, MILLION, 100_000):
        receiver.take(first, 100_000)
    receiver.close(MILLION)
    counts = receiver.audit.counts()
    assert {name: n for name, n in counts.items() if n} == {"received": MILLION}
    assert receiver.audit.widest == 0
    assert receiver.counts == {**dict.fromkeys(FrameFault, 0), FrameFault.NONE: MILLION}


@pytest.mark.parametrize(
    ("p", "burst"),
    [(0.01, Burst(8.0)), (0.05, Burst(20.0, 0.5)), (0.4, Burst(3.0, 0.8))],
)
def test_gilbert_elliott_has_the_statistics_that_were_asked_for(p: float, burst: Burst) -> None:
    """Rate, correlation of neighbours and mean burst of one seed, within 5 standard errors.

    Blocks are independent, so their spread gives the error. Two-sided 5 sigma: 6e-7 per figure.
    Neighbours: Cov = share^2 b (1 - b) (1 - P(good -> bad) - P(bad -> good)), b = p / share.
    """
    blocks = 61
    kinds = plan(drop(p, burst)).suffering(0, blocks * BLOCK).kinds.reshape(blocks, BLOCK)
    lost = kinds == FrameFault.DROP
    rates = lost.mean(axis=1)
    assert abs(rates.mean() - p) < 5 * rates.std() / np.sqrt(blocks)
    b, memory = p / burst.share, 1 - burst.leave_good(p) - 1 / burst.frames
    pairs = ((lost[:, 1:] - p) * (lost[:, :-1] - p)).mean(axis=1)
    wanted = burst.share**2 * b * (1 - b) * memory
    assert abs(pairs.mean() - wanted) < 5 * pairs.std() / np.sqrt(blocks)
    assert wanted > 0.1 * p * (1 - p)  # independent losses have none
    rng = generator(5, "test")
    bad = bad_states(burst, p, 400_000, rng)
    edges = np.diff(bad.astype(np.int8))
    stays = np.diff(np.flatnonzero(edges))[int(edges[edges != 0][0] < 0) :: 2]
    error = np.sqrt(burst.frames * (burst.frames - 1) / stays.size)
    assert abs(stays.mean() - burst.frames) < 5 * error
    assert stays.min() == 1


def test_independent_losses_are_binomial() -> None:
    kinds = plan(drop(0.02)).suffering(0, MILLION).kinds
    error = np.sqrt(0.02 * 0.98 * MILLION)
    assert abs((kinds == FrameFault.DROP).sum() - 20_000) < 5 * error


def test_a_plan_does_not_depend_on_how_it_is_asked() -> None:
    rules = (drop(0.1, Burst(5.0)), Rule("d", FrameFault.DUPLICATE, 0, MILLION, 0.1, low=1, high=9))
    whole = plan(*rules).suffering(0, 3 * BLOCK)
    for first, n in ((0, 1), (BLOCK - 3, 7), (BLOCK, BLOCK), (17, 2 * BLOCK), (5, 0)):
        part = plan(*rules).suffering(first, n)
        for got, all_ in zip(part, whole, strict=True):
            assert np.array_equal(got, all_[first : first + n])
    assert plan(*rules).of(BLOCK + 9) == (whole.kinds[BLOCK + 9], whole.amounts[BLOCK + 9])
    other = plan(*rules, seed=6).suffering(0, 3 * BLOCK)
    assert not np.array_equal(other.kinds, whole.kinds)


def test_the_first_rule_counts_and_nothing_waits_behind_the_last_frame() -> None:
    late = Rule("late", FrameFault.REORDER, 0, 100, 1.0, low=5, high=5)
    kinds, _, rules = plan(drop(1.0, stop=50), late, frames=100).suffering(0, 100)
    assert (kinds[:50] == FrameFault.DROP).all()
    assert (kinds[50:95] == FrameFault.REORDER).all()
    assert (kinds[95:] == FrameFault.NONE).all()
    assert rules.tolist() == [0] * 50 + [1] * 45 + [-1] * 5


def test_audits_in_batches_are_those_of_the_whole() -> None:
    rules = (
        drop(0.02),
        Rule("d", FrameFault.DUPLICATE, 0, MILLION, 0.02, low=30, high=30),
        Rule("r", FrameFault.REORDER, 0, MILLION, 0.02, low=1, high=40),
    )
    found = []
    for step in (97, 1000, 20_000):
        receiver = ArrivalAudit(plan(*rules, frames=20_000))
        for first in range(0, 20_000, step):
            receiver.take(first, min(step, 20_000 - first))
        receiver.close(20_000)
        found.append((receiver.audit.counts(), receiver.audit.widest, receiver.counts))
    assert found[0] == found[1] == found[2]
    assert found[0][0]["lost"] == found[0][2][FrameFault.DROP] > 0


@pytest.mark.parametrize("length_ps", [10_000_000, 500_000_000, 5_000_000_000])
def test_a_pause_is_caught_up_with_in_its_length_times_rho_over_one_minus_rho(
    length_ps: int,
) -> None:
    """One frame per us, half a us each on the line: rho = 1/2, so the queue lasts S after it."""
    start_ps, gap_ps = 4_000_000, 500_000
    frames = np.arange(0, 3 * length_ps // 1_000_000 + 20)
    holds = Pauses(start_ps, length_ps, 0, gap_ps).holds_ps(frames, EVEN)
    due = EVEN.due_ps(frames)
    leaves = due + holds
    assert (holds[due < start_ps] == 0).all()
    assert holds[due == start_ps] == length_ps
    assert (np.diff(leaves) >= gap_ps).all()
    caught_up = due[holds > 0][-1]
    assert abs(int(caught_up) - (start_ps + 2 * length_ps)) <= 2_000_000


# -- scenarios ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("at", "up", "down"),
    [
        ("{shot: 3}", 3 * 7, 3),
        ("{round: 13}", 2 * 7 + 1, 2),  # six blocks a shot
        ("{time: 2ms}", 2 * 7, 2),
        ("{time: 2001us}", 2 * 7, 2),
        ("{time: 2001.2us}", 2 * 7 + 1, 2),
        ("{time: 2900us}", 3 * 7, 3),
    ],
)
def test_a_fault_begins_with_the_first_frame_that_is_due(at: str, up: int, down: int) -> None:
    for link, first in (("up", up), ("down", down)):
        text = faulty("loss", "p: 1.0", link, f"at: {at}", "for: 1ms")
        (rule,) = link_plans(loaded(text).scenario)[link].rules
        assert rule.first == first
        assert rule.stop - rule.first == {"up": 7, "down": 1}[link]


def test_a_detector_that_cannot_see_the_fault_is_refused() -> None:
    with pytest.raises(ScenarioError, match="does not see reorder on a UC link"):
        loaded(faulty("reorder", "p: 0.1, window: 2", "up", "caught_by: nic_icrc"))
    with pytest.raises(ScenarioError, match="no frame is due"):
        loaded(faulty("loss", "p: 0.1", "up", "at: {time: 500us}", "for: 1us"))
    with pytest.raises(ScenarioError, match="after the end of the run"):
        loaded(faulty("loss", "p: 0.1", "down", "at: {time: 5s}"))
    with pytest.raises(ScenarioError, match="begins at one instant"):
        loaded(faulty("loss", "p: 0.1", "up", "at: {time: 5us, shot: 3}"))
    with pytest.raises(ScenarioError, match="bursts cannot be so short"):
        loaded(faulty("loss", "p: 0.9, burst: {frames: 2}", "up"))
    with pytest.raises(ScenarioError, match="run into each other"):
        loaded(faulty("pause", "value: 3us, every: 4us", "up"))
    rc = (
        "system.links.up.profile=rocev2-rc-write-imm",
        "system.links.down.profile=rocev2-rc-send",
    )
    with pytest.raises(ScenarioError, match="truncate ends a reliable connection"):
        loaded(faulty("truncate", "p: 0.1, value: 8B", "up"), *rc)
    with pytest.raises(ScenarioError, match="does not model how a reliable connection repairs"):
        loaded(faulty("loss", "p: 0.1", "up"), *rc)
    loaded(faulty("bit_flip", "p: 0.1", "up", "caught_by: e2e_crc"), *rc)
    with pytest.raises(ScenarioError, match="whole words"):
        loaded(faulty("truncate", "p: 0.1, value: 3B", "up"))
