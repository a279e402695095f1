"""The requesting half of an RC queue pair: what is sent, kept, sent again, or given up.

A pure state machine: finished packets go in with :meth:`Requester.post`, acknowledgements with
:meth:`Requester.acknowledge`, the time with every call; :meth:`Requester.outgoing` says what is to
be sent now. Inside, PSNs are counted on without end (``_acked`` <= ``_cursor`` <= ``_end``), so
that only :meth:`Requester.acknowledge` must know that they wrap.

Rules (InfiniBand Architecture Specification volume 1, chapter 9.7; proven against Linux rdma_rxe):

- every packet is kept until an ACK covers it; one ACK covers all PSNs up to its own, a NAK or RNR
  NAK all before its own;
- an ACK is asked for with the last packet of each message, of each repetition and of a full window;
- NAK 0x60 (sequence): everything from its PSN is sent again. It never restarts the ack timer unless
  it acknowledges something, so that the number of repetitions stays bounded;
- RNR NAK: nothing is sent for the coded time, then everything from its PSN. Sequence NAKs, which
  speak of the packets behind the refused one, shorten nothing, nor do further RNR NAKs;
- ack timeout: everything unacknowledged is sent again, at most ``retry_cnt`` times in a row;
- NAK 0x61, 0x62, 0x63, or too many retries: error. All is flushed and nothing sent any more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from hil.errors import LinkError
from hil.wire.roce import NAK_ACCESS, NAK_OPERATION, NAK_REQUEST, NAK_SEQUENCE, PSN_MASK, RNR_NAK
from hil.wire.segments import PATH_MTUS, RNR_WAIT_PS, ack_timeout_ps, psn_distance

COUNTED: Final = (*("tx", "tx_refused", "rx_ack", "rx_nak", "rx_rnr", "retransmit", "timeouts"),)
RNR_FOR_EVER: Final = 7
"""``rnr_retry`` of this value: no limit."""

_FINAL: Final = {
    NAK_REQUEST: "peer refused a request as invalid (NAK 0x61)",
    NAK_ACCESS: "peer refused access to its memory (NAK 0x62)",
    NAK_OPERATION: "peer could not carry out a request (NAK 0x63)",
}
_NOTHING: Final = bytearray()
_ACK_REQUEST_AT: Final = 8
_ACK_REQUEST: Final = 0x80


@dataclass(frozen=True, slots=True)
class RcAttributes:
    """Attributes of an RC queue pair, named as in libibverbs.

    Args:
        path_mtu: payload bytes of every packet but the last of a message.
        timeout: local ack timeout code, 4.096 us x 2^code (14: 67.1 ms).
        retry_cnt: repetitions in a row for want of an acknowledgement.
        rnr_retry: waits in a row for a receiver that is not ready; 7 = no limit.
        min_rnr_timer: code of the wait that this end asks of a sender (12: 0.64 ms).
        queue_packets: packets kept at most, sent or not.
        window_packets: packets sent and not acknowledged at most.

    Raises:
        LinkError: a number is out of range.
    """

    path_mtu: int = 1024
    timeout: int = 14
    retry_cnt: int = 7
    rnr_retry: int = RNR_FOR_EVER
    min_rnr_timer: int = 12
    queue_packets: int = 4096
    window_packets: int = 256

    def __post_init__(self) -> None:
        right = {
            "path_mtu": self.path_mtu in PATH_MTUS,
            "timeout": 1 <= self.timeout <= 31,
            "retry_cnt": 0 <= self.retry_cnt <= 7,
            "rnr_retry": 0 <= self.rnr_retry <= RNR_FOR_EVER,
            "min_rnr_timer": 0 <= self.min_rnr_timer < len(RNR_WAIT_PS),
            "queue_packets": 1 <= self.queue_packets <= 1 << 20,
            "window_packets": 1 <= self.window_packets <= self.queue_packets,
        }
        for name, good in right.items():
            if not good:
                raise LinkError(f"{name} is out of range", got=str(getattr(self, name)))


class Requester:
    """One sender. All times are on one monotonic clock of the caller's.

    Attributes:
        counts: one count for every name of :data:`COUNTED`. ``tx``: packets sent for the first
            time; ``retransmit``: packets sent again; ``tx_refused``: messages.
        error: why nothing is sent any more; "" while all is well.

    Args:
        psn_start: PSN of the first packet.
        attributes: limits and times.
    """

    __slots__ = (
        *("_acked", "_attributes", "_cursor", "_deadline_ps", "_end", "_reached", "_retries"),
        *("_ring", "_rnr_retries", "_rnr_until_ps", "_timeout_ps", "counts", "error"),
    )

    def __init__(self, psn_start: int, attributes: RcAttributes) -> None:
        self._attributes = attributes
        self._timeout_ps = ack_timeout_ps(attributes.timeout)
        self._ring = [_NOTHING] * attributes.queue_packets
        self._acked = psn_start  # all before it are acknowledged
        self._cursor = psn_start  # the next to be sent
        self._reached = psn_start  # all before it were sent at least once
        self._end = psn_start  # the next to be posted
        self._deadline_ps: int | None = None
        self._rnr_until_ps: int | None = None
        self._retries = self._rnr_retries = 0
        self.counts = dict.fromkeys(COUNTED, 0)
        self.error = ""

    @property
    def psn(self) -> int:
        """PSN that the next posted packet must carry."""
        return self._end & PSN_MASK

    @property
    def idle(self) -> bool:
        """Everything posted is acknowledged."""
        return self._acked == self._end

    def next_timer_ps(self) -> int | None:
        """When :meth:`expire` has something to do; None if no timer runs."""
        return self._deadline_ps if self._rnr_until_ps is None else self._rnr_until_ps

    def post(self, datagrams: Sequence[bytearray]) -> bool:
        """Queue the packets of one message.

        Args:
            datagrams: one or more, BTH .. ICRC each, PSNs from :attr:`psn` on; the ICRC is not
                looked at, the AckReq bit is set here.

        Returns:
            False if it was refused: no room, or error.
        """
        depth = len(self._ring)
        if self.error or self._end + len(datagrams) - self._acked > depth:
            self.counts["tx_refused"] += 1
            return False
        for datagram in datagrams:
            self._ring[self._end % depth] = datagram
            self._end += 1
        datagrams[-1][_ACK_REQUEST_AT] |= _ACK_REQUEST
        return True

    def outgoing(self, now_ps: int) -> list[bytearray]:
        """Packets to be sent now, in order; the ICRC is still to be made.

        The packets stay the requester's: each must be on its way before the next call.
        """
        if self.error or self._rnr_until_ps is not None:
            return []
        out: list[bytearray] = []
        limit = min(self._end, self._acked + self._attributes.window_packets)
        fresh_from = self._reached
        while self._cursor < limit:
            datagram = self._ring[self._cursor % len(self._ring)]
            self._cursor += 1
            if self._cursor in (limit, fresh_from):
                datagram[_ACK_REQUEST_AT] |= _ACK_REQUEST
            out.append(datagram)
        self._reached = max(self._reached, self._cursor)
        fresh = self._reached - fresh_from
        self.counts["tx"] += fresh
        self.counts["retransmit"] += len(out) - fresh
        if self._deadline_ps is None and self._cursor > self._acked:
            self._deadline_ps = now_ps + self._timeout_ps
        return out

    def acknowledge(self, psn: int, syndrome: int, now_ps: int) -> bool:
        """Take an acknowledgement, negative or not.

        Returns:
            False if its syndrome is a reserved one: nothing was changed.
        """
        rnr = RNR_NAK <= syndrome < RNR_NAK + len(RNR_WAIT_PS)
        ack = syndrome < RNR_NAK
        if not ack and not rnr and syndrome != NAK_SEQUENCE and syndrome not in _FINAL:
            return False
        self.counts["rx_ack" if ack else "rx_rnr" if rnr else "rx_nak"] += 1
        place = self._acked + psn_distance(psn, self._acked & PSN_MASK)
        if self.error or not self._acked <= place < self._reached:
            return True  # of a packet that was acknowledged before, or never sent
        self._retire(place + ack, now_ps)
        if rnr:
            self._wait_for_receiver(syndrome - RNR_NAK, now_ps)
        elif syndrome == NAK_SEQUENCE:
            self._cursor = self._acked
        elif syndrome in _FINAL:
            self.stop(_FINAL[syndrome])
        return True

    def expire(self, now_ps: int) -> None:
        """Do what the timers want by now; what is to be sent again comes from :meth:`outgoing`."""
        if self._rnr_until_ps is not None:
            if now_ps >= self._rnr_until_ps:
                self._rnr_until_ps = None
        elif self._deadline_ps is not None and now_ps >= self._deadline_ps:
            self.counts["timeouts"] += 1
            self._retries += 1
            self._deadline_ps = None
            self._cursor = self._acked
            if self._retries > self._attributes.retry_cnt:
                limit = f"timeout {self._timeout_ps} ps, retry_cnt {self._attributes.retry_cnt}"
                self.stop(f"peer does not acknowledge ({limit})")

    def stop(self, reason: str) -> None:
        """Go into error: flush everything, send nothing more."""
        self.error = self.error or reason
        self._ring = [_NOTHING]
        self._acked = self._cursor = self._reached = self._end
        self._deadline_ps = self._rnr_until_ps = None

    def _retire(self, end: int, now_ps: int) -> None:
        """Everything before ``end`` is acknowledged."""
        if end == self._acked:
            return
        for place in range(self._acked, end):
            self._ring[place % len(self._ring)] = _NOTHING
        self._acked = end
        self._cursor = max(self._cursor, end)
        self._retries = self._rnr_retries = 0
        self._deadline_ps = now_ps + self._timeout_ps if self._cursor > end else None

    def _wait_for_receiver(self, code: int, now_ps: int) -> None:
        if self._rnr_until_ps is not None:
            return
        limit = self._attributes.rnr_retry
        self._rnr_retries += 1
        if limit != RNR_FOR_EVER and self._rnr_retries > limit:
            self.stop(f"peer has no free slot (rnr_retry {limit})")
            return
        self._cursor = self._acked
        self._deadline_ps = None
        self._rnr_until_ps = now_ps + RNR_WAIT_PS[code]
