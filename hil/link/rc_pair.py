"""An RC queue pair: requester and responder over one stream of datagrams, without the wire.

Takes every datagram of the peer, says what completed, and keeps what is to be sent until the
endpoint asks for it: acknowledgements first, then packets. One ACK covers many messages, so of
several that wait only the newest is sent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from hil.link.endpoint import Completion
from hil.link.rc_requester import RcAttributes, Requester
from hil.link.rc_responder import Answer, Responder
from hil.link.screen import header_fault
from hil.link.slots import Slots
from hil.wire.icrc import ICRC_BYTES, IcrcPath
from hil.wire.roce import ACK_NO_CREDIT_LIMIT, NAK_SEQUENCE, PSN_MASK, Opcode, Packet, Target
from hil.wire.segments import (
    ACK_DATAGRAM_BYTES,
    RC_FORMS,
    acknowledgement,
    send_packets,
    write_packets,
)

_OPCODES = frozenset({*RC_FORMS, int(Opcode.RC_ACKNOWLEDGE)})
_SYNDROME_AT = 12


class RcPair:
    """Both halves of one queue pair; see :class:`hil.link.packets.QueuePair`.

    Args:
        qp: own queue pair number.
        psn_start: PSN that this end expects first.
        slots: the memory.
        attributes: limits and times.
    """

    __slots__ = ("_answers", "_attributes", "_counts", "_qp", "_target", "requester", "responder")

    def __init__(self, qp: int, psn_start: int, slots: Slots, attributes: RcAttributes) -> None:
        self._qp = qp
        self._attributes = attributes
        self._target = Target(0, 0, 0, 0)
        self._answers: list[Answer] = []
        self._counts: Counter[str] = Counter()
        self.requester = Requester(0, attributes)
        self.responder = Responder(psn_start, slots, attributes)

    @property
    def packet_bytes(self) -> int:
        """Payload bytes of one packet at most: the path MTU."""
        return self._attributes.path_mtu

    @property
    def psn(self) -> int:
        """PSN that the next packet must carry."""
        return self.requester.psn

    @property
    def error(self) -> str:
        """Why the pair is in error; "" while it works."""
        return self.requester.error or self.responder.error

    @property
    def counts(self) -> Counter[str]:
        """Counts of both halves and of what neither of them was shown; 0 where there is no key."""
        return self._counts + Counter(self.requester.counts) + Counter(self.responder.counts)

    def connect(self, target: Target, psn_start: int) -> None:
        """Send there, beginning with that PSN."""
        self._target = target
        counts = self.requester.counts
        self.requester = Requester(psn_start, self._attributes)
        self.requester.counts = counts

    def write_packets(self, payload: bytes, slot: int, *, with_imm: bool) -> list[Packet]:
        """One RDMA WRITE to the start of a slot."""
        size = self._attributes.path_mtu
        return write_packets(self._target, self.psn, slot, payload, size, with_imm=with_imm)

    def send_packets(self, payload: bytes) -> list[Packet]:
        """One SEND."""
        return send_packets(self._target.qp, self.psn, payload, self._attributes.path_mtu)

    def expire(self, now_ps: int) -> None:
        """See :meth:`hil.link.rc_requester.Requester.expire`."""
        self.requester.expire(now_ps)

    def next_timer_ps(self) -> int | None:
        """When :meth:`expire` is wanted next though nothing arrives."""
        return self.requester.next_timer_ps()

    def drop(self, cause: str) -> None:
        """Count one datagram that the transport itself refused."""
        self._counts[cause] += 1

    def accept(self, datagram: memoryview, path: IcrcPath, t_rx_ps: int) -> Completion | None:
        """Judge one datagram; what is to be answered waits for :meth:`outgoing`.

        Args:
            datagram: BTH .. ICRC, writable; used until the return only.
            path: the direction it came, for the ICRC.
            t_rx_ps: when it was taken from the network.
        """
        cause = header_fault(datagram, path, self._qp, _OPCODES)
        if not cause and self.error:
            cause = "drop_qp"
        if not cause and datagram[0] == Opcode.RC_ACKNOWLEDGE:
            cause = self._acknowledged(datagram, t_rx_ps)
        elif not cause:
            return self._requested(datagram, t_rx_ps)
        if cause:
            self.drop(cause)
        return None

    def post(self, datagrams: Sequence[bytearray]) -> bool:
        """See :meth:`hil.link.rc_requester.Requester.post`; refused on a pair in error."""
        return self.requester.post(datagrams)

    def outgoing(self, now_ps: int) -> list[bytearray]:
        """Datagrams to be sent now, in order; their ICRC is still to be made."""
        answers, self._answers = self._answers, []
        self._counts.update(_counter_of(answer) for answer in answers)
        out = [
            bytearray(acknowledgement(self._target.qp, *answer).pack() + bytes(ICRC_BYTES))
            for answer in answers
        ]
        return out + self.requester.outgoing(now_ps)

    def _acknowledged(self, datagram: memoryview, now_ps: int) -> str:
        if len(datagram) != ACK_DATAGRAM_BYTES or datagram[1] >> 4 & 3:
            return "drop_length"
        psn = int.from_bytes(datagram[8:12], "big") & PSN_MASK
        known = self.requester.acknowledge(psn, datagram[_SYNDROME_AT], now_ps)
        return "" if known else "drop_opcode"

    def _requested(self, datagram: memoryview, t_rx_ps: int) -> Completion | None:
        completion, answer = self.responder.accept(datagram, t_rx_ps)
        if answer is not None:
            newest = self._answers[-1].syndrome if self._answers else -1
            if newest == answer.syndrome == ACK_NO_CREDIT_LIMIT:
                self._answers.pop()
            self._answers.append(answer)
        if self.responder.error:
            self.requester.stop(self.responder.error)
        return completion


def _counter_of(answer: Answer) -> str:
    if answer.syndrome == ACK_NO_CREDIT_LIMIT:
        return "tx_ack"
    return "tx_rnr" if answer.syndrome < NAK_SEQUENCE else "tx_nak"
