"""Our rack against a model of NVIDIA's decoding server: what it must put up with, and how it ends.

Every shot is answered rightly or declared; the holes of the server are shown beside.
"""

from __future__ import annotations

import time

import numpy as np
import pytest

from hil.link.cudaq_udp import CudaqUdpEndpoint
from hil.link.endpoint import PeerAddress
from hil.node.config import NodeConfig
from hil.node.exchange import Plan
from hil.node.ledger import Batch, Ledger
from hil.timebase import PS_PER_MS, PS_PER_S
from hil.wire import rpc
from hil.wire.rpc import Status
from hil.wire.rpc_batch import build_enqueue_batch, build_get_batch, split_blocks
from tests.stand_ins.nvidia_server import NvidiaServer, UdpServer

SIZES = np.array([4, 4, 4])
R, VOLUME, SHOTS = 3, 12, 20
STAMP = 1 << 32 | 250


def parities(bits: list[int]) -> list[int]:
    """The server's 'decoder': three parities of the shot."""
    return [sum(bits[k::3]) % 2 for k in range(3)]


def config() -> NodeConfig:
    return NodeConfig.create(
        rack_address="127.0.0.2",
        node_address="127.0.0.1",
        network="cudaq_udp",
        ring_slots=64,
        block_detectors=((0, 1, 2, 3), (4, 5, 6, 7), (8, 9, 10, 11)),
        n_observables=3,
        envelope="nvidia",
        dem_text="not read here",
        primary="pymatching",
        mode="measure",
        deadline_ps=PS_PER_MS,
        answer_timeout_ps=PS_PER_S,
    )


def shots() -> np.ndarray:
    return np.random.default_rng(4).integers(0, 2, (SHOTS, VOLUME), np.uint8)


def plan(bits: np.ndarray) -> Plan:
    n = len(bits)
    counters = np.arange(n * (R + 1), dtype=np.uint64).reshape(n, R + 1)
    stamps = STAMP + np.arange(n * R, dtype=np.uint64).reshape(n, R)
    packed = split_blocks(np.packbits(bits, axis=1, bitorder="little"), SIZES)
    enqueue = build_enqueue_batch(
        packed, SIZES, counters=counters[:, :R], ptp_timestamps=stamps, envelope="nvidia"
    )
    get = build_get_batch(counters[:, R], stamps[:, -1], return_size=3, envelope="nvidia")
    return Plan(0, enqueue, get, np.zeros((n, R), np.int64))


def exchange(
    server: NvidiaServer, lose: set[int] = frozenset(), twice: set[int] = frozenset()
) -> tuple[Ledger, Batch]:
    """Send all shots, one message after the other; some are lost or copied on the way."""
    ledger, made = Ledger(config()), plan(shots())
    batch = ledger.open(made)
    for counter in range(SHOTS * (R + 1)):
        shot, block = divmod(counter, R + 1)
        message = made.get[shot] if block == R else made.enqueue[shot, block]
        ledger.sent(batch, shot, block, counter)
        for _ in range((counter not in lose) + (counter in twice)):
            reply = server.slot(message.tobytes())
            if reply is not None:
                ledger.reply(memoryview(rpc.pad(reply)), counter)
    ledger.declare_overdue(2 * PS_PER_S)
    return ledger, batch


def right(batch: Batch) -> np.ndarray:
    """Which shots carry the answer to their own bits: bool [n]."""
    want = np.array([parities(row.tolist()) for row in shots()], np.uint8)
    packed = np.packbits(want, axis=1, bitorder="little")
    return (batch.status_code == 0) & (packed == batch.prediction_b8).all(axis=1)


def server() -> NvidiaServer:
    return NvidiaServer(VOLUME, 3, parities)


def test_the_documented_exchange_byte_for_byte() -> None:
    model = NvidiaServer(12, 3, lambda _: [1, 0, 1])
    stamp = "fa00000001000000"
    enqueue = (
        f"52515543 82bed87e 22000000 07000000 {stamp} 0000000000000000 0700000000000000"
        "0000000000000000 0c00000000000000 8d09"
    )
    get = f"52515543 a15b2d88 11000000 08000000 {stamp} 0000000000000000 0300000000000000 01"
    reset = f"52515543 cf597a97 08000000 09000000 {stamp} 0000000000000000"
    for request, reply in (
        (get, f"53515543 04000000 00000000 08000000 {stamp}"),
        (enqueue, f"53515543 00000000 00000000 07000000 {stamp}"),
        (get, f"53515543 00000000 01000000 08000000 {stamp} 05"),
        (reset, f"53515543 00000000 00000000 09000000 {stamp}"),
    ):
        answer = model.slot(bytes.fromhex(request))
        assert answer is not None
        assert answer.hex() == reply.replace(" ", "")


def test_a_clean_exchange_is_answered_rightly() -> None:
    ledger, batch = exchange(server())
    assert right(batch).all()
    assert ledger.count["reply_ok"] == SHOTS * (R + 1)
    assert batch.open_shots == 0


def test_a_lost_block_leaves_declared_shots_and_no_wrong_answer() -> None:
    """NOT_READY clears nothing: the server completes the volume with the next shot's bits."""
    model = server()
    _, batch = exchange(model, lose={5 * (R + 1) + 1})
    assert right(batch).tolist() == [True] * 5 + [False] * (SHOTS - 5)
    assert set(batch.status_code[5:]) == {Status.NOT_READY}
    assert batch.settled.all()
    assert model.decoders[0].decodes > 5, "it decoded shots spliced from two, and said so nowhere"


def test_a_copy_makes_the_server_fail_and_latch() -> None:
    """The volume overflows; the reply to the enqueue is 0 all the same."""
    ledger, batch = exchange(server(), twice={5 * (R + 1) + 2})
    assert right(batch).tolist() == [True] * 5 + [False] * (SHOTS - 5)
    assert batch.status_code[5] in (Status.INTERNAL_ERROR, Status.NOT_READY)
    assert (batch.status_code[5:] != 0).all()
    assert not batch.refused.any(), "every enqueue was answered 0"
    assert ledger.count["reply_duplicate"] == 1


def test_a_loss_and_a_copy_in_one_shot_pass_the_server_unseen() -> None:
    """Why our node compares the counter: this server answers 0 with the wrong bits."""
    _, batch = exchange(server(), lose={5 * (R + 1) + 1}, twice={5 * (R + 1)})
    assert (batch.status_code == 0).all()
    assert right(batch).sum() == SHOTS - 1


def test_no_reply_is_a_shot_declared_by_the_rack() -> None:
    """Unknown functions and lost requests: the server stays silent, the rack times out."""
    ledger, batch = exchange(server(), lose={7 * (R + 1) + R})
    assert ledger.count["answers_missing"] == 1
    assert batch.status_code[7] == -1000
    assert batch.settled.all()
    model = server()
    broken = bytearray(plan(shots()).enqueue[0, 0].tobytes())
    broken[0] ^= 1
    assert model.slot(bytes(broken)) is None
    broken[0] ^= 1
    broken[4] ^= 1
    assert model.slot(bytes(broken)) is None
    assert model.silent == 2


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"decoder_id": 1}, Status.INVALID_DECODER),
        ({"decoder_id": -1}, Status.INVALID_DECODER),
        ({"mapping_id": 1}, Status.BAD_REQUEST),
        ({"num_syndromes": 0}, Status.BAD_REQUEST),
        ({"num_syndromes": 999}, Status.BAD_REQUEST),
    ],
)
def test_other_statuses_of_the_server_are_booked(changes: dict[str, int], status: int) -> None:
    ledger, made = Ledger(config()), plan(shots()[:1])
    batch = ledger.open(made)
    ledger.sent(batch, 0, 0, 0)
    fields = {"decoder_id": 0, "counter": 0, "num_syndromes": 4, "bits": b"\1", "mapping_id": 0}
    request = rpc.EnqueueSyndromes(
        request_id=0, ptp_timestamp=STAMP, envelope=None, **{**fields, **changes}
    )
    reply = server().slot(rpc.pad(rpc.build_request(request)))
    assert reply is not None
    assert rpc.parse_response(reply, "nvidia").status == status
    ledger.reply(memoryview(rpc.pad(reply)), 1)
    assert (ledger.count["reply_error"], ledger.count["reply_malformed"]) == (1, 0)


@pytest.mark.live
def test_over_plain_udp_every_datagram_is_one_slot() -> None:
    made, ledger = plan(shots()), Ledger(config())
    batch = ledger.open(made)
    with UdpServer(server()) as there:
        rack = CudaqUdpEndpoint("127.0.0.2")
        memory = rack.register(16, 256)
        rack.connect(PeerAddress(there.host, there.port, 0, 0, 0, 0, 256, 8))
        for counter in range(SHOTS * (R + 1)):
            shot, block = divmod(counter, R + 1)
            message = made.get[shot] if block == R else made.enqueue[shot, block]
            ledger.sent(batch, shot, block, counter)
            rack.post_write_imm(message.tobytes(), counter % 8)
            until = time.monotonic() + 5
            while not (found := rack.poll(4)) and time.monotonic() < until:
                pass
            for done in found:
                ledger.reply(memory[done.slot * 256 : done.slot * 256 + done.length], counter)
                rack.release(done.slot)
        rack.close()
    assert right(batch).all()
    assert there.lengths == {256}
    assert there.dropped == 0
