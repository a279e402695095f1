"""The verbs endpoint over a queue pair that is played here, its probe, the names of constants."""

from __future__ import annotations

import sys
import types
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from hil.errors import LinkError, WireError
from hil.link import verbs_queue
from hil.link.endpoint import Endpoint, PeerAddress
from hil.link.packets import COUNTERS
from hil.link.sequence import Arrival
from hil.link.verbs import VerbsEndpoint, probe
from hil.link.verbs_queue import Got, VerbsQueue, VerbsUnavailableError
from hil.wire.roce import slot_imm

PSN_START = 0xFFFFFE
STRIDE, SLOTS = 4096, 4
PEER = PeerAddress("192.0.2.1", 4791, 0x31, 0xFFFFF0, 0x5150, 0x7F00_0000, STRIDE, SLOTS)


class PlayedQueue:
    """Remembers what it was asked for; the test says what arrived."""

    def __init__(self, *arguments: object) -> None:
        self.arguments = arguments
        self.number, self.rkey, self.va, self.error = 0x15, 0x77, 0x5000_0000, ""
        self.memory = memoryview(bytearray(SLOTS * STRIDE))
        self.posted: list[tuple[object, ...]] = []
        self.released: list[tuple[int, str]] = []
        self.room = True
        self._got: deque[Got] = deque()

    def connect(self, *peer: object) -> None:
        self.posted.append(peer)

    def write(self, *what: object) -> bool:
        if self.room:
            self.posted.append(what)
        return self.room

    def send(self, data: bytes) -> bool:
        return self.write(data)

    def arrive(self, slot: int, psn: int, data: bytes) -> None:
        self.memory[slot * STRIDE : slot * STRIDE + len(data)] = data
        self._got.append(Got("write_imm", 0, slot_imm(psn, slot), len(data)))

    def poll(self, most: int) -> list[Got]:
        return [self._got.popleft() for _ in range(min(most, len(self._got)))]

    def release(self, slot: int, kind: str) -> None:
        self.released.append((slot, kind))

    def close(self) -> None:
        self.posted.append(("closed",))


@pytest.fixture
def end() -> Iterator[VerbsEndpoint]:
    made = VerbsEndpoint("rxe0", "192.0.2.2", psn_start=PSN_START, open_queue=PlayedQueue)
    made.register(SLOTS, STRIDE)
    made.connect(PEER)
    yield made
    made.close()
    made.close()


def played(end: VerbsEndpoint) -> PlayedQueue:
    queue = end._queue
    assert isinstance(queue, PlayedQueue)
    return queue


def test_it_is_an_endpoint_whose_address_is_that_of_its_queue_pair(end: VerbsEndpoint) -> None:
    assert isinstance(end, Endpoint)
    assert (end.transport, end.error, end.next_timer_ps(), end.fileno()) == ("rc", "", None, None)
    assert end.counters() == dict.fromkeys(COUNTERS, 0)
    assert end.address() == PeerAddress(
        "192.0.2.2", 4791, 0x15, PSN_START, 0x77, 0x5000_0000, STRIDE, SLOTS
    )
    assert played(end).arguments == (
        *("rxe0", "192.0.2.2", "rc", SLOTS, STRIDE, 256, 4096, PSN_START, 1024, 14, 7, 7, 12),
    )
    assert played(end).posted == [("192.0.2.1", 0x31, 0xFFFFF0)]


def test_posts_carry_address_key_and_the_immediate_of_their_last_packet(end: VerbsEndpoint) -> None:
    end.post_write_imm(b"short", 1)
    end.post_write_imm(bytes(2049), 3)  # three packets
    end.post_write(b"silent", 0)
    end.post_send(b"answer")
    prepared = end.prepare(np.full((1, 8), 7, np.uint8), np.array([2]))
    end.post(prepared, 0)
    end.post(end.prepare(np.zeros((1, 4), np.uint8), None, "send"), 0)
    assert played(end).posted[1:] == [
        (b"short", 0x7F00_0000 + STRIDE, 0x5150, slot_imm(0xFFFFF0, 1)),
        (bytes(2049), 0x7F00_0000 + 3 * STRIDE, 0x5150, slot_imm(0xFFFFF3, 3)),
        (b"silent", 0x7F00_0000, 0x5150, None),
        (b"answer",),
        (b"\x07" * 8, 0x7F00_0000 + 2 * STRIDE, 0x5150, slot_imm(0xFFFFF6, 2)),
        (bytes(4),),
    ]
    assert end.counters()["tx"] == 8


def test_a_post_without_room_is_refused_and_takes_no_number(end: VerbsEndpoint) -> None:
    played(end).room = False
    end.post_write_imm(b"x", 0)
    end.post_send(b"x")
    played(end).room = True
    end.post_write_imm(b"x", 0)
    counters = end.counters()
    assert (counters["tx"], counters["tx_refused"]) == (1, 2)
    assert played(end).posted[-1][-1] == slot_imm(0xFFFFF0, 0)


def test_what_does_not_fit_is_refused_before_it_is_posted(end: VerbsEndpoint) -> None:
    for wrong in (
        lambda: end.post_write_imm(bytes(STRIDE + 1), 0),
        lambda: end.post_write(b"", SLOTS),
        lambda: end.prepare(np.zeros((1, 4), np.uint8), np.array([-1])),
        lambda: end.prepare(np.zeros((1, 4), np.uint8), None),
        lambda: end.register(1, 1),
        lambda: end.release(0),
    ):
        with pytest.raises(LinkError):
            wrong()
    assert len(played(end).posted) == 1


def test_psns_are_taken_from_the_immediate_across_the_wrap(end: VerbsEndpoint) -> None:
    queue = played(end)
    queue.arrive(0, 0xFFFFFE, b"one")
    queue.arrive(1, 0x000001, bytes(2049))  # 0xFFFFFF, 0 and 1
    queue.arrive(2, 0x000004, b"after two were lost")
    first, second, third = end.poll(8)
    assert [done.psn for done in (first, second, third)] == [0xFFFFFE, 1, 4]
    assert [done.arrival for done in (first, second, third)] == [
        *(Arrival.IN_ORDER, Arrival.IN_ORDER, Arrival.GAP),
    ]
    assert (third.slot, third.header, third.length) == (2, b"after two were lost", 19)
    assert (end.counters()["psn_lost"], end.counters()["rx_ok"]) == (2, 3)


def test_a_slot_is_owned_until_released_and_a_write_into_it_says_busy(end: VerbsEndpoint) -> None:
    queue = played(end)
    queue.arrive(0, PSN_START, b"first")
    queue.arrive(0, PSN_START + 1, b"second")
    first, second = end.poll(8)
    assert (first.busy, second.busy) == (False, True)
    assert queue.released == [(0, "write_imm")]  # of the second: nobody else will
    end.release(0)
    assert queue.released == [(0, "write_imm")] * 2
    with pytest.raises(LinkError, match="not owned"):
        end.release(0)
    assert end.counters()["rx_busy"] == 1


def test_an_immediate_that_names_no_slot_is_dropped(end: VerbsEndpoint) -> None:
    queue = played(end)
    queue._got.append(Got("write_imm", 0, 0xFFFFFFFF, 4))
    queue._got.append(Got("send", 2, 0, 6))
    (done,) = end.poll(8)
    assert (done.kind, done.slot, done.psn) == ("send", 2, PSN_START)
    assert end.counters()["drop_imm"] == 1
    assert queue.released == [(4095, "write_imm")]


def test_packets_of_a_device_cannot_be_touched(end: VerbsEndpoint) -> None:
    end.intercept(None)
    for touch in (
        lambda: end.intercept(lambda datagram: [datagram]),
        lambda: end.seal(bytearray(16)),
        lambda: end.transmit(b""),
    ):
        with pytest.raises(LinkError, match="made by the device"):
            touch()


def test_without_memory_or_peer_it_says_what_to_do() -> None:
    made = VerbsEndpoint("rxe0", "192.0.2.2", open_queue=PlayedQueue)
    for early in (made.address, lambda: made.poll(1), lambda: made.connect(PEER)):
        with pytest.raises(LinkError, match=r"register\(\) first"):
            early()
    made.register(SLOTS, STRIDE)
    with pytest.raises(LinkError, match=r"connect\(\) first"):
        made.post_send(b"x")
    with pytest.raises(WireError, match="path MTU"):
        VerbsEndpoint("rxe0", "192.0.2.2", mtu_bytes=100)


def test_a_device_that_cannot_be_had_is_an_error_with_its_reason() -> None:
    def gone(*_: object) -> PlayedQueue:
        raise VerbsUnavailableError("device rxe9: Failed to find device rxe9")

    with pytest.raises(LinkError, match="cannot be used") as caught:
        VerbsEndpoint("rxe9", "192.0.2.2", open_queue=gone).register(1, 128)
    assert "rxe9" in caught.value.got


# -- pyverbs in all conditions -------------------------------------------------------------------


def fake(folder: Path, device: str) -> Path:
    package = folder / "pyverbs"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "device.py").write_text(device)
    return folder


@pytest.mark.parametrize(
    ("device", "why"),
    [
        ("raise ImportError('librdmacm.so.1: cannot open shared object file')", "librdmacm.so.1"),
        ("import os; os._exit(139)", "the probe died, status 139"),
        ("def get_device_list(): raise OSError('Failed to get devices list')", "Failed to get"),
        ("def get_device_list(): return []", "no verbs device"),
    ],
)
def test_the_probe_says_why_there_is_no_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, why: str
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(fake(tmp_path, device)))
    found = probe()
    assert found.names == ()
    assert why in found.why


def test_the_probe_lists_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "class D: name = b'rxe0'\ndef get_device_list(): return [D()]"
    monkeypatch.setenv("PYTHONPATH", str(fake(tmp_path, text)))
    assert probe().names == ("rxe0",)
    assert probe().why == ""


def test_without_pyverbs_the_queue_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyverbs", None)
    with pytest.raises(VerbsUnavailableError, match="cannot be imported"):
        VerbsQueue("rxe0", "192.0.2.2", "rc", 1, 128, 1, 128, 0, 1024, 14, 7, 7, 12)


@pytest.mark.parametrize("name", ["enums", "libibverbs_enums"])
def test_constants_come_from_enum_classes_of_either_module(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """rdma-core renamed the module; builds with Cython >= 3.1 have no flat names."""
    module = types.ModuleType(f"pyverbs.{name}")
    kind = types.SimpleNamespace(__members__={"IBV_QPT_RC": 2, "IBV_MTU_1024": 3})
    module.ibv_qp_type = kind
    for known in ("enums", "libibverbs_enums"):
        monkeypatch.setitem(sys.modules, f"pyverbs.{known}", module if known == name else None)
    package = types.ModuleType("pyverbs")
    setattr(package, name, module)
    monkeypatch.setitem(sys.modules, "pyverbs", package)
    assert verbs_queue._constants() == {"IBV_QPT_RC": 2, "IBV_MTU_1024": 3}


def test_addresses_are_mapped_into_gids() -> None:
    assert verbs_queue._mapped("192.0.2.2") == "0000:0000:0000:0000:0000:ffff:c000:0202"
