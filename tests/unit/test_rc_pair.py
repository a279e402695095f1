"""An RC queue pair: which answers wait, and in which order they leave."""

from __future__ import annotations

from hil.link.rc_pair import RcPair
from hil.link.rc_requester import RcAttributes
from hil.link.slots import BASE_VA, Slots
from hil.wire.icrc import IcrcPath
from hil.wire.roce import Target, parse_packet
from hil.wire.segments import write_packets

PATH = IcrcPath("10.0.0.1", "10.0.0.2", 4791, 4791)
TARGET = Target(2, 7, BASE_VA, 128)
ACK, SEQUENCE, RNR = 0x1F, 0x60, 0x2C


def given(*psns: int, imm: bool = False) -> list[tuple[int, int, int]]:
    """(PSN, syndrome, MSN) of what a pair sends after writes with these PSNs, all at once."""
    slots = Slots(7)
    slots.register(1, 128)
    pair = RcPair(2, 0, slots, RcAttributes())
    pair.connect(Target(9, 0, 0, 128), 0)
    for psn in psns:
        (packet,) = write_packets(TARGET, psn, 0, b"payload.", 1024, with_imm=imm)
        datagram = bytearray(packet.pack() + bytes(4))
        datagram[8] |= 0x80
        PATH.seal(datagram)
        pair.accept(memoryview(datagram), PATH, 0)
    out = [parse_packet(datagram) for datagram in pair.outgoing(0)]
    assert {packet.bth.dest_qp for packet in out} <= {9}
    assert pair.outgoing(0) == []
    counts = pair.counts
    assert counts["tx_ack"] + counts["tx_nak"] + counts["tx_rnr"] == len(out)
    return [(packet.bth.psn, *packet.aeth) for packet in out if packet.aeth is not None]


def test_of_acks_that_wait_only_the_newest_is_sent() -> None:
    assert given(0, 1, 2, 3) == [(3, ACK, 4)]
    assert given(0, 1, 0, 0) == [(1, ACK, 2)]


def test_a_nak_is_never_swallowed_and_keeps_its_place() -> None:
    assert given(0, 2, 0) == [(0, ACK, 1), (1, SEQUENCE, 1), (0, ACK, 1)]
    assert given(0, 2, 3, 1) == [(0, ACK, 1), (1, SEQUENCE, 1), (1, ACK, 2)]
    assert given(0, 1, imm=True) == [(0, ACK, 1), (1, RNR, 1)]
