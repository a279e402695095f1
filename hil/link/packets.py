"""A queue pair without its wire: what all endpoints have in common whose wire carries packets.

On UC one packet per message, except that a write longer than a packet goes as several, each a write
of its own that says where it belongs (as NVIDIA's sensor bridge does it). The receiving rules stand
in :mod:`hil.link.receiver`.
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from typing import Final

import numpy as np
import numpy.typing as npt

from hil.errors import LinkError
from hil.link.endpoint import Buffer, Completion, Kind, PeerAddress, Prepared, Stage, Transport
from hil.link.receiver import BASE_VA, COUNTED, Receiver
from hil.wire.icrc import ICRC_BYTES, IcrcPath
from hil.wire.roce import (
    MAX_QP,
    MAX_SLOTS,
    PSN_MASK,
    STRIDE_UNIT,
    Packet,
    Target,
    payload_limit,
    send_only,
    slot_imm,
    write_only,
    write_only_imm,
)
from hil.wire.roce_batch import send_rows, write_imm_rows

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
    ) -> None:
        where = f"endpoint {host}"
        _in_range(where, "mtu_bytes", mtu_bytes, STRIDE_UNIT + 74, 0xFFFF)
        _identity(where, port, qp, psn_start, rkey)
        self._host, self._port, self._qp, self._rkey = host, port, qp, rkey
        self._transport: Transport = transport
        self._psn_start = psn_start
        self._payload_limit = payload_limit(mtu_bytes)
        self._receiver = Receiver(qp, rkey, psn_start)
        self._peer: PeerAddress | None = None
        self._target = Target(0, 0, 0, 0)
        self._out = self._in = IcrcPath(host, host, port, port)
        self._psn_out = 0
        self._sent = 0
        self._stage: Stage | None = None

    @property
    def transport(self) -> Transport:
        """See :attr:`hil.link.endpoint.Endpoint.transport`."""
        return self._transport

    @property
    def error(self) -> str:
        """See :attr:`hil.link.endpoint.Endpoint.error`."""
        return ""

    def next_timer_ps(self) -> int | None:
        """See :meth:`hil.link.endpoint.Endpoint.next_timer_ps`."""
        return None

    def register(self, n_slots: int, slot_bytes: int) -> memoryview:
        """See :meth:`hil.link.endpoint.Endpoint.register`."""
        return self._receiver.register(n_slots, slot_bytes)

    def address(self) -> PeerAddress:
        """See :meth:`hil.link.endpoint.Endpoint.address`."""
        receiver = self._receiver
        if not receiver.n_slots:
            raise LinkError("endpoint has no memory yet", fix="call register() first")
        ends = (self._host, self._port, self._qp, self._psn_start, self._rkey)
        return PeerAddress(*ends, BASE_VA, receiver.stride, receiver.n_slots)

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
        self._psn_out = peer.psn

    def intercept(self, stage: Stage | None) -> None:
        """See :meth:`hil.link.endpoint.Endpoint.intercept`."""
        self._stage = stage

    def post_write_imm(self, payload: Buffer, slot: int) -> None:
        """See :meth:`hil.link.endpoint.Endpoint.post_write_imm`."""
        size = self._payload_limit
        self._check(len(payload), slot, packets=True)
        last = max(0, len(payload) - 1) // size * size
        for offset in range(0, last, size):
            part = bytes(payload[offset : offset + size])
            self._post(write_only(self._target, self._psn_out, slot, part, offset))
        end = bytes(payload[last:])
        self._post(write_only_imm(self._target, self._psn_out, slot, end, last))

    def post_write(self, payload: Buffer, slot: int) -> None:
        """See :meth:`hil.link.endpoint.Endpoint.post_write`."""
        self._check(len(payload), slot)
        self._post(write_only(self._target, self._psn_out, slot, bytes(payload)))

    def post_send(self, payload: Buffer) -> None:
        """See :meth:`hil.link.endpoint.Endpoint.post_send`."""
        self._check(len(payload), 0)
        self._post(send_only(self._target.qp, self._psn_out, bytes(payload)))

    def prepare(
        self,
        payloads: npt.NDArray[np.uint8],
        slots: npt.NDArray[np.int64] | None,
        kind: Kind = "write_imm",
    ) -> Prepared:
        """See :meth:`hil.link.endpoint.Endpoint.prepare`."""
        if (slots is None) != (kind == "send"):
            raise LinkError("slots are given for kind 'write_imm' and only for it", got=kind)
        where = np.zeros(len(payloads), np.int64) if slots is None else np.asarray(slots, np.int64)
        for slot in (int(where.min()), int(where.max())) if len(where) else ():
            self._check(payloads.shape[1], slot)
        if kind == "send":
            rows = send_rows(payloads, 0, self._target.qp, None)
        else:
            rows = write_imm_rows(payloads, where, 0, self._target, None)
        return Prepared(kind, rows, where)

    def post(self, prepared: Prepared, index: int) -> None:
        """See :meth:`hil.link.endpoint.Endpoint.post`."""
        datagram = bytearray(prepared.rows[index])
        struct.pack_into("!I", datagram, _PSN_AT, self._psn_out)
        if prepared.kind == "write_imm":
            imm = slot_imm(self._psn_out, int(prepared.slots[index]))
            struct.pack_into("!I", datagram, _IMM_AT, imm)
        self._emit(datagram)

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
        self._receiver.release(slot)

    def _arrived(
        self, datagram: memoryview, t_rx_ps: int, path: IcrcPath | None = None
    ) -> Completion | None:
        """Judge one datagram of the peer; every ``poll`` calls this for each one it took.

        Args:
            datagram: BTH .. ICRC, writable; used until the return only.
            t_rx_ps: when it was taken from the network.
            path: what to check the ICRC with, where its IPv4 header is not the peer's usual one.
        """
        return self._receiver.accept(datagram, self._in if path is None else path, t_rx_ps)

    def _timers(self, now_ps: int) -> None:  # noqa: B027 - UC has no timers
        """Do what is due; every ``poll`` calls this once, after the datagrams."""

    def counters(self) -> dict[str, int]:
        """See :meth:`hil.link.endpoint.Endpoint.counters`."""
        audit = self._receiver.audit
        return {
            **dict.fromkeys(COUNTERS, 0),
            "tx": self._sent,
            **self._receiver.counts,
            "buffer_overflow": self._overflow(),
            "psn_gap": audit.gaps,
            "psn_lost": audit.lost,
            "psn_dup": audit.duplicate,
            "psn_reorder": audit.reordered,
            "psn_stale": audit.stale,
        }

    @abstractmethod
    def _overflow(self) -> int:
        """Datagrams lost because this end did not poll soon enough."""

    def _post(self, packet: Packet) -> None:
        self._emit(bytearray(packet.pack() + bytes(ICRC_BYTES)))

    def _emit(self, datagram: bytearray) -> None:
        self._out.seal(datagram)
        self._psn_out = (self._psn_out + 1) & PSN_MASK
        self._sent += 1
        if self._stage is None:
            self.transmit(datagram)
            return
        for staged in self._stage(bytes(datagram)):
            self.transmit(staged)

    def _check(self, length: int, slot: int, *, packets: bool = False) -> None:
        """``packets``: a message of several packets, which only the slot limits."""
        peer = self._peer
        if peer is None:
            raise LinkError("endpoint has no peer yet", fix="call connect() first")
        limit = peer.stride if packets else min(peer.stride, self._payload_limit)
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
