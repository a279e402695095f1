"""A queue pair without its wire: what all endpoints have in common whose wire carries packets.

On UC one packet per message, except that a write longer than a packet goes as several, each a write
of its own that says where it belongs (as NVIDIA's sensor bridge does it); the receiving rules stand
in :mod:`hil.link.receiver`. On RC a message longer than the path MTU goes as FIRST, MIDDLE ..,
LAST; the rules stand in :mod:`hil.link.rc_requester` and :mod:`hil.link.rc_responder`.
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from hil.errors import LinkError
from hil.link.endpoint import (
    Buffer,
    Completion,
    Kind,
    PeerAddress,
    Prepared,
    Stage,
    Transport,
    places_of,
)
from hil.link.rc_pair import RcPair
from hil.link.rc_requester import RcAttributes
from hil.link.receiver import COUNTED
from hil.link.slots import Slots
from hil.link.uc_pair import UcPair
from hil.timebase import monotonic_ps
from hil.wire.icrc import ICRC_BYTES, IcrcPath
from hil.wire.roce import MAX_QP, MAX_SLOTS, PSN_MASK, STRIDE_UNIT, Packet, Target, slot_imm
from hil.wire.roce_batch import send_rows, write_imm_rows
from hil.wire.segments import PATH_MTUS, UC_OFFSET, path_mtu

COUNTERS: Final = (
    *("tx", *COUNTED, "buffer_overflow"),
    *("psn_gap", "psn_lost", "psn_dup", "psn_reorder", "psn_stale"),
    *("tx_refused", "tx_ack", "tx_nak", "tx_rnr", "rx_ack", "rx_nak", "rx_rnr"),
    *("retransmit", "rx_duplicate", "rx_ahead", "timeouts"),
)
"""Names that every endpoint counts. rx_ok: payload stored; rx_busy: slot owned, not stored. From
``tx_refused`` on they belong to RC and stay 0 on UC (``docs/wire.md`` section 3)."""

_IMM_AT: Final = 28
_PSN_AT: Final = 8


class QueuePair(Protocol):
    """The transport of an endpoint: datagrams in and out, times passed in, no wire."""

    def connect(self, target: Target, psn_start: int) -> None:
        """Send there, beginning with that PSN."""

    @property
    def packet_bytes(self) -> int:
        """Payload bytes of one packet at most."""

    @property
    def psn(self) -> int:
        """PSN that the next packet must carry."""

    def write_packets(self, payload: bytes, slot: int, *, with_imm: bool) -> list[Packet]:
        """Packets of one write into a slot of the peer."""

    def send_packets(self, payload: bytes) -> list[Packet]:
        """Packets of one send."""

    def post(self, datagrams: Sequence[bytearray]) -> bool:
        """Queue one message, PSNs from :attr:`psn` on; False if refused."""

    def outgoing(self, now_ps: int) -> list[bytearray]:
        """Datagrams to be sent now, in order; their ICRC is still to be made."""

    def expire(self, now_ps: int) -> None:
        """Do what the timers want by now, after everything that arrived was accepted."""

    def next_timer_ps(self) -> int | None:
        """When :meth:`expire` is wanted next though nothing arrives."""

    def accept(self, datagram: memoryview, path: IcrcPath, t_rx_ps: int) -> Completion | None:
        """Judge one datagram of the peer."""

    def drop(self, cause: str) -> None:
        """Count a datagram that was dropped before :meth:`accept`."""

    @property
    def counts(self) -> Mapping[str, int]:
        """Counts by names of :data:`COUNTERS`; 0 where there is none."""

    @property
    def error(self) -> str:
        """Why the pair is in error."""


class PacketEndpoint(ABC):
    """Everything of an endpoint but the wire.

    Args:
        host: own address, dotted IPv4.
        port: own UDP port, source and destination.
        qp: own queue pair number, 1..2^24-1.
        rkey: own memory key, u32.
        psn_start: PSN that this end expects first.
        mtu_bytes: MTU of the network; limits the payload of one packet (HSB rule on UC).
        transport: unreliable or reliable connection.
        attributes: limits and times of RC; None: the usual ones, with the largest RoCE path MTU
            not above ``mtu_bytes``.

    Raises:
        LinkError: a number is out of range.
    """

    def __init__(
        self,
        host: str,
        port: int,
        qp: int,
        rkey: int,
        psn_start: int,
        mtu_bytes: int,
        transport: Transport = "uc",
        attributes: RcAttributes | None = None,
    ) -> None:
        where = f"endpoint {host}"
        least = STRIDE_UNIT + 74 if transport == "uc" else PATH_MTUS[0]
        _in_range(where, "mtu_bytes", mtu_bytes, least, 0xFFFF)
        _identity(where, port, qp, psn_start, rkey)
        self._host, self._port, self._qp, self._rkey = host, port, qp, rkey
        self._transport: Transport = transport
        self._psn_start = psn_start
        self._slots = Slots(rkey)
        self._pair: QueuePair
        if transport == "rc":
            rules = attributes or RcAttributes(path_mtu=path_mtu(mtu_bytes))
            _in_range(where, "path_mtu", rules.path_mtu, PATH_MTUS[0], mtu_bytes)
            self._pair = RcPair(qp, psn_start, self._slots, rules)
        else:
            self._pair = UcPair(qp, psn_start, self._slots, mtu_bytes)
        self._peer: PeerAddress | None = None
        self._target = Target(0, 0, 0, 0)
        self._out = self._in = IcrcPath(host, host, port, port)
        self._stage: Stage | None = None

    @property
    def transport(self) -> Transport:
        """See :attr:`hil.link.endpoint.Endpoint.transport`."""
        return self._transport

    @property
    def error(self) -> str:
        """See :attr:`hil.link.endpoint.Endpoint.error`."""
        return self._pair.error

    def next_timer_ps(self) -> int | None:
        """See :meth:`hil.link.endpoint.Endpoint.next_timer_ps`."""
        return self._pair.next_timer_ps()

    def register(self, n_slots: int, slot_bytes: int) -> memoryview:
        """See :meth:`hil.link.endpoint.Endpoint.register`."""
        return self._slots.register(n_slots, slot_bytes)

    def address(self) -> PeerAddress:
        """See :meth:`hil.link.endpoint.Endpoint.address`."""
        slots = self._slots
        if not slots.n_slots:
            raise LinkError("endpoint has no memory yet", fix="call register() first")
        ends = (self._host, self._port, self._qp, self._psn_start, self._rkey)
        return PeerAddress(*ends, slots.base_va, slots.stride, slots.n_slots)

    def connect(self, peer: PeerAddress) -> None:
        """See :meth:`hil.link.endpoint.Endpoint.connect`.

        Raises:
            LinkError: the peer has this end's own address and port, or numbers out of range.
        """
        where = f"peer {peer.host}"
        _identity(where, peer.port, peer.qp, peer.psn, peer.rkey)
        _in_range(where, "n_slots", peer.n_slots, 1, MAX_SLOTS)
        _in_range(where, "stride", peer.stride, STRIDE_UNIT, 1 << 32)
        _in_range(where, "base_va", peer.base_va, 0, (1 << 64) - peer.n_slots * peer.stride)
        if (peer.host, peer.port) == (self._host, self._port):
            raise LinkError(
                "an endpoint cannot be its own peer",
                got=f"{peer.host}:{peer.port}",
                fix="give the two ends different loopback addresses, such as 127.0.0.1 and .2",
            )
        self._peer = peer
        self._target = Target(peer.qp, peer.rkey, peer.base_va, peer.stride)
        self._out = IcrcPath(self._host, peer.host, self._port, peer.port)
        self._in = IcrcPath(peer.host, self._host, peer.port, self._port)
        self._pair.connect(self._target, peer.psn)

    def intercept(self, stage: Stage | None) -> None:
        """See :meth:`hil.link.endpoint.Endpoint.intercept`."""
        self._stage = stage

    def post_write_imm(self, payload: Buffer, slot: int) -> None:
        """See :meth:`hil.link.endpoint.Endpoint.post_write_imm`."""
        self._check(len(payload), slot, one_packet=False)
        self._post(self._pair.write_packets(bytes(payload), slot, with_imm=True))

    def post_write(self, payload: Buffer, slot: int) -> None:
        """See :meth:`hil.link.endpoint.Endpoint.post_write`."""
        self._check(len(payload), slot, one_packet=self._transport == "uc")
        self._post(self._pair.write_packets(bytes(payload), slot, with_imm=False))

    def post_send(self, payload: Buffer) -> None:
        """See :meth:`hil.link.endpoint.Endpoint.post_send`."""
        self._check(len(payload), 0, one_packet=self._transport == "uc")
        self._post(self._pair.send_packets(bytes(payload)))

    def prepare(
        self,
        payloads: npt.NDArray[np.uint8],
        slots: npt.NDArray[np.int64] | None,
        kind: Kind = "write_imm",
    ) -> Prepared:
        """See :meth:`hil.link.endpoint.Endpoint.prepare`."""
        where = places_of(payloads, slots, kind, partial(self._check, one_packet=True))
        if kind == "send":
            rows = send_rows(payloads, 0, self._target.qp, None)
        else:
            rows = write_imm_rows(payloads, where, 0, self._target, None)
        if self._transport == "rc":
            rows[:, 0] -= UC_OFFSET
        return Prepared(kind, rows, where)

    def post(self, prepared: Prepared, index: int) -> None:
        """See :meth:`hil.link.endpoint.Endpoint.post`."""
        datagram = bytearray(prepared.rows[index])
        psn = self._pair.psn
        struct.pack_into("!I", datagram, _PSN_AT, psn)
        if prepared.kind == "write_imm":
            imm = slot_imm(psn, int(prepared.slots[index]))
            struct.pack_into("!I", datagram, _IMM_AT, imm)
        self._pair.post((datagram,))
        self._flush(monotonic_ps())

    def seal(self, datagram: bytearray) -> None:
        """See :meth:`hil.link.endpoint.Endpoint.seal`."""
        self._out.seal(datagram)

    @abstractmethod
    def transmit(self, datagram: bytes | bytearray) -> None:
        """See :meth:`hil.link.endpoint.Endpoint.transmit`."""

    def release(self, slot: int) -> None:
        """See :meth:`hil.link.endpoint.Endpoint.release`.

        Raises:
            LinkError: nobody owns that slot.
        """
        self._slots.release(slot)

    def _arrived(
        self, datagram: memoryview, t_rx_ps: int, path: IcrcPath | None = None
    ) -> Completion | None:
        """Judge one datagram of the peer; every ``poll`` calls this for each one it took.

        Args:
            datagram: BTH .. ICRC, writable; used until the return only.
            t_rx_ps: when it was taken from the network.
            path: what to check the ICRC with, where its IPv4 header is not the peer's usual one.
        """
        return self._pair.accept(datagram, self._in if path is None else path, t_rx_ps)

    def _timers(self, now_ps: int) -> None:
        """Send what is due by now; every ``poll`` calls this once, after the datagrams."""
        self._pair.expire(now_ps)
        self._flush(now_ps)

    def _drop(self, cause: str) -> None:
        """Count a datagram that is not shown to :meth:`_arrived`."""
        self._pair.drop(cause)

    def counters(self) -> dict[str, int]:
        """See :meth:`hil.link.endpoint.Endpoint.counters`."""
        counts = self._pair.counts
        return {name: counts.get(name, 0) for name in COUNTERS} | {
            "buffer_overflow": self._overflow()
        }

    @abstractmethod
    def _overflow(self) -> int:
        """Datagrams lost because this end did not poll soon enough."""

    def _post(self, packets: list[Packet]) -> None:
        self._pair.post([bytearray(packet.pack() + bytes(ICRC_BYTES)) for packet in packets])
        self._flush(monotonic_ps())

    def _flush(self, now_ps: int) -> None:
        for datagram in self._pair.outgoing(now_ps):
            self._out.seal(datagram)
            if self._stage is None:
                self.transmit(datagram)
                continue
            for staged in self._stage(bytes(datagram)):
                self.transmit(staged)

    def _check(self, length: int, slot: int, *, one_packet: bool) -> None:
        peer = self._peer
        if peer is None:
            raise LinkError("endpoint has no peer yet", fix="call connect() first")
        limit = min(peer.stride, self._pair.packet_bytes) if one_packet else peer.stride
        if length > limit or not 0 <= slot < peer.n_slots:
            raise LinkError(
                "payload or slot does not fit the peer",
                where=f"endpoint {self._host}",
                got=f"{length} B, slot {slot}",
                allowed=f"<= {limit} B, slot < {peer.n_slots}",
            )


def _identity(where: str, port: int, qp: int, psn: int, rkey: int) -> None:
    _in_range(where, "port", port, 1, 0xFFFF)
    _in_range(where, "qp", qp, 1, MAX_QP)
    _in_range(where, "psn", psn, 0, PSN_MASK)
    _in_range(where, "rkey", rkey, 0, 0xFFFFFFFF)


def _in_range(where: str, name: str, value: int, least: int, top: int) -> None:
    if not least <= value <= top:
        raise LinkError(
            f"{name} is out of range", where=where, got=str(value), allowed=f"{least}..{top}"
        )
