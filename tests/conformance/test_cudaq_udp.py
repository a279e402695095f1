"""Plain UDP, one datagram a slot: what of an endpoint holds there, and what it cannot see."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict

import numpy as np
import pytest

from hil.errors import LinkError
from hil.link.cudaq_udp import SHORT, CudaqUdpEndpoint
from hil.link.endpoint import Completion, Endpoint, PeerAddress
from hil.link.packets import COUNTERS
from hil.link.sequence import Arrival
from hil.timebase import monotonic_ps

SLOTS, STRIDE = 8, 256
Ends = tuple[CudaqUdpEndpoint, CudaqUdpEndpoint]


@pytest.fixture
def ends() -> Iterator[Ends]:
    """``rack`` and ``node``, connected; ports chosen by the system."""
    rack, node = CudaqUdpEndpoint("127.0.0.2"), CudaqUdpEndpoint("127.0.0.1")
    node.register(SLOTS, STRIDE)
    rack.register(4, 100)
    rack.connect(node.address())
    node.connect(PeerAddress(**asdict(rack.address())))
    yield rack, node
    rack.close()
    node.close()
    node.close()


def drain(endpoint: CudaqUdpEndpoint, wanted: int) -> list[Completion]:
    found: list[Completion] = []
    end = time.monotonic() + 5
    while len(found) < wanted and time.monotonic() < end:
        found += endpoint.poll(16)
    assert len(found) == wanted, endpoint.counters()
    return found


def content(endpoint: CudaqUdpEndpoint, slot: int) -> bytes:
    stride = endpoint.address().stride
    return bytes(endpoint._slots.memory[slot * stride : (slot + 1) * stride])


def test_it_is_an_endpoint_that_counts_all_names(ends: Ends) -> None:
    for endpoint in ends:
        assert isinstance(endpoint, Endpoint)
        assert endpoint.counters() == dict.fromkeys((*COUNTERS, SHORT), 0)
        assert (endpoint.transport, endpoint.error, endpoint.next_timer_ps()) == ("uc", "", None)
    rack, node = (endpoint.address() for endpoint in ends)
    assert (node.stride, node.n_slots, rack.stride, rack.n_slots) == (256, SLOTS, 128, 4)
    assert (node.qp, node.rkey, node.psn, node.base_va) == (0, 0, 0, 0)
    assert node.port > 1023


def test_a_datagram_always_has_the_full_length_of_the_peers_slot(ends: Ends) -> None:
    rack, node = ends
    seen: list[bytes] = []

    def note(datagram: bytes) -> list[bytes]:
        seen.append(datagram)
        return [datagram]

    rack.intercept(note)
    rack.post_write_imm(b"\x11" * 58, 0)
    prepared = rack.prepare(np.full((2, 64), 7, np.uint8), np.array([1, 2]))
    rack.post(prepared, 1)
    rack.post_send(b"\x22" * 256)
    assert [len(d) for d in seen] == [STRIDE] * 3
    before = monotonic_ps()
    done = drain(node, 3)
    assert [content(node, d.slot) for d in done] == seen
    assert [(d.slot, d.length, d.busy, d.imm, d.psn, d.arrival) for d in done] == [
        (slot, STRIDE, False, 0, 0, Arrival.IN_ORDER) for slot in range(3)
    ]
    assert all(d.t_rx_ps <= monotonic_ps() and d.t_rx_ps >= before - 10**12 for d in done)
    assert done[0].header == b"\x11" * 24
    counts = node.counters()
    assert (counts["rx_ok"], counts[SHORT], rack.counters()["tx"]) == (3, 0, 3)


def test_slots_fill_in_turn_whatever_slot_the_sender_names(ends: Ends) -> None:
    rack, node = ends
    for i in range(20):
        rack.post_write_imm(bytes([i]) * 30, (5 * i) % SLOTS)
        (done,) = drain(node, 1)
        assert done.slot == i % SLOTS
        node.release(done.slot)


def test_an_owned_slot_is_not_written_says_busy_and_keeps_its_turn(ends: Ends) -> None:
    rack, node = ends
    for i in range(SLOTS + 2):
        rack.post_write_imm(bytes([i]) * 30, i % SLOTS)
    done = drain(node, SLOTS + 2)
    assert [(d.slot, d.busy) for d in done[-3:]] == [(7, False), (0, True), (0, True)]
    assert done[-1].header == bytes([9]) * 24
    assert content(node, 0)[:30] == bytes([0]) * 30
    node.release(0)
    rack.post_write_imm(b"\x77" * 30, 0)
    assert [(d.slot, d.busy) for d in drain(node, 1)] == [(0, False)]
    assert node.counters()["rx_busy"] == 2
    for slot in (-1, SLOTS):
        with pytest.raises(LinkError, match="not owned"):
            node.release(slot)


def plain(to: CudaqUdpEndpoint, *datagrams: bytes, bind: str = "127.0.0.1") -> socket.socket:
    """A foreign sender."""
    sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sender.bind((bind, 0))
    sender.settimeout(5)
    address = to.address()
    for datagram in datagrams:
        sender.sendto(datagram, (address.host, address.port))
    return sender


def test_longer_datagrams_are_dropped_shorter_ones_filled_both_counted() -> None:
    node = CudaqUdpEndpoint("127.0.0.1", any_peer=True)
    memory = node.register(4, 128)
    memory[:] = b"\xee" * len(memory)
    with plain(node, b"\x01" * 129, b"\x02" * 58, b"", b"\x03" * 128):
        first, empty, last = drain(node, 3)
    assert content(node, first.slot) == b"\x02" * 58 + bytes(70), "nothing of the slot before"
    assert content(node, empty.slot) == bytes(128)
    assert content(node, last.slot) == b"\x03" * 128
    assert bytes(memory[384:]) == b"\xee" * 128
    counts = node.counters()
    assert (counts["drop_length"], counts[SHORT], counts["rx_ok"]) == (1, 2, 3)
    node.close()


def test_replies_go_to_the_sender_of_the_latest_datagram_that_was_taken() -> None:
    node = CudaqUdpEndpoint("127.0.0.1", any_peer=True)
    node.register(8, 256)
    node.connect(PeerAddress("127.0.0.2", 9, 0, 0, 0, 0, 256, 8))
    with pytest.raises(LinkError, match="nobody has sent"):
        node.post_send(b"x")
    with (
        plain(node, b"\x01" * 256) as one,
        plain(node, b"\x02" * 256) as two,
    ):
        drain(node, 2)
        node.post_send(b"reply to two")
        assert two.recv(1000) == b"reply to two".ljust(256, b"\0")
        with plain(node, b"\x03" * 257):  # too long: dropped, so its sender is not answered
            pass
        one.sendto(b"\x04" * 10, ("127.0.0.1", node.address().port))
        drain(node, 1)
        node.post_send(b"reply to one")
        assert one.recv(1000)[:12] == b"reply to one"
    node.close()


def test_a_connected_end_hears_its_peer_only(ends: Ends) -> None:
    rack, node = ends
    with plain(node, b"\x01" * 256, b"\x02" * 256):
        end = time.monotonic() + 5
        while node.counters()["drop_peer"] < 2 and time.monotonic() < end:
            assert node.poll(4) == []
    rack.post_write_imm(b"\x03" * 40, 0)
    (done,) = drain(node, 1)
    assert (done.slot, node.counters()["drop_peer"]) == (0, 2)


def test_what_it_cannot_see(ends: Ends) -> None:
    """Loss, copies, another order and flipped bits of the way leave no trace in its counters."""
    rack, node = ends
    held: list[bytes] = []

    def way(datagram: bytes) -> list[bytes]:
        number = datagram[0]
        if number == 1:
            return []  # lost
        if number == 2:
            return [datagram, datagram]
        if number == 3:
            held.append(datagram)
            return []
        return [datagram, *held] if number == 4 else [bytes([datagram[0] ^ 0x80]) + datagram[1:]]

    rack.intercept(way)
    for i in range(6):
        rack.post_write_imm(bytes([i]) * 30, i)
    done = drain(node, 6)
    assert [d.header[0] for d in done] == [0x80, 2, 2, 4, 3, 0x85]
    assert all(d.arrival is Arrival.IN_ORDER for d in done)
    counts = node.counters()
    assert counts == {**dict.fromkeys(counts, 0), "rx_ok": 6}


def test_a_full_socket_buffer_is_counted(ends: Ends) -> None:
    rack, node = ends
    node._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    for _ in range(200):
        rack.post_write_imm(bytes(10), 0)
    drained = 0
    while found := node.poll(64):
        drained += len(found)
    lost = node.counters()["buffer_overflow"]
    assert lost == 200 - drained > 0
    node.close()
    assert node.counters()["buffer_overflow"] == lost


def test_misuse_is_refused(ends: Ends) -> None:
    rack, node = ends
    with pytest.raises(LinkError, match="no silent writes"):
        rack.post_write(b"x", 0)
    for payload, slot in ((bytes(257), 0), (b"x", SLOTS), (b"x", -1)):
        with pytest.raises(LinkError, match="does not fit the peer"):
            rack.post_write_imm(payload, slot)
    with pytest.raises(LinkError, match="registered"):
        node.register(1, 1)
    with pytest.raises(LinkError, match="for kind 'write_imm'"):
        rack.prepare(np.zeros((1, 4), np.uint8), None)
    with pytest.raises(LinkError, match="its own peer"):
        node.connect(node.address())
    with pytest.raises(LinkError, match="slots of a peer"):
        node.connect(PeerAddress("127.0.0.3", 5, 0, 0, 0, 0, 10, 4))
    with pytest.raises(LinkError, match="loopback only"):
        CudaqUdpEndpoint("0.0.0.0")
    with pytest.raises(LinkError, match="port is taken"):
        CudaqUdpEndpoint("127.0.0.1", port=node.address().port)
    bare = CudaqUdpEndpoint("127.0.0.3", any_peer=True)
    with pytest.raises(LinkError, match="no memory"):
        bare.address()
    with pytest.raises(LinkError, match="no peer"):
        bare.post_send(b"x")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as anybody:
        for datagram in (b"", b"x"):
            anybody.sendto(datagram, ("127.0.0.3", bare._port))
    end = time.monotonic() + 5
    while bare.counters()["drop_length"] < 2 and time.monotonic() < end:
        assert bare.poll(4) == [], "there is no memory yet"
    bare.close()
    with pytest.raises(LinkError, match="closed"):
        bare.poll(1)


def test_a_file_number_becomes_readable_when_a_datagram_is_there(ends: Ends) -> None:
    rack, node = ends
    number = node.fileno()
    assert number is not None
    assert select.select([number], [], [], 0)[0] == []
    rack.post_write_imm(b"x", 0)
    assert select.select([number], [], [], 5)[0] == [number]
