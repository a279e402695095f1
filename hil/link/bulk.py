"""Soft RoCE for bulk: many frames per system call, headers and checks compiled.

UDP_SEGMENT lets the kernel cut one buffer into datagrams, UDP_GRO lets it hand them back as one.
The kernel numbers the segments of a call 0, 1, 2, .. in the IPv4 identification (checked with a
packet socket, ``docs/wire.md``), so each ICRC is made with its own. Frames that are not plain
(lost neighbours, owned slots, sends, foreign ones) go through the code for single packets.
"""

from __future__ import annotations

import socket
import struct
from collections import deque
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from hil.errors import LinkError
from hil.link.compiled import Batches, seal_batch
from hil.link.endpoint import Completion, PeerAddress, Prepared
from hil.link.soft_roce import JUNK_PER_POLL, RECEIVE_BUFFER_BYTES, SoftRoceEndpoint
from hil.link.uc_pair import UcPair
from hil.timebase import monotonic_ps
from hil.wire.icrc import U4, IcrcPath

SEGMENTS: Final = 64
"""Most datagrams of one call: the limit of kernels before 6.9 (UDP_MAX_SEGMENTS)."""

_CALL_BYTES: Final = 0xFFFF - 28
_UDP_SEGMENT: Final = 103  # Linux <linux/udp.h>; the socket module lacks these
_UDP_GRO: Final = 104
_ANCILLARY_BYTES: Final = 64
_INT: Final = struct.Struct("=i")
_ROOM: Final = 0x10000
_CALLS: Final = 16
"""So many receive calls, of one room each, are made before their datagrams are looked at."""


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive receive completions of whole writes with immediate, none of them busy.

    ``slots``: i8[n] in order of arrival. Completion k has PSN ``psn + k`` (24 bit), the immediate
    that follows from PSN and slot, ``length`` payload bytes and the stamp ``t_rx_ps[k]`` (i8[n]).
    """

    slots: npt.NDArray[np.int64]
    psn: int
    length: int
    t_rx_ps: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.slots)


class _Batch(NamedTuple):
    """What one receive call gave: ``segments`` datagrams of ``size`` bytes from ``offset`` on.

    The last one may be shorter; it ends at ``end``. ``plain``: how many of the leading ones have
    the full size and an identification that is known.
    """

    offset: int
    end: int
    size: int
    segments: int
    plain: int
    t_rx_ps: int


class BulkSoftRoceEndpoint(SoftRoceEndpoint):
    """A soft-RoCE endpoint on UC that also posts and polls batches.

    The calls for single frames work as ever, at a higher price per call. Arguments as of
    :class:`hil.link.soft_roce.SoftRoceEndpoint`.

    Raises:
        LinkError: RC is asked for, or the kernel knows neither UDP_SEGMENT nor UDP_GRO.
    """

    def __init__(self, host: str, **options: Any) -> None:  # noqa: ANN401 - passed through
        super().__init__(host, **options)
        if not isinstance(self._pair, UcPair):
            self.close()
            raise LinkError("bulk transfer is for UC", got=self.transport, allowed="uc")
        self._uc = self._pair
        try:
            self._socket.setsockopt(socket.IPPROTO_UDP, _UDP_GRO, 1)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, RECEIVE_BUFFER_BYTES)
        except OSError as error:
            self.close()
            raise LinkError(
                "the kernel does not join datagrams (UDP_GRO)",
                got=str(error),
                fix="use Linux >= 5.0, or the network backend soft_roce",
            ) from error
        self._rooms = memoryview(bytearray(_CALLS * _ROOM))
        self._whole = np.frombuffer(self._rooms, np.uint8)
        self._pending: deque[_Batch] = deque()
        self._segment = 0  # of the first pending batch
        self._in_paths: list[IcrcPath] = []
        self._out_paths: list[IcrcPath] = []
        self._in_states: dict[int, U4] = {}
        self._out_states: dict[int, U4] = {}

    def connect(self, peer: PeerAddress) -> None:
        """See :meth:`hil.link.endpoint.Endpoint.connect`."""
        super().connect(peer)
        here, there = (self._host, self._port), (peer.host, peer.port)
        self._out_paths = _numbered(here, there)
        self._in_paths = _numbered(there, here)
        self._in_states, self._out_states = {}, {}

    def post_many(self, prepared: Prepared, first: int = 0, count: int | None = None) -> None:
        """Send prepared frames ``first`` .. in order, with the next PSNs; rows are written over.

        With a stage between endpoint and wire, or a tap, each frame is posted on its own.

        Raises:
            LinkError: the kernel refused them, or its queue stayed full for a second.
        """
        end = len(prepared) if count is None else min(first + count, len(prepared))
        if self._stage is not None or self._tap is not None:
            for index in range(first, end):
                self.post(prepared, index)
            return
        rows, width = prepared.rows[first:end], prepared.rows.shape[1]
        per_call = min(SEGMENTS, _CALL_BYTES // width)
        states = _states(self._out_states, self._out_paths, width)[:per_call]
        slots = None if prepared.kind == "send" else prepared.slots[first:end]
        seal_batch(rows, slots, self._uc.number(len(rows)), states)
        data = rows.reshape(-1).data
        ancillary = [(socket.IPPROTO_UDP, _UDP_SEGMENT, struct.pack("=H", width))]
        for begin in range(0, len(data), per_call * width):
            self._send_segments(data[begin : begin + per_call * width], ancillary)

    def poll_many(self, max_completions: int) -> list[Completion | Run]:
        """Completions that are there now, runs of plain ones as one item; never blocks.

        A call may return more than ``max_completions``, by less than one batch of the kernel.
        """
        found: list[Completion | Run] = []
        count = 0
        while count < max_completions and self._fill():
            run = self._take_run()
            if run is not None:
                found.append(run)
                count += len(run)
            elif (one := self._take_one()) is not None:
                found.append(one)
                count += 1
        return found

    def release_many(self, slots: npt.NDArray[np.int64]) -> None:
        """Give owned slots i8[n] back to the peer.

        Raises:
            LinkError: one of them is not owned; then none is released.
        """
        self._slots.release_many(slots)

    def poll(self, max_completions: int) -> list[Completion]:
        """See :meth:`hil.link.endpoint.Endpoint.poll`."""
        found: list[Completion] = []
        for _ in range(max_completions + JUNK_PER_POLL):
            if len(found) == max_completions or not self._fill():
                break
            one = self._take_one()
            if one is not None:
                found.append(one)
        return found

    # -- receiving ----------------------------------------------------------------------------

    def _fill(self) -> bool:
        """Make sure that datagrams of the peer lie in the buffer; False if there are none."""
        if self._pending:
            return True
        room = strangers = 0
        while room < _CALLS and strangers < JUNK_PER_POLL:
            at = room * _ROOM
            try:
                length, ancillary, _, sender = self._socket.recvmsg_into(
                    [self._rooms[at : at + _ROOM]], _ANCILLARY_BYTES
                )
            except BlockingIOError:
                break
            except OSError as error:
                raise LinkError("endpoint is closed", where=self._name(), got=str(error)) from error
            size = _INT.unpack(ancillary[0][2])[0] if ancillary else length or 1
            whole = length // size
            segments = whole if whole * size == length and whole else whole + 1
            if sender == self._peer_end:
                plain = min(whole, SEGMENTS)
                batch = _Batch(at, at + length, size, segments, plain, monotonic_ps())
                self._pending.append(batch)
                room += 1
            else:
                strangers += 1
                for _ in range(segments):
                    self._drop("drop_peer")
        return bool(self._pending)

    def _take_run(self) -> Run | None:
        size, first, same = self._pending[0].size, self._segment, list[_Batch]()
        for batch in self._pending:
            if batch.size != size:
                break
            same.append(batch)
            if batch.plain != batch.segments:
                break
        if self._tap is not None or first >= same[0].plain:
            return None
        offsets, counts, stamps = np.array([(b.offset, b.plain, b.t_rx_ps) for b in same]).T.copy()
        states = _states(self._in_states, self._in_paths, size)
        psn = self._uc.receiver.audit.expected or 0
        slots = self._uc.receiver.accept_batches(
            Batches(self._whole, offsets, counts, first, size, states)
        )
        taken = len(slots)
        if taken == 0:
            return None
        at = same[0].offset + first * size
        length = int.from_bytes(self._rooms[at + 24 : at + 28], "big")
        counts[0] -= first
        self._advance(taken)
        return Run(slots, psn, length, np.repeat(stamps, counts)[:taken])

    def _take_one(self) -> Completion | None:
        batch, segment = self._pending[0], self._segment
        at = batch.offset + segment * batch.size
        self._advance(1)
        datagram = self._rooms[at : min(at + batch.size, batch.end)]
        if self._tap is not None:
            self._tap(False, batch.t_rx_ps, datagram)  # noqa: FBT003 - received
        return self._arrived(datagram, batch.t_rx_ps, self._in_paths[min(segment, SEGMENTS - 1)])

    def _advance(self, datagrams: int) -> None:
        self._segment += datagrams
        while self._pending and self._segment >= self._pending[0].segments:
            self._segment -= self._pending.popleft().segments

    # -- sending ------------------------------------------------------------------------------

    def _send_segments(self, data: memoryview, ancillary: list[tuple[int, int, bytes]]) -> None:
        while True:
            try:
                self._socket.sendmsg([data], ancillary, 0, self._peer_end)
            except BlockingIOError:
                self._wait_for_room()
            except OSError as error:
                raise LinkError(
                    "datagrams were not sent", where=self._name(), got=str(error)
                ) from error
            else:
                return


def _numbered(source: tuple[str, int], target: tuple[str, int]) -> list[IcrcPath]:
    ends = (source[0], target[0], source[1], target[1])
    return [IcrcPath(*ends, ident=k) for k in range(SEGMENTS)]


def _states(cache: dict[int, U4], paths: list[IcrcPath], datagram_bytes: int) -> U4:
    found = cache.get(datagram_bytes)
    if found is None:
        found = np.array([path.state(datagram_bytes) for path in paths], np.uint32)
        cache[datagram_bytes] = found
    return found
