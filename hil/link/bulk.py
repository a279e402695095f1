"""Soft RoCE for bulk: many frames per system call, headers and checks compiled.

UDP_SEGMENT lets the kernel cut one buffer into datagrams, UDP_GRO lets it hand them back as one.
The kernel numbers the segments of a call 0, 1, 2, .. in the IPv4 identification (checked with a
packet socket, ``docs/wire.md``), so each ICRC is made with its own. Frames that are not plain
(lost neighbours, owned slots, sends, foreign ones) go through the code for single packets.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from hil.errors import LinkError
from hil.link.endpoint import Completion, PeerAddress, Prepared
from hil.link.soft_roce import JUNK_PER_POLL, RECEIVE_BUFFER_BYTES, SoftRoceEndpoint
from hil.timebase import monotonic_ps
from hil.wire.icrc import U4, IcrcPath
from hil.wire.roce import PSN_MASK

SEGMENTS: Final = 64
"""Most datagrams of one call: the limit of kernels before 6.9 (UDP_MAX_SEGMENTS)."""

_CALL_BYTES: Final = 0xFFFF - 28
_UDP_SEGMENT: Final = 103  # Linux <linux/udp.h>; the socket module lacks these
_UDP_GRO: Final = 104
_ANCILLARY_BYTES: Final = 64


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive receive completions of whole writes with immediate, none of them busy.

    ``slots``: i8[n] in order of arrival. Completion k has PSN ``psn + k`` (24 bit), the immediate
    that follows from PSN and slot, ``length`` payload bytes and the stamp ``t_rx_ps``.
    """

    slots: npt.NDArray[np.int64]
    psn: int
    length: int
    t_rx_ps: int

    def __len__(self) -> int:
        return len(self.slots)


class BulkSoftRoceEndpoint(SoftRoceEndpoint):
    """A soft-RoCE endpoint on UC that also posts and polls batches.

    The calls for single frames work as ever, at a higher price per call. Arguments as of
    :class:`hil.link.soft_roce.SoftRoceEndpoint`.

    Raises:
        LinkError: RC is asked for, or the kernel knows neither UDP_SEGMENT nor UDP_GRO.
    """

    def __init__(self, host: str, **options: Any) -> None:  # noqa: ANN401 - passed through
        super().__init__(host, **options)
        if self.transport != "uc":
            self.close()
            raise LinkError("bulk transfer is for UC", got=self.transport, fix="use SoftRoce")
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
        self._whole = np.frombuffer(self._buffer, np.uint8)
        self._segment_bytes = self._at = self._end = self._segment = 0
        self._t_rx_ps = 0
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
        from hil.wire.roce_bulk import seal_batch

        rows = prepared.rows
        states = _states(self._out_states, self._out_paths, rows.shape[1])
        per_call = min(SEGMENTS, _CALL_BYTES // rows.shape[1])
        for begin in range(first, end, per_call):
            part = rows[begin : min(begin + per_call, end)]
            slots = None if prepared.kind == "send" else prepared.slots[begin : begin + len(part)]
            seal_batch(part, slots, self._psn_out, states)
            self._send_segments(part)
            self._psn_out = (self._psn_out + len(part)) & PSN_MASK
            self._sent += len(part)

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
        self._receiver.release_many(slots)

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
        for _ in range(JUNK_PER_POLL):
            if self._at < self._end:
                return True
            try:
                length, ancillary, _, sender = self._socket.recvmsg_into(
                    [self._buffer], _ANCILLARY_BYTES
                )
            except BlockingIOError:
                return False
            except OSError as error:
                raise LinkError("endpoint is closed", where=self._name(), got=str(error)) from error
            self._t_rx_ps = monotonic_ps()
            size = max(length, 1)
            for level, kind, data in ancillary:
                if (level, kind) == (socket.IPPROTO_UDP, _UDP_GRO):
                    (size,) = struct.unpack_from("=i", data)
            if sender != self._peer_end:
                for _ in range(-(-length // size) or 1):
                    self._receiver.drop("drop_peer")
                continue
            self._at, self._end, self._segment_bytes = 0, max(length, 1), size
            self._segment = 0
        return False

    def _take_run(self) -> Run | None:
        size = self._segment_bytes
        whole = (self._end - self._at) // size
        if self._tap is not None or whole == 0 or self._segment + whole > SEGMENTS:
            return None
        rows = self._whole[self._at : self._at + whole * size].reshape(whole, size)
        states = _states(self._in_states, self._in_paths, size)[self._segment :]
        psn = self._receiver.audit.expected or 0
        slots = self._receiver.accept_batch(rows, states)
        if len(slots) == 0:
            return None
        length = int.from_bytes(rows[0, 24:28].tobytes(), "big")
        self._at += len(slots) * size
        self._segment += len(slots)
        return Run(slots, psn, length, self._t_rx_ps)

    def _take_one(self) -> Completion | None:
        at, end = self._at, min(self._at + self._segment_bytes, self._end)
        datagram = self._view[at:end]
        path = self._in_paths[min(self._segment, SEGMENTS - 1)]
        self._at, self._segment = end, self._segment + 1
        if self._tap is not None:
            self._tap(False, self._t_rx_ps, datagram)  # noqa: FBT003 - received
        return self._arrived(datagram, self._t_rx_ps, path)

    # -- sending ------------------------------------------------------------------------------

    def _send_segments(self, rows: npt.NDArray[np.uint8]) -> None:
        size = struct.pack("=H", rows.shape[1])
        ancillary = [(socket.IPPROTO_UDP, _UDP_SEGMENT, size)]
        while True:
            try:
                self._socket.sendmsg([rows.reshape(-1)], ancillary, 0, self._peer_end)
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
