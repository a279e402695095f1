"""A UC queue pair: what it sends is forgotten; :mod:`hil.link.receiver` takes the peer's."""

from __future__ import annotations

from collections.abc import Sequence

from hil.link.endpoint import Completion
from hil.link.receiver import Receiver
from hil.link.slots import Slots
from hil.wire.icrc import IcrcPath
from hil.wire.roce import (
    PSN_MASK,
    Packet,
    Target,
    payload_limit,
    send_only,
    write_only,
    write_only_imm,
)


class UcPair:
    """Both halves of one queue pair; see :class:`hil.link.packets.QueuePair`.

    Args:
        qp: own queue pair number.
        psn_start: PSN that this end expects first.
        slots: the memory.
        mtu_bytes: limits the payload of one packet (HSB rule).
    """

    __slots__ = ("_psn", "_sent", "_target", "_waiting", "packet_bytes", "receiver")

    def __init__(self, qp: int, psn_start: int, slots: Slots, mtu_bytes: int) -> None:
        self.packet_bytes = payload_limit(mtu_bytes)
        self.receiver = Receiver(qp, psn_start, slots)
        self._target = Target(0, 0, 0, 0)
        self._psn = self._sent = 0
        self._waiting: list[bytearray] = []

    @property
    def error(self) -> str:
        """Never in error."""
        return ""

    @property
    def psn(self) -> int:
        """PSN that the next packet must carry."""
        return self._psn

    @property
    def counts(self) -> dict[str, int]:
        """Counts of both halves, the PSN audit among them."""
        audit = self.receiver.audit
        return {
            "tx": self._sent,
            **self.receiver.counts,
            "psn_gap": audit.gaps,
            "psn_lost": audit.lost,
            "psn_dup": audit.duplicate,
            "psn_reorder": audit.reordered,
            "psn_stale": audit.stale,
        }

    def connect(self, target: Target, psn_start: int) -> None:
        """Send there, beginning with that PSN."""
        self._target, self._psn = target, psn_start

    def write_packets(self, payload: bytes, slot: int, *, with_imm: bool) -> list[Packet]:
        """WRITE ONLYs, one after the other into the slot; the last one with the immediate."""
        target, psn, size = self._target, self._psn, self.packet_bytes
        starts = range(0, max(1, len(payload)), size)
        packets = [
            write_only(target, psn + k, slot, payload[at : at + size], at)
            for k, at in enumerate(starts)
        ]
        if with_imm:
            end, at = packets.pop().bth.psn, starts[-1]
            packets.append(write_only_imm(target, end, slot, payload[at:], at))
        return packets

    def send_packets(self, payload: bytes) -> list[Packet]:
        """One SEND ONLY."""
        return [send_only(self._target.qp, self._psn, payload)]

    def post(self, datagrams: Sequence[bytearray]) -> bool:
        """Queue packets with PSNs from :attr:`psn` on; never refused."""
        self._waiting += datagrams
        self.number(len(datagrams))
        return True

    def number(self, datagrams: int) -> int:
        """Count packets that are sent past this pair; the PSN of the first of them."""
        first = self._psn
        self._psn = (first + datagrams) & PSN_MASK
        self._sent += datagrams
        return first

    def outgoing(self, now_ps: int) -> list[bytearray]:
        """What was posted since the last call."""
        out, self._waiting = self._waiting, []
        return out

    def expire(self, now_ps: int) -> None:
        """No timer ever runs."""

    def next_timer_ps(self) -> int | None:
        """Never."""
        return None

    def accept(self, datagram: memoryview, path: IcrcPath, t_rx_ps: int) -> Completion | None:
        """See :meth:`hil.link.receiver.Receiver.accept`."""
        return self.receiver.accept(datagram, path, t_rx_ps)

    def drop(self, cause: str) -> None:
        """Count one datagram that the transport itself refused."""
        self.receiver.drop(cause)
