"""Plain UDP as CUDA-Q Realtime uses it without a NIC: one datagram is one slot, and nothing more.

A datagram begins with the RPC header and always has the full length of a slot of its receiver; both
ends know that length. Slots fill strictly in turn. There is no RoCE header: no packet sequence
number, no key, no checksum but UDP's. What is lost, copied or reordered on the way is seen only
above, by counter and request id, and every completion says ``IN_ORDER`` (``docs/nvidia.md``).
Source: cuda-quantum ``realtime/lib/cpu_transport/udp_transceiver.cpp``. Other than there, a
datagram that finds its slot owned is not left to the socket's buffer: it is counted and handed up
as busy, so that the application can answer BUSY.
"""

from __future__ import annotations

import select
from typing import Final

import numpy as np
import numpy.typing as npt

from hil.errors import LinkError
from hil.link.endpoint import (
    HEADER_BYTES,
    Buffer,
    Completion,
    Kind,
    PeerAddress,
    Prepared,
    Stage,
    Transport,
    places_of,
)
from hil.link.packets import COUNTERS
from hil.link.sequence import Arrival
from hil.link.slots import Slots
from hil.link.soft_roce import Tap, bound_socket, dropped_by_kernel, require_loopback
from hil.timebase import monotonic_ps
from hil.wire.hsb import round128
from hil.wire.roce import MAX_SLOTS

SHORT: Final = "rx_short"
"""Counter of its own: datagrams shorter than a slot, filled up with zeros."""

_KIND: Final[Kind] = "send"  # bound by the order of arrival alone
_JUNK_PER_POLL: Final = 1024
_LARGEST: Final = 0xFFFF - 28
_SEND_WAIT_S: Final = 1.0


class CudaqUdpEndpoint:
    """One end of a plain-UDP link.

    Args:
        host: own address, within 127.0.0.0/8.
        port: own UDP port; 0: the system chooses (:meth:`address` tells).
        any_peer: take datagrams of any sender and send to that of the latest one taken, as the
            reference server does; :meth:`connect` then only sets the length of outgoing slots.
        tap: is shown every datagram to and from the peer; must not block.

    Raises:
        LinkError: the address is not loopback, or the port is taken there.
    """

    def __init__(
        self, host: str, *, port: int = 0, any_peer: bool = False, tap: Tap | None = None
    ) -> None:
        require_loopback(host, "cudaq_udp")
        self._socket = bound_socket(host, port, "cudaq_udp")
        self._host, self._port = host, int(self._socket.getsockname()[1])
        self._any_peer = any_peer
        self._tap = tap
        self._stage: Stage | None = None
        self._peer: PeerAddress | None = None
        self._peer_end: tuple[str, int] | None = None
        self._buffer = memoryview(bytearray(0x10000))
        self._slots = Slots(rkey=0, base_va=0)
        self._counts = dict.fromkeys((*COUNTERS, SHORT), 0)

    @property
    def transport(self) -> Transport:
        """Unreliable; see :attr:`hil.link.endpoint.Endpoint.transport`."""
        return "uc"

    @property
    def error(self) -> str:
        """Always empty."""
        return ""

    def next_timer_ps(self) -> int | None:
        """There is none."""
        return None

    def register(self, n_slots: int, slot_bytes: int) -> memoryview:
        """See :meth:`hil.link.endpoint.Endpoint.register`.

        Raises:
            LinkError: called twice, or sizes out of range.
        """
        if round128(slot_bytes) > _LARGEST:
            raise LinkError(
                "a slot does not fit a datagram", got=f"{slot_bytes} B", allowed=f"<= {_LARGEST} B"
            )
        return self._slots.register(n_slots, slot_bytes)

    def address(self) -> PeerAddress:
        """See :meth:`hil.link.endpoint.Endpoint.address`; queue pair, key, PSN and VA are 0."""
        slots = self._slots
        if not slots.n_slots:
            raise LinkError("endpoint has no memory yet", fix="call register() first")
        return PeerAddress(self._host, self._port, 0, 0, 0, 0, slots.stride, slots.n_slots)

    def connect(self, peer: PeerAddress) -> None:
        """See :meth:`hil.link.endpoint.Endpoint.connect`.

        Raises:
            LinkError: the peer is not on loopback, is this end itself, or has no possible slots.
        """
        require_loopback(peer.host, "cudaq_udp")
        if (peer.host, peer.port) == (self._host, self._port):
            raise LinkError(
                "an endpoint cannot be its own peer",
                got=f"{peer.host}:{peer.port}",
                fix="give the two ends different ports or loopback addresses",
            )
        if not 1 <= peer.n_slots <= MAX_SLOTS or not HEADER_BYTES <= peer.stride <= _LARGEST:
            raise LinkError(
                "not the slots of a peer",
                where=f"peer {peer.host}",
                got=f"{peer.n_slots} slots of {peer.stride} B",
                allowed=f"1..{MAX_SLOTS} slots of {HEADER_BYTES}..{_LARGEST} B",
            )
        self._peer = peer
        self._peer_end = None if self._any_peer else (peer.host, peer.port)

    def intercept(self, stage: Stage | None) -> None:
        """See :meth:`hil.link.endpoint.Endpoint.intercept`."""
        self._stage = stage

    def post_write_imm(self, payload: Buffer, slot: int) -> None:
        """One datagram; it lands in the peer's next slot, which is ``slot`` if none was lost."""
        self._emit(self._filled(payload, slot))

    def post_write(self, payload: Buffer, slot: int) -> None:
        """There is no write without a completion here.

        Raises:
            LinkError: always.
        """
        raise LinkError("plain UDP has no silent writes", got=f"{len(payload)} B, slot {slot}")

    def post_send(self, payload: Buffer) -> None:
        """One datagram; it lands in the peer's next slot."""
        self._emit(self._filled(payload, 0))

    def prepare(
        self,
        payloads: npt.NDArray[np.uint8],
        slots: npt.NDArray[np.int64] | None,
        kind: Kind = "write_imm",
    ) -> Prepared:
        """See :meth:`hil.link.endpoint.Endpoint.prepare`; rows have the length of a slot."""
        where = places_of(payloads, slots, kind, self._checked)
        stride = self._checked(payloads.shape[1], 0).stride
        rows = np.zeros((len(payloads), stride), np.uint8)
        rows[:, : payloads.shape[1]] = payloads
        return Prepared(kind, rows, where)

    def post(self, prepared: Prepared, index: int) -> None:
        """See :meth:`hil.link.endpoint.Endpoint.post`."""
        self._emit(prepared.rows[index].tobytes())

    def poll(self, max_completions: int) -> list[Completion]:
        """See :meth:`hil.link.endpoint.Endpoint.poll`.

        Raises:
            LinkError: the endpoint is closed.
        """
        found: list[Completion] = []
        for _ in range(max_completions + _JUNK_PER_POLL):
            if len(found) == max_completions:
                break
            try:
                length, sender = self._socket.recvfrom_into(self._buffer)
            except BlockingIOError:
                break
            except OSError as error:
                raise LinkError("endpoint is closed", where=self._name(), got=str(error)) from error
            t_rx_ps = monotonic_ps()
            if not self._any_peer and sender != self._peer_end:
                self._counts["drop_peer"] += 1
                continue
            if self._tap is not None:
                self._tap(False, t_rx_ps, self._buffer[:length])  # noqa: FBT003 - received
            completion = self._take(length, t_rx_ps)
            if completion is not None:
                found.append(completion)
                if self._any_peer:
                    self._peer_end = sender
        return found

    def _take(self, length: int, t_rx_ps: int) -> Completion | None:
        """Store one datagram in the next slot, or say that it is owned; None: too long."""
        slots, slot = self._slots, self._slots.next_send
        size = slots.stride
        if not size or length > size:
            self._counts["drop_length"] += 1
            return None
        self._buffer[length:size] = bytes(size - length)
        busy = slots.owned[slot] != 0
        self._counts["rx_busy" if busy else "rx_ok"] += 1
        self._counts[SHORT] += length < size
        if not busy:
            slots.store(slot, 0, self._buffer[:size])
            slots.hand_over(slot, send=True)
        header = bytes(self._buffer[:HEADER_BYTES])
        return Completion(slot, 0, 0, size, t_rx_ps, busy, _KIND, header, Arrival.IN_ORDER)

    def release(self, slot: int) -> None:
        """See :meth:`hil.link.endpoint.Endpoint.release`.

        Raises:
            LinkError: nobody owns that slot.
        """
        self._slots.release(slot)

    def seal(self, datagram: bytearray) -> None:
        """Nothing: a datagram carries no checksum of its own."""

    def transmit(self, datagram: bytes | bytearray) -> None:
        """See :meth:`hil.link.endpoint.Endpoint.transmit`.

        Raises:
            LinkError: nobody to send to, the kernel refused, or its queue stayed full for 1 s.
        """
        if self._peer_end is None:
            raise LinkError("nobody has sent anything yet to answer to", where=self._name())
        try:
            self._socket.sendto(datagram, self._peer_end)
        except BlockingIOError:
            if not select.select((), (self._socket,), (), _SEND_WAIT_S)[1]:
                raise LinkError("send queue stayed full for 1 s", where=self._name()) from None
            self.transmit(datagram)
            return
        except OSError as error:
            raise LinkError("datagram was not sent", where=self._name(), got=str(error)) from error
        if self._tap is not None:
            self._tap(True, monotonic_ps(), datagram)  # noqa: FBT003 - sent

    def fileno(self) -> int | None:
        """Descriptor of the socket."""
        return self._socket.fileno()

    def counters(self) -> dict[str, int]:
        """All names of ``COUNTERS``; those of sequence numbers, keys and ICRC stay 0 here."""
        closed = self._socket.fileno() < 0
        if not closed:
            self._counts["buffer_overflow"] = dropped_by_kernel(self._socket)
        return dict(self._counts)

    def close(self) -> None:
        """See :meth:`hil.link.endpoint.Endpoint.close`."""
        self.counters()
        self._socket.close()

    def _filled(self, payload: Buffer, slot: int) -> bytes:
        """The payload with zeros up to the length of the peer's slot."""
        return bytes(payload).ljust(self._checked(len(payload), slot).stride, b"\0")

    def _checked(self, length: int, slot: int) -> PeerAddress:
        peer = self._peer
        if peer is None:
            raise LinkError("endpoint has no peer yet", fix="call connect() first")
        if length > peer.stride or not 0 <= slot < peer.n_slots:
            raise LinkError(
                "payload or slot does not fit the peer",
                where=self._name(),
                got=f"{length} B, slot {slot}",
                allowed=f"<= {peer.stride} B, slot < {peer.n_slots}",
            )
        return peer

    def _emit(self, datagram: bytes) -> None:
        self._counts["tx"] += 1
        for staged in (datagram,) if self._stage is None else self._stage(datagram):
            self.transmit(staged)

    def _name(self) -> str:
        return f"cudaq_udp {self._host}:{self._port}"
