"""Injector faults that scenarios do not have: each caught at three sizes by its detector alone."""

from __future__ import annotations

import pytest

from hil.link.endpoint import Transport
from hil.link.faults import FaultPlan, Faulty
from hil.link.virtual import VirtualEndpoint, virtual_pair
from hil.timebase import PS_PER_MS, PS_PER_US, monotonic_ps
from hil.verdict.detectors import alarms_of

FRAMES, SLOTS = 400, 64
WRAP = 0xFFFFF0


def joined(
    transport: Transport = "uc", slots: int = SLOTS
) -> tuple[VirtualEndpoint, VirtualEndpoint]:
    rack, node = virtual_pair(psn_starts=(WRAP, WRAP), transport=transport)
    node.register(slots, 128)
    rack.register(SLOTS, 128)
    rack.connect(node.address())
    node.connect(rack.address())
    return rack, node


def fired(
    plan: FaultPlan,
    *,
    transport: Transport = "uc",
    withhold_ps: int = 0,
    frames: int = FRAMES,
    slots: int = SLOTS,
) -> dict[str, int]:
    """Alarms of detectors that read endpoints, with the PSN audit in place of the node's."""
    plain, node_end = joined(transport, slots)
    rack, node = Faulty(plain, plan), Faulty(node_end, FaultPlan(), withhold_ps=withhold_ps)
    taken = 0
    until_ps = monotonic_ps() + 3000 * PS_PER_MS

    def serve() -> int:
        done = node.poll(SLOTS)
        for one in done:
            if not one.busy:
                node.release(one.slot)
        rack.poll(SLOTS)
        return len(done)

    for i in range(frames):
        rack.post_write_imm(bytes(40), i % slots)
        taken += serve()
    while transport == "rc" and taken < frames and monotonic_ps() < until_ps:
        taken += serve()
    rack.flush()
    serve()
    counts = {f"rack.link.{name}": n for name, n in rack.counters().items()}
    seen = node.counters()
    counts |= {f"node.link.{name}": n for name, n in seen.items()}
    psn = {"lost": "psn_lost", "duplicate": "psn_dup", "reordered": "psn_reorder"}
    counts |= {f"node.{name}": seen[link] for name, link in psn.items()}
    if transport == "rc":
        assert taken == frames
    return {name: n for name, n in alarms_of(counts, FRAMES).events.items() if n}


@pytest.mark.parametrize("transport", ["uc", "rc"])
def test_clean_frames_over_a_psn_wrap_raise_no_alarm(transport: Transport) -> None:
    """F07: 16 frames before the wrap of 2^24; a compare that is not modular would see a gap."""
    assert fired(FaultPlan(), transport=transport) == {}


@pytest.mark.parametrize("frame", [0, 15, 16, 17])
def test_a_loss_at_the_wrap_is_one_gap_of_one(frame: int) -> None:
    assert fired(FaultPlan(frozenset({frame}))) == {"seq_gap": 1}


@pytest.mark.parametrize("count", [1, 20, 300])
def test_a_wrong_memory_key_is_another_stream(count: int) -> None:
    plan = FaultPlan(wrong_rkey={i: 1 << i % 32 for i in range(count)})
    assert fired(plan) == {"stream_id": count}


@pytest.mark.parametrize("count", [1, 20, 300])
def test_a_wrong_queue_pair_is_another_stream(count: int) -> None:
    plan = FaultPlan(wrong_qp={i: 1 << i % 24 for i in range(count)})
    assert fired(plan) == {"stream_id": count, "seq_gap": count}


@pytest.mark.parametrize("added", [-40, -8, 4, 100])
def test_another_length_is_seen(added: int) -> None:
    """The PSN arrives, so that no gap opens here; the message behind it is the application's."""
    assert fired(FaultPlan(resize={7: added, 9: added})) == {"frame_len": 2}


@pytest.mark.parametrize("back", [5000, 1 << 20, (1 << 23) - 1])
def test_a_psn_out_of_the_window_is_stale(back: int) -> None:
    """Later than the audit remembers; the immediate, which repeats the PSN, gives it away too."""
    alarms = fired(FaultPlan(wrong_psn={50: -back}))
    assert alarms.pop("seq_gap") == 1  # its own number is missing
    assert alarms == {"psn_window": 1}


@pytest.mark.parametrize("count", [1, 12, 40])
def test_a_reliable_connection_sends_again_what_was_lost(count: int) -> None:
    """F08: every ``FRAMES / count``-th frame is dropped; NAK, go-back-N, all arrive once."""
    plan = FaultPlan(frozenset([*range(3, FRAMES - 1, FRAMES // count)][:count]))
    alarms = fired(plan, transport="rc")
    assert alarms.pop("retx_cluster") >= len(plan.drop)
    assert set(alarms) <= {"seq_dup"}


@pytest.mark.parametrize("late_us", [2000, 5000, 20_000])
def test_starved_receives_make_a_reliable_peer_wait(late_us: int) -> None:
    """F09: slots come back late; the sender is told to come again, nothing is lost."""
    late_ps = late_us * PS_PER_US
    alarms = fired(FaultPlan(), transport="rc", withhold_ps=late_ps, frames=20, slots=2)
    assert alarms.pop("rnr_count") > 0
    assert set(alarms) <= {"retx_cluster", "seq_dup"}


@pytest.mark.parametrize("length_us", [10, 500, 5000])
def test_a_pause_holds_all_frames_in_order(length_us: int) -> None:
    plain, node = joined()
    rack = Faulty(plain, FaultPlan(hold=dict.fromkeys(range(5, 9), length_us * PS_PER_US)))
    begin_ps = monotonic_ps()
    for i in range(12):
        rack.post_write_imm(i.to_bytes(4, "little"), i)
    timer_ps = rack.next_timer_ps()
    if length_us > 1000:
        assert len(node.poll(20)) == 5
        assert timer_ps is not None
        assert timer_ps >= begin_ps + length_us * PS_PER_US
    order = []
    while len(order) < (7 if length_us > 1000 else 12):
        rack.poll(1)
        order += [int.from_bytes(one.header, "little") for one in node.poll(20)]
    assert order == list(range(12 - len(order), 12))
    assert monotonic_ps() >= begin_ps + length_us * PS_PER_US
    assert rack.counters()["pauses"] == 1
    assert rack.next_timer_ps() is None
