"""The virtual receivers count what real ones count: endpoints, node session, rack ledger.

The same plans act on 100 shots of real messages between two joined endpoints, one message at a
time, and on plain numbers. Every counter must agree, and every shot must have the same fate.
"""

from __future__ import annotations

import numpy as np
import pytest
from link_fault_cases import SIZES, faulty, loaded, parsed_once

from gpu_decoder.protocol import Reason
from hil.link.endpoint import Endpoint
from hil.link.faults import FaultPlan, Faulty
from hil.link.message_numbers import AnswerNumbers, RequestNumbers
from hil.link.virtual import virtual_pair
from hil.node.config import NodeConfig
from hil.node.exchange import Plan
from hil.node.ledger import Ledger
from hil.node.session import Session
from hil.node.shots import Action, Decode, Release, Reply, Start
from hil.rack.link_faults import LinkPlans, link_plans, with_link_faults
from hil.rack.timeline import Workload
from hil.run.faults import VirtualReceivers
from hil.timebase import PS_PER_MS, PS_PER_S, monotonic_ps
from hil.wire.rpc import ptp_from_ns
from hil.wire.rpc_batch import build_enqueue_batch, build_get_batch

__all__ = ["parsed_once"]
pytestmark = pytest.mark.usefixtures("parsed_once")

SHOTS, R, SLOTS = 100, 6, 64
PER_SHOT = R + 1
CONFIG = NodeConfig.create(
    rack_address="127.0.0.2",
    node_address="127.0.0.1",
    ring_slots=SLOTS,
    block_detectors=tuple((k,) for k in range(R)),
    n_observables=1,
    dem_text="",
    primary="pymatching",
    mode="measure",
    deadline_ps=PS_PER_S,
    stamp_shots=2 * SHOTS,
)


class Loop:
    """Rack and node in one thread, messages handed over one by one."""

    def __init__(self, plans: LinkPlans) -> None:
        rack, node = virtual_pair()
        self.node_memory = node.register(SLOTS, 256)
        self.rack_memory = rack.register(SLOTS, 128)
        self.rack: Endpoint = rack
        self.node: Endpoint = node
        if "up" in plans:
            self.rack = Faulty(rack, plans["up"], RequestNumbers())
        if "down" in plans:
            self.node = Faulty(node, plans["down"], AnswerNumbers(PER_SHOT))
        rack.connect(node.address())
        node.connect(rack.address())
        self.session, self.ledger = Session(CONFIG), Ledger(CONFIG)

    def run(self) -> None:
        counters = np.arange(SHOTS * PER_SHOT, dtype=np.uint64).reshape(SHOTS, PER_SHOT)
        stamps = np.uint64(ptp_from_ns(5_000_000_000)) + counters
        bits = np.zeros((SHOTS, R, 1), np.uint8)
        enqueue = build_enqueue_batch(
            bits,
            np.ones(R, np.int64),
            counters=counters[:, :R],
            ptp_timestamps=stamps[:, :R],
            board_mask=CONFIG.board_mask,
        )
        mask = CONFIG.board_mask
        get = build_get_batch(counters[:, R], stamps[:, R], return_size=1, board_mask=mask)
        self.batch = self.ledger.open(Plan(0, enqueue, get, np.zeros((SHOTS, R), np.int64)))
        for shot in range(SHOTS):
            for block in range(PER_SHOT):
                self.ledger.sent(self.batch, shot, block, monotonic_ps())
                data = enqueue[shot, block] if block < R else get[shot]
                self.rack.post_write_imm(data.tobytes(), (shot * PER_SHOT + block) % SLOTS)
                self.serve()
        until_ps = monotonic_ps() + 20 * PS_PER_MS  # what a pause still holds
        while monotonic_ps() < until_ps:
            self.serve()
        self.do(self.session.finish(self.ledger.next_counter))
        self.serve()

    def serve(self) -> None:
        while done := self.node.poll(1):
            (one,) = done
            now_ps = monotonic_ps()
            if one.busy:
                self.do(self.session.refused(one.header, one.slot, now_ps))
                continue
            at = one.slot * 256
            data = self.node_memory[at : at + one.length]
            self.do(self.session.message(data, one.slot, now_ps, now_ps))
        for one in self.rack.poll(64):
            at = one.slot * 128
            self.ledger.reply(self.rack_memory[at : at + one.length], one.t_rx_ps)
            self.rack.release(one.slot)

    def do(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Reply():
                    self.node.post_send(action.data)
                    if action.shot >= 0:
                        self.do(self.session.reply_sent(action.shot, monotonic_ps()))
                case Release():
                    for slot in action.slots:
                        self.node.release(slot)
                case Start():
                    now_ps = monotonic_ps()
                    done = Decode(now_ps, now_ps, b"\x01", Reason.NONE)
                    self.do(self.session.primary_done(action.shot, done, now_ps))

    def counters(self) -> dict[str, int]:
        rack = {f"rack.link.{name}": n for name, n in self.rack.counters().items()}
        node = {f"node.link.{name}": n for name, n in self.node.counters().items()}
        own = {f"node.{name}": n for name, n in self.session.counters().items()}
        ledger = {f"rack.{name}": n for name, n in self.ledger.count.items()}
        missing = int((~self.batch.settled).sum())
        return {**rack, **node, **own, **ledger, "rack.answers_missing": missing}


def fates(plans: LinkPlans) -> np.ndarray:
    """Bool [shots]: which shots a virtual run would leave without an answer."""
    none = np.zeros(SHOTS, np.int64)
    many = np.zeros((SHOTS, R), np.int64)
    work = Workload(
        0, many[None, None], many[None], many, many, *(none for _ in range(6)), none, none
    )
    suffered = with_link_faults(work, plans, R)
    assert suffered.lost is not None
    assert suffered.undelivered is not None
    return suffered.lost.any(axis=1) | suffered.undelivered


@pytest.mark.parametrize("link", ["up", "down"])
@pytest.mark.parametrize("kind", SIZES)
def test_virtual_receivers_count_what_real_ones_count(kind: str, link: str) -> None:
    """Gross faults: bursts, copies and late frames that cross the borders of shots."""
    size = SIZES[kind][2]
    plans = link_plans(loaded(faulty(kind, size, link), shots=SHOTS).scenario)
    loop = Loop(plans)
    loop.run()
    real = loop.counters()
    receivers = VirtualReceivers(plans)
    receivers.take(0, SHOTS)
    wanted = receivers.counters()
    differ = {name: (real.get(name, 0), n) for name, n in wanted.items() if real.get(name, 0) != n}
    if (kind, link) == ("reorder", "down"):  # replies to rounds overtake an answer too
        found, least = differ.pop("rack.link.psn_reorder", (1, 1))
        assert found >= least > 0
    assert differ == {}
    assert np.flatnonzero(loop.batch.status_code).tolist() == np.flatnonzero(fates(plans)).tolist()


def test_withheld_receives_make_the_peer_find_its_slots_owned() -> None:
    plain, node = virtual_pair()
    node.register(8, 128)
    plain.register(1, 128)
    plain.connect(node.address())
    node.connect(plain.address())
    starved = Faulty(node, FaultPlan(), withhold_ps=5 * PS_PER_MS)
    busy = 0
    for i in range(24):
        plain.post_write_imm(bytes(8), i % 8)
        (one,) = starved.poll(9)
        busy += one.busy
        if not one.busy:
            starved.release(one.slot)
    assert busy > 0
    assert node.counters()["rx_busy"] == busy
    timer_ps = starved.next_timer_ps()
    assert timer_ps is not None
    while monotonic_ps() < timer_ps + 5 * PS_PER_MS:
        pass
    starved.poll(1)
    plain.post_write_imm(bytes(8), 0)
    assert not starved.poll(1)[0].busy
