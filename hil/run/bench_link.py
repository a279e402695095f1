"""Cost of RoCEv2 framing beside bare UDP of the same sizes, measured side by side in one run.

Two processes on loopback, this one and a peer. Streams, in packets per second, at most
:data:`WINDOW` packets under way: ``raw``, UDP_SEGMENT / UDP_GRO of ready-made bytes that nobody
reads; ``bare``, the same calls with the same payloads gathered into the datagrams and scattered
into the slots of a ring; ``bulk``, our endpoint that does this with headers, ICRC, checks and slot
ownership; ``single``, our endpoint with one packet per system call. Round trips, one under way,
both ends asleep until something comes: bare UDP datagrams, and our frames (write with immediate
one way, send the other).
Methods alternate; medians of the repeats count. Loopback says nothing about an RDMA device.
"""

from __future__ import annotations

import multiprocessing
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from multiprocessing.sharedctypes import Synchronized
from statistics import median
from typing import Any, Final, Literal, TypeAlias, cast

import numpy as np

from hil.errors import LinkError
from hil.link.bulk import SEGMENTS, BulkSoftRoceEndpoint, Run
from hil.link.endpoint import PeerAddress
from hil.link.soft_roce import SoftRoceEndpoint
from hil.seeds import generator

PAYLOAD_BYTES: Final = 64
PACKET_BYTES: Final = 12 + 16 + 4 + PAYLOAD_BYTES + 4
WINDOW: Final = 2000
ROUND_TRIPS: Final = 2000
_CHUNK: Final = 15 * SEGMENTS
_SLOTS: Final = 4096
_UDP_SEGMENT: Final = 103
_UDP_GRO: Final = 104
_ANCILLARY: Final = [(socket.IPPROTO_UDP, _UDP_SEGMENT, struct.pack("=H", PACKET_BYTES))]
_HOSTS: Final = ("127.77.0.1", "127.77.0.2")
_BARE_PORT: Final = 4792
_STALL_S: Final = 20.0

Method: TypeAlias = Literal["raw", "bare", "bulk", "single"]
METHODS: Final[tuple[Method, ...]] = ("raw", "bare", "bulk", "single")


@dataclass(frozen=True, slots=True)
class Stream:
    """One method: packets per second, processor microseconds per packet of either end."""

    method: Method
    rate: float
    sender_us: float
    receiver_us: float


@dataclass(frozen=True, slots=True)
class LinkBench:
    """Result of :func:`bench_link`.

    Attributes:
        streams: medians per method.
        bulk_to_raw: rate of the bulk endpoint / raw rate; median of the repeats.
        bulk_to_bare: rate of the bulk endpoint / bare rate.
        bulk_to_single: rate of the bulk endpoint / rate of one packet per call.
        bare_p50_us: round trip of bare UDP, p50.
        roce_p50_us: round trip of our frames, p50.
        roce_p99_us: the same, p99.
        round_trip: ``roce_p50_us / bare_p50_us``; median of the repeats.
        packets: packets per stream and repeat (fewer for ``single``).
        repeats: alternations.
    """

    streams: tuple[Stream, ...]
    bulk_to_raw: float
    bulk_to_bare: float
    bulk_to_single: float
    bare_p50_us: float
    roce_p50_us: float
    roce_p99_us: float
    round_trip: float
    packets: int
    repeats: int


def bench_link(
    *, packets: int = 480_000, repeats: int = 5, tell: Callable[[str], None] = lambda _text: None
) -> LinkBench:
    """Measure all methods.

    Args:
        packets: per stream and repeat; a tenth of it one packet per call.
        repeats: alternations.
        tell: receives progress lines.

    Raises:
        LinkError: an address is taken, or the peer stopped.
    """
    rates: dict[Method, list[Stream]] = {method: [] for method in METHODS}
    bare_us, roce_us = [], []
    with _peer() as peer:
        for method in METHODS:  # compiles, warms caches
            peer.stream(method, 4 * _CHUNK)
        for k in range(repeats):
            tell(f"repeat {k + 1} of {repeats}")
            for method in METHODS:
                n = packets // 10 if method == "single" else packets
                rates[method].append(peer.stream(method, n))
            bare_us.append(peer.bare_round_trips())
            roce_us.append(peer.roce_round_trips())
    p50 = [
        (float(np.median(b)), float(np.median(r))) for b, r in zip(bare_us, roce_us, strict=True)
    ]
    return LinkBench(
        streams=tuple(_median_stream(method, rates[method]) for method in METHODS),
        bulk_to_raw=_ratio(rates, "raw"),
        bulk_to_bare=_ratio(rates, "bare"),
        bulk_to_single=_ratio(rates, "single"),
        bare_p50_us=median(bare for bare, _ in p50),
        roce_p50_us=median(roce for _, roce in p50),
        roce_p99_us=median(float(np.quantile(times, 0.99)) for times in roce_us),
        round_trip=median(roce / bare for bare, roce in p50),
        packets=packets,
        repeats=repeats,
    )


def as_data(result: LinkBench) -> dict[str, object]:
    """JSON form of :func:`bench_link`."""
    return {
        "bench": "link",
        "payload_bytes": PAYLOAD_BYTES,
        "datagram_bytes": PACKET_BYTES,
        "segments_per_call": SEGMENTS,
        "window_packets": WINDOW,
        **asdict(result),
    }


def _ratio(rates: Mapping[Method, Sequence[Stream]], other: Method) -> float:
    pairs = zip(rates["bulk"], rates[other], strict=True)
    return median(bulk.rate / one.rate for bulk, one in pairs)


def _median_stream(method: Method, all_of: list[Stream]) -> Stream:
    columns = ("rate", "sender_us", "receiver_us")
    return Stream(method, *(median(getattr(one, name) for one in all_of) for name in columns))


# -- this end -------------------------------------------------------------------------------------


class _Peer:
    """This end of all measurements, and the line to the other one."""

    def __init__(self, line: Connection, arrived: Synchronized[int], stack: ExitStack) -> None:
        self._line, self._arrived = line, arrived
        self._bare = stack.enter_context(_bare_socket(_HOSTS[0]))
        self._there = (_HOSTS[1], _BARE_PORT)
        self._single = SoftRoceEndpoint(_HOSTS[0])
        stack.callback(self._single.close)
        self._bulk = BulkSoftRoceEndpoint(_HOSTS[0], port=_BARE_PORT + 1)
        stack.callback(self._bulk.close)
        for endpoint in (self._single, self._bulk):
            endpoint.register(16, PAYLOAD_BYTES)
            line.send(asdict(endpoint.address()))
            endpoint.connect(PeerAddress(**self._said()))
        rng = generator(0, "bench", "link")
        self._payloads = rng.integers(0, 256, (_CHUNK, PAYLOAD_BYTES), np.uint8)

    def stream(self, method: Method, packets: int) -> Stream:
        """Send at least so many packets and wait until the peer has them all."""
        packets = -(-packets // _CHUNK) * _CHUNK
        self._arrived.value = 0
        self._line.send((method, packets))
        self._said()  # the peer listens
        send = {
            "raw": self._send_raw,
            "bare": self._send_bare,
            "bulk": self._send_bulk,
            "single": self._send_single,
        }
        wall, cpu = time.perf_counter(), time.process_time()
        send[method](packets)
        self._wait_for(packets)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        receiver_s = float(self._said())
        return Stream(method, packets / wall, cpu / packets * 1e6, receiver_s / packets * 1e6)

    def bare_round_trips(self) -> list[float]:
        """Microseconds of each round trip of one datagram over blocking sockets."""
        self._line.send(("bare_echo", ROUND_TRIPS))
        self._said()
        times, datagram = [], bytes(PACKET_BYTES)
        self._bare.settimeout(_STALL_S)
        for _ in range(ROUND_TRIPS):
            begin = time.perf_counter()
            self._bare.sendto(datagram, self._there)
            self._bare.recvfrom_into(bytearray(PACKET_BYTES))
            times.append((time.perf_counter() - begin) * 1e6)
        self._said()
        return times

    def roce_round_trips(self) -> list[float]:
        """Microseconds of each round trip of our frames."""
        self._line.send(("roce_echo", ROUND_TRIPS))
        self._said()
        prepared = self._single.prepare(self._payloads[:16], np.arange(16))
        times = []
        for k in range(ROUND_TRIPS):
            begin = time.perf_counter()
            self._single.post(prepared, k % 16)
            done = _next(self._single)
            times.append((time.perf_counter() - begin) * 1e6)
            self._single.release(done)
        self._said()
        return times

    def _send_raw(self, packets: int) -> None:
        data = memoryview(bytearray(PACKET_BYTES * SEGMENTS))
        self._bare.settimeout(None)
        for sent in range(0, packets, _CHUNK):
            self._wait_for(sent + _CHUNK - WINDOW)
            for _ in range(0, _CHUNK, SEGMENTS):
                self._bare.sendmsg([data], _ANCILLARY, 0, self._there)

    def _send_bare(self, packets: int) -> None:
        rows = np.zeros((_CHUNK, PACKET_BYTES), np.uint8)
        data, step = rows.reshape(-1).data, PACKET_BYTES * SEGMENTS
        self._bare.settimeout(None)
        for sent in range(0, packets, _CHUNK):
            rows[:, -4 - PAYLOAD_BYTES : -4] = self._payloads
            self._wait_for(sent + _CHUNK - WINDOW)
            for at in range(0, len(data), step):
                self._bare.sendmsg([data[at : at + step]], _ANCILLARY, 0, self._there)

    def _send_bulk(self, packets: int) -> None:
        for first in range(0, packets, _CHUNK):
            prepared = self._bulk.prepare(self._payloads, (first + np.arange(_CHUNK)) % _SLOTS)
            self._wait_for(first + _CHUNK - WINDOW)
            self._bulk.post_many(prepared)

    def _send_single(self, packets: int) -> None:
        for first in range(0, packets, _CHUNK):
            prepared = self._single.prepare(self._payloads, (first + np.arange(_CHUNK)) % _SLOTS)
            for k in range(_CHUNK):
                self._wait_for(first + k - WINDOW)
                self._single.post(prepared, k)

    def _wait_for(self, packets: int) -> None:
        if self._arrived.value >= packets:
            return
        until_s = time.monotonic() + _STALL_S
        while self._arrived.value < packets:
            os.sched_yield()
            if time.monotonic() > until_s:
                raise LinkError(
                    "packets do not arrive", got=f"{self._arrived.value} of {packets} in time"
                )

    def _said(self) -> Any:  # noqa: ANN401 - whatever came through the pipe
        if not self._line.poll(_STALL_S):
            raise LinkError("the peer of the bench says nothing")
        said = self._line.recv()
        if isinstance(said, str):
            raise LinkError("the peer of the bench stopped", got=said)
        return said


@contextmanager
def _peer() -> Iterator[_Peer]:
    context = multiprocessing.get_context("spawn")
    line, other = context.Pipe()
    arrived = cast("Synchronized[int]", context.Value("q", 0, lock=False))
    process = context.Process(target=_serve, args=(other, arrived), daemon=True)
    process.start()
    other.close()
    try:
        with ExitStack() as stack:
            yield _Peer(line, arrived, stack)
            line.send(None)
    finally:
        line.close()
        process.join(_STALL_S)
        if process.is_alive():
            process.kill()
            process.join()


@contextmanager
def _bare_socket(host: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 << 20)
        opened.bind((host, _BARE_PORT))
        yield opened


def _next(endpoint: SoftRoceEndpoint) -> int:
    """Sleep until one completion is there; its slot."""
    listen = [endpoint.fileno()]
    while select.select(listen, (), (), _STALL_S)[0]:
        for done in endpoint.poll(1):
            return done.slot
    raise LinkError("no frame came in time")


# -- the other end --------------------------------------------------------------------------------


def _serve(line: Connection, arrived: Synchronized[int]) -> None:
    """The peer: sinks and echoes, as it is told; ends when it is told nothing."""
    try:
        with ExitStack() as stack:
            bare = stack.enter_context(_bare_socket(_HOSTS[1]))
            single = SoftRoceEndpoint(_HOSTS[1])
            stack.callback(single.close)
            bulk = BulkSoftRoceEndpoint(_HOSTS[1], port=_BARE_PORT + 1)
            stack.callback(bulk.close)
            for endpoint in (single, bulk):
                endpoint.register(_SLOTS, PAYLOAD_BYTES)
                line.send(asdict(endpoint.address()))
                endpoint.connect(PeerAddress(**line.recv()))
            while (order := line.recv()) is not None:
                what, packets = order
                line.send(0.0)
                begin = time.process_time()
                if what in ("raw", "bare"):
                    _sink_bare(bare, packets, arrived, moved=what == "bare")
                elif what == "bulk":
                    _sink_bulk(bulk, packets, arrived)
                elif what == "single":
                    _sink_single(single, packets, arrived)
                elif what == "bare_echo":
                    _echo_bare(bare, packets)
                else:
                    _echo_roce(single, packets)
                line.send(time.process_time() - begin)
    except (EOFError, BrokenPipeError):
        return
    except Exception as error:  # noqa: BLE001 - told to the other end
        line.send(f"{type(error).__name__}: {error}")


def _sink_bare(
    opened: socket.socket, packets: int, arrived: Synchronized[int], *, moved: bool
) -> None:
    opened.setsockopt(socket.IPPROTO_UDP, _UDP_GRO, 1)
    opened.settimeout(_STALL_S)
    buffer, count = bytearray(0x10000), 0
    rows = np.frombuffer(buffer, np.uint8)
    slots = np.zeros((_SLOTS, 2 * PAYLOAD_BYTES), np.uint8)
    while count < packets:
        length, ancillary, _, _ = opened.recvmsg_into([buffer], 64)
        size = struct.unpack("=i", ancillary[0][2])[0] if ancillary else length
        n, at = length // size, count % _SLOTS
        if moved:
            found = rows[: n * size].reshape(n, size)[:, -4 - PAYLOAD_BYTES : -4]
            slots[at : at + n, :PAYLOAD_BYTES] = found
        count += n
        arrived.value = count
    opened.setsockopt(socket.IPPROTO_UDP, _UDP_GRO, 0)


def _sink_bulk(endpoint: BulkSoftRoceEndpoint, packets: int, arrived: Synchronized[int]) -> None:
    count, listen = 0, [endpoint.fileno()]
    while count < packets:
        found = endpoint.poll_many(WINDOW)
        for one in found:
            if isinstance(one, Run):
                endpoint.release_many(one.slots)
                count += len(one)
            else:
                endpoint.release(one.slot)
                count += 1
            arrived.value = count
        if not found:
            select.select(listen, (), (), _STALL_S)


def _sink_single(endpoint: SoftRoceEndpoint, packets: int, arrived: Synchronized[int]) -> None:
    count, listen = 0, [endpoint.fileno()]
    while count < packets:
        found = endpoint.poll(SEGMENTS)
        for one in found:
            endpoint.release(one.slot)
        count += len(found)
        arrived.value = count
        if not found:
            select.select(listen, (), (), _STALL_S)


def _echo_bare(opened: socket.socket, packets: int) -> None:
    opened.settimeout(_STALL_S)
    buffer = bytearray(PACKET_BYTES)
    for _ in range(packets):
        length, sender = opened.recvfrom_into(buffer)
        opened.sendto(memoryview(buffer)[:length], sender)


def _echo_roce(endpoint: SoftRoceEndpoint, packets: int) -> None:
    prepared = endpoint.prepare(np.zeros((1, PAYLOAD_BYTES), np.uint8), None, "send")
    for _ in range(packets):
        slot = _next(endpoint)
        endpoint.post(prepared, 0)
        endpoint.release(slot)
