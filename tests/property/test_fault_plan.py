"""The injector itself: a plan does the same to datagrams and to plain numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hil.errors import UsageError
from hil.link.faults import FaultPlan, Faulty
from hil.link.sequence import SequenceAudit
from hil.link.virtual import virtual_pair


@st.composite
def plans(draw: st.DrawFn) -> tuple[FaultPlan, int]:
    frames = draw(st.integers(1, 24))
    what = draw(st.lists(st.sampled_from("-----xdrf"), min_size=frames, max_size=frames))
    delays = draw(st.lists(st.integers(0, 5), min_size=frames, max_size=frames))
    chosen = {kind: [i for i in range(frames) if what[i] == kind] for kind in "xdrf"}
    plan = FaultPlan(
        frozenset(chosen["x"]),
        {i: delays[i] for i in chosen["d"]},
        {i: delays[i] + 1 for i in chosen["r"]},
        dict.fromkeys(chosen["f"], 80),
    )
    return plan, frames


@settings(max_examples=200, deadline=None)
@given(plans())
def test_datagrams_arrive_in_the_order_of_the_plan(case: tuple[FaultPlan, int]) -> None:
    plan, frames = case
    plain, node = virtual_pair()
    node.register(1, 128)
    plain.register(1, 128)
    plain.connect(node.address())
    node.connect(plain.address())
    rack = Faulty(plain, plan)
    for i in range(frames):
        rack.post_send(i.to_bytes(4, "little"))
    rack.flush()
    order = [int.from_bytes(done.header, "little") for done in node.poll(1000)]
    assert order == plan.arrivals(frames).tolist()
    assert node.counters()["drop_icrc"] == len(plan.flip)
    rack.close()


def test_a_seeded_plan_has_exactly_the_faults_asked_for_each_countable_alone() -> None:
    kinds = {"drop": 30, "duplicate": 20, "reorder": 25, "flip": 10}
    plan = FaultPlan.seeded(7, 20_000, **kinds)
    assert {name: len(getattr(plan, name)) for name in kinds} == kinds
    assert plan == FaultPlan.seeded(7, 20_000, **kinds) != FaultPlan.seeded(8, 20_000, **kinds)
    places = np.sort([i for name in kinds for i in getattr(plan, name)])
    assert np.diff(places).min() > 8
    assert places[0] >= 8
    assert places[-1] < 20_000 - 16
    audit = SequenceAudit(24, 0)
    audit.update(plan.arrivals(20_000))
    counts = audit.counts()
    assert (counts["lost"], counts["duplicate"], counts["reordered"]) == (40, 20, 25)


def test_a_corrupt_frame_passes_every_check_of_the_transport() -> None:
    plain, node = virtual_pair()
    memory = node.register(4, 128)
    plain.register(1, 128)
    plain.connect(node.address())
    node.connect(plain.address())
    rack = Faulty(plain, FaultPlan(corrupt={1: 3, 2: 8 * 7}))
    for slot in range(2):
        rack.post_write_imm(bytes(8), slot)
    rack.post_send(bytes(8))
    assert [done.busy for done in node.poll(9)] == [False, False, True]
    assert memory[128:136].tobytes() == b"\x08" + bytes(7)
    assert {k: v for k, v in node.counters().items() if v} == {"rx_ok": 2, "rx_busy": 1}


def test_impossible_plans_are_refused() -> None:
    with pytest.raises(UsageError, match="one fault only"):
        FaultPlan(frozenset({1}), {1: 0})
    with pytest.raises(UsageError, match="impossible delay"):
        FaultPlan(reorder={1: 0})
    with pytest.raises(UsageError, match="impossible delay"):
        FaultPlan(duplicate={1: -1})
    with pytest.raises(UsageError, match="too many faults"):
        FaultPlan.seeded(1, 100, drop=50)
    plain, node = virtual_pair()
    node.register(1, 128)
    plain.register(1, 128)
    plain.connect(node.address())
    rack = Faulty(plain, FaultPlan(flip={0: 8 * 200}))
    with pytest.raises(UsageError, match="outside the datagram"):
        rack.post_send(b"x")
    with pytest.raises(UsageError, match="another stage"):
        rack.intercept(lambda datagram: [datagram])
    rack.intercept(None)
