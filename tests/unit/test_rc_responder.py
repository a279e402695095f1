"""Rules of the RC responder, one by one, and against the recorded answers of Linux rdma_rxe."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from hil.link.endpoint import Completion
from hil.link.rc_requester import RcAttributes
from hil.link.rc_responder import Answer, Responder
from hil.link.slots import BASE_VA, Slots
from hil.wire.pcap import read_capture
from hil.wire.roce import Frame, Opcode, Packet, Target, parse_frame
from hil.wire.segments import send_packets, write_packets

PSN, MTU, STRIDE, RKEY = 2**24 - 2, 256, 1024, 0x77
TARGET = Target(2, RKEY, BASE_VA, STRIDE)
ACK, SEQUENCE, REQUEST, ACCESS, RNR = 0x1F, 0x60, 0x61, 0x62, 0x2C


@dataclass
class Bench:
    """A responder with four slots; PSNs are counted from its first one."""

    slots: Slots = field(default_factory=lambda: Slots(RKEY))
    completions: list[Completion] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.memory = self.slots.register(4, STRIDE)
        self.responder = Responder(PSN, self.slots, RcAttributes(path_mtu=MTU))

    def give(self, packet: Packet, *, ask: bool = True) -> tuple[int, int, int] | None:
        """One packet in; (PSN, syndrome, MSN) of the answer, PSN from the first one."""
        datagram = bytearray(packet.pack() + bytes(4))
        datagram[8] |= 0x80 * ask
        done, answer = self.responder.accept(memoryview(datagram), 5)
        self.completions += [] if done is None else [done]
        if answer is None:
            return None
        return (answer.psn - PSN) % 2**24, answer.syndrome, answer.msn

    def write(self, place: int, slot: int, size: int = 8, *, imm: bool = True) -> list[Packet]:
        payload = bytes((slot + k) % 256 for k in range(size))
        return write_packets(TARGET, (PSN + place) % 2**24, slot, payload, MTU, with_imm=imm)


def send(place: int, size: int) -> list[Packet]:
    return send_packets(2, (PSN + place) % 2**24, bytes(k % 251 for k in range(size)), MTU)


def changed(packet: Packet, **fields: object) -> Packet:
    names = {"bth": packet.bth, "reth": packet.reth, "imm": packet.imm, "payload": packet.payload}
    return Packet(**(names | fields))  # type: ignore[arg-type]


def test_a_message_completes_with_its_last_packet_and_counts_in_the_msn() -> None:
    bench = Bench()
    first, middle, last = bench.write(0, 2, 600)
    assert bench.give(first, ask=False) is None
    assert bench.give(middle) == (1, ACK, 0)
    assert not bench.completions
    assert bench.give(last) == (2, ACK, 1)
    (done,) = bench.completions
    assert (done.slot, done.length, done.psn, done.kind) == (2, 600, 0, "write_imm")
    assert done.imm == (0 << 12 | 2)
    assert done.header == bytes(range(2, 26))
    assert bytes(bench.memory[2 * STRIDE :][:600]) == bytes((2 + k) % 256 for k in range(600))
    assert bench.responder.expected == 1


def test_a_plain_write_counts_and_completes_nothing() -> None:
    bench = Bench()
    for k in range(3):
        (packet,) = bench.write(k, 1, imm=False)
        assert bench.give(packet) == (k, ACK, k + 1)
    assert bench.completions == []


def test_sends_fill_the_slots_in_turn() -> None:
    bench = Bench()
    place = 0
    for k, size in enumerate((0, 8, 600, 1024)):
        for packet in send(place, size):
            bench.give(packet)
            place += 1
        assert (bench.completions[k].slot, bench.completions[k].length) == (k, size)
        assert bytes(bench.memory[k * STRIDE :][:size]) == bytes(i % 251 for i in range(size))
    (again,) = send(place, 1)
    assert bench.give(again) == (place, RNR, 4)
    bench.slots.release(0)
    assert bench.give(again) == (place, ACK, 5)
    assert bench.completions[-1].slot == 0


def test_one_nak_until_the_gap_closes_and_one_more_for_the_next() -> None:
    bench = Bench()
    packets = [bench.write(k, 0, imm=False)[0] for k in range(8)]
    assert bench.give(packets[0]) == (0, ACK, 1)
    assert bench.give(packets[2]) == (1, SEQUENCE, 1)
    assert bench.give(packets[3]) is None
    assert bench.give(packets[2]) is None
    assert bench.give(packets[1]) == (1, ACK, 2)
    assert bench.give(packets[5]) == (2, SEQUENCE, 2)
    assert bench.responder.counts["rx_ahead"] == 4


def test_a_repetition_is_never_carried_out_and_answered_with_the_newest_psn() -> None:
    bench = Bench()
    packets = [bench.write(k, 0, imm=False)[0] for k in range(6)]
    for packet in packets:
        bench.give(packet)
    bench.memory[:8] = bytes(8)
    for k in (0, 3, 5):
        assert bench.give(packets[k], ask=False) == (5, ACK, 6)
    assert not any(bench.memory[:8])
    assert bench.responder.counts["rx_duplicate"] == 3


def test_an_owned_slot_means_not_ready_and_silence_for_what_follows() -> None:
    bench = Bench()
    bench.give(bench.write(0, 3)[0])
    second = bench.write(1, 3, 300)
    third = bench.write(3, 1)[0]
    bench.memory[3 * STRIDE : 3 * STRIDE + 8] = b"whatever"
    assert bench.give(second[0]) == (1, RNR, 1)
    assert bench.give(second[1]) is None
    assert bench.give(third) is None
    assert bench.give(bench.write(1, 3, imm=False)[0]) == (1, RNR, 1)
    assert bytes(bench.memory[3 * STRIDE :][:8]) == b"whatever"
    bench.slots.release(3)
    assert bench.give(second[0]) == (1, ACK, 1)
    assert bench.give(second[1]) == (2, ACK, 2)
    assert bench.give(third) == (3, ACK, 3)
    assert [done.slot for done in bench.completions] == [3, 3, 1]


def with_reth(packet: Packet, **fields: int) -> Packet:
    assert packet.reth is not None
    return changed(packet, reth=packet.reth._replace(**fields))


def with_opcode(packet: Packet, opcode: int) -> Packet:
    return changed(packet, bth=packet.bth._replace(opcode=opcode))


REFUSED: list[tuple[str, str, int, Callable[[Bench], list[Packet]]]] = [
    ("key", "drop_rkey", ACCESS, lambda b: [with_reth(b.write(0, 1)[0], rkey=1)]),
    ("below", "drop_bounds", ACCESS, lambda b: [with_reth(b.write(0, 1)[0], va=BASE_VA - STRIDE)]),
    (
        "above",
        "drop_bounds",
        ACCESS,
        lambda b: [with_reth(b.write(0, 1)[0], va=BASE_VA + 4 * STRIDE)],
    ),
    ("inside", "drop_bounds", ACCESS, lambda b: [with_reth(b.write(0, 1)[0], va=BASE_VA + 4)]),
    ("too long", "drop_bounds", ACCESS, lambda b: b.write(0, 1, STRIDE + 1)),
    ("2^64", "drop_bounds", ACCESS, lambda b: [with_reth(b.write(0, 1)[0], va=2**64 - 4)]),
    ("announced less", "drop_length", REQUEST, lambda b: [with_reth(b.write(0, 1)[0], length=7)]),
    ("announced more", "drop_length", REQUEST, lambda b: [with_reth(b.write(0, 1)[0], length=9)]),
    (
        "first overflows",
        "drop_length",
        REQUEST,
        lambda b: [with_reth(b.write(0, 1, 600)[0], length=255)],
    ),
    (
        "last too short",
        "drop_length",
        REQUEST,
        lambda b: [b.write(0, 1, 600)[0], with_psn(b.write(0, 1, 600)[2], 1)],
    ),
    (
        "first not full",
        "drop_length",
        REQUEST,
        lambda b: [changed(b.write(0, 1, 600)[0], payload=bytes(252))],
    ),
    (
        "middle not full",
        "drop_length",
        REQUEST,
        lambda b: [b.write(0, 1, 600)[0], changed(b.write(0, 1, 600)[1], payload=bytes(4))],
    ),
    (
        "last empty",
        "drop_length",
        REQUEST,
        lambda b: [send(0, 600)[0], changed(send(-1, 600)[2], payload=b"", bth=last_bth())],
    ),
    ("send too long", "drop_length", REQUEST, lambda _: send(0, STRIDE + 1)),
    ("only above the MTU", "drop_length", REQUEST, lambda b: [too_long_only(b)]),
    ("middle first", "drop_opcode", REQUEST, lambda b: [with_psn(b.write(0, 1, 600)[1], 0)]),
    ("last first", "drop_opcode", REQUEST, lambda b: [with_psn(b.write(0, 1, 600)[2], 0)]),
    (
        "only inside",
        "drop_opcode",
        REQUEST,
        lambda b: [b.write(0, 1, 600)[0], b.write(1, 2)[0]],
    ),
    (
        "first inside",
        "drop_opcode",
        REQUEST,
        lambda b: [b.write(0, 1, 600)[0], b.write(1, 1, 600)[0]],
    ),
    (
        "send inside a write",
        "drop_opcode",
        REQUEST,
        lambda b: [b.write(0, 1, 600)[0], with_opcode(b.write(0, 1, 600)[1], 0x01)],
    ),
]


def last_bth() -> object:
    return send(-1, 600)[2].bth._replace(pad=0)


def with_psn(packet: Packet, place: int) -> Packet:
    return changed(packet, bth=packet.bth._replace(psn=(PSN + place) % 2**24))


def too_long_only(bench: Bench) -> Packet:
    (packet,) = write_packets(TARGET, PSN, 1, bytes(512), 512, with_imm=False)
    return packet


@pytest.mark.parametrize(
    ("what", "cause", "syndrome", "make"), REFUSED, ids=[r[0] for r in REFUSED]
)
def test_a_wrong_request_is_refused_for_good(
    what: str, cause: str, syndrome: int, make: Callable[[Bench], list[Packet]]
) -> None:
    bench = Bench()
    answers = [bench.give(packet) for packet in make(bench)]
    wrong = next(k for k, a in enumerate(answers) if a is not None and a[1] not in {ACK})
    assert answers[wrong] == (wrong, syndrome, 0), what
    assert cause in bench.responder.error
    assert bench.responder.counts[cause] == 1
    assert bench.completions == []
    assert bytes(bench.memory[2 * STRIDE :]) == bytes(2 * STRIDE)


@pytest.mark.parametrize("cut", [1, 2, 3, 9, 12, 25])
def test_a_packet_of_impossible_length_changes_nothing(cut: int) -> None:
    bench = Bench()
    datagram = bytearray(bench.write(0, 1)[0].pack() + bytes(4))
    assert bench.responder.accept(memoryview(datagram[:-cut]), 0) == (None, None)
    assert bench.responder.counts["drop_length"] == 1
    assert (bench.responder.error, bench.responder.expected) == ("", PSN)
    assert not any(bench.memory)


# -- recorded frames ------------------------------------------------------------------------------

CAPTURE = Path(__file__).parents[1] / "data" / "rxe" / "rxe.pcap"
FRAMES: list[Frame] = [parse_frame(frame.data) for frame in read_capture(CAPTURE)]
RXE = "192.0.2.2"


def recorded(numbers: range | tuple[int, ...]) -> list[Frame]:
    """Frames by their number in the README of the recording, from 1."""
    return [FRAMES[number - 1] for number in numbers]


def memory_of(frames: list[Frame], stride: int, n_slots: int) -> Slots:
    """Slots such that the recorded addresses are slots of ours."""
    reths = [frame.packet.reth for frame in frames if frame.packet.reth is not None]
    slots = Slots(reths[0].rkey, min(reth.va for reth in reths), unit=stride)
    slots.register(n_slots, stride)
    return slots


def replay(frames: list[Frame], slots: Slots, start: int, msn: int) -> list[Answer]:
    """Our answers to recorded requests; every slot is given back at once."""
    responder = Responder(start, slots, RcAttributes(path_mtu=1024))
    responder._msn = msn
    answers = []
    for frame in frames:
        datagram = bytearray(frame.packet.pack() + frame.icrc)
        done, answer = responder.accept(memoryview(datagram), 0)
        answers += [] if answer is None else [answer]
        if done is not None:
            assert bytes(slots.memory[done.slot * slots.stride :][: done.length])
            slots.release(done.slot)
    assert responder.error == ""
    return answers


GROUPS = [
    # name, requests, recorded answers, first PSN, MSN before, stride of the slots
    ("A", (1, 2), (3, 4), 0x2000, 0, 64),
    ("B", range(5, 10), (10,), 0x2032, 50, 8192),
    ("C", (11, 12, 13, 17), (14, 15, 16, 18), 0x2038, 52, 64),
    ("D", (19,), (20,), 0x207D, 121, 64),
    ("D again", (58,), (59,), 0x2087, 131, 64),
    ("F", (24, 26), (25, 27), 0x1000, 0, 64),
    ("I", range(40, 45), (45,), 0x1090, 144, 8192),
]


@pytest.mark.parametrize(
    ("name", "requests", "answers", "start", "msn", "stride"), GROUPS, ids=[g[0] for g in GROUPS]
)
def test_we_answer_recorded_requests_as_rxe_did(
    name: str,
    requests: tuple[int, ...],
    answers: tuple[int, ...],
    start: int,
    msn: int,
    stride: int,
) -> None:
    """Groups F and I were answered by the host; the others by rxe itself."""
    frames, wanted = recorded(requests), recorded(answers)
    assert name in {"F", "I"} or {frame.ip.src for frame in wanted} == {RXE}
    ours = replay(frames, memory_of(frames, stride, 64), start, msn)
    theirs = [(f.packet.bth.psn, *f.packet.aeth) for f in wanted if f.packet.aeth is not None]
    assert [tuple(answer) for answer in ours] == theirs


def test_a_receiver_that_is_not_ready_answers_as_rxe_but_once() -> None:
    """Group K: rxe sends a NAK 0x60 for the packet behind the refused one, we stay silent."""
    frames = recorded((49, 50, 51, 52))
    theirs = [(f.packet.bth.psn, *f.packet.aeth) for f in recorded((54, 55, 56)) if f.packet.aeth]
    slots = memory_of(frames, 64, 64)
    slots.owned[2] = 1  # "no receive posted" is for us: the slot is not free
    ours = replay(frames, slots, 0x1F4, 0)
    assert [tuple(answer) for answer in ours] == theirs


def test_every_acknowledgement_of_the_recording_is_one_that_we_know() -> None:
    kinds = {f.packet.aeth.syndrome for f in FRAMES if f.packet.aeth is not None}
    assert kinds == {ACK, RNR, SEQUENCE}
    assert all(
        (f.packet.bth.opcode == Opcode.RC_ACKNOWLEDGE) == (f.packet.aeth is not None)
        for f in FRAMES
    )
