"""The responding half of an RC queue pair: every message is carried out once and in order.

A pure state machine: one datagram in, at most one completion and one answer out. Only the packet
with the expected PSN is carried out:

- a PSN behind it is a repetition: never carried out again, answered by an ACK of the newest PSN
  that was;
- a PSN ahead of it: dropped, and one NAK 0x60 with the expected PSN until the gap closes;
- no free slot (the application owns it): RNR NAK, nothing changes; the packets behind it are
  dropped in silence until it comes again. Owned memory is never written, plain writes included;
- wrong memory key, or address not the start of a slot that holds the message: NAK 0x62. RETH
  length, packet size or opcode at odds with the message: NAK 0x61. Both are final: the pair goes
  into error and stays silent, as Linux rdma_rxe does;
- a packet that asks for it is answered by an ACK with the number of messages completed (MSN).
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from hil.link.endpoint import HEADER_BYTES, Completion
from hil.link.rc_requester import RcAttributes
from hil.link.screen import payload_of
from hil.link.sequence import Arrival
from hil.link.slots import Slots
from hil.wire.icrc import BTH_BYTES
from hil.wire.roce import (
    ACK_NO_CREDIT_LIMIT,
    IMM_BYTES,
    NAK_ACCESS,
    NAK_REQUEST,
    NAK_SEQUENCE,
    PSN_MASK,
    RNR_NAK,
)
from hil.wire.segments import RC_FORMS, Form, psn_distance

COUNTED: Final = (
    *("rx_ok", "rx_duplicate", "rx_ahead"),
    *("drop_length", "drop_rkey", "drop_bounds", "drop_opcode"),
)
_SYNDROME: Final = {
    "drop_rkey": NAK_ACCESS,
    "drop_bounds": NAK_ACCESS,
    "drop_length": NAK_REQUEST,
    "drop_opcode": NAK_REQUEST,
}


class Answer(NamedTuple):
    """An acknowledgement to be sent: PSN, AETH syndrome, MSN (modulo 2^24)."""

    psn: int
    syndrome: int
    msn: int


class _Message(NamedTuple):
    """The message under way: ``arrived`` of ``whole`` bytes (of a SEND: the slot's size)."""

    send: bool
    slot: int
    arrived: int
    whole: int


class Responder:
    """One receiver.

    Attributes:
        counts: one count for every name of :data:`COUNTED`. ``rx_ok``: packets carried out;
            ``drop_*``: the cause of a final NAK, or (length) of a silent drop.
        error: why the pair is dead; "" while all is well.

    Args:
        psn_start: PSN expected first.
        slots: the memory.
        attributes: path MTU and RNR timer are used.
    """

    __slots__ = (
        *("_attributes", "_expected", "_message", "_msn", "_silent", "_slots", "counts", "error"),
    )

    def __init__(self, psn_start: int, slots: Slots, attributes: RcAttributes) -> None:
        self._attributes = attributes
        self._slots = slots
        self._expected = psn_start
        self._msn = 0
        self._silent = False  # the gap, or the wait for a slot, was reported
        self._message: _Message | None = None
        self.counts = dict.fromkeys(COUNTED, 0)
        self.error = ""

    @property
    def expected(self) -> int:
        """PSN of the next packet to be carried out."""
        return self._expected

    def accept(self, datagram: memoryview, t_rx_ps: int) -> tuple[Completion | None, Answer | None]:
        """Take one packet of the peer that passed :func:`hil.link.screen.header_fault`.

        Args:
            datagram: BTH .. ICRC with an opcode of :data:`hil.wire.segments.RC_FORMS`.
            t_rx_ps: when it was taken from the network.
        """
        form = RC_FORMS[datagram[0]]
        payload = payload_of(datagram, form)
        if payload is None:
            self.counts["drop_length"] += 1
            return None, None
        psn = int.from_bytes(datagram[9:12], "big")
        ahead = psn_distance(psn, self._expected)
        if ahead < 0:
            self.counts["rx_duplicate"] += 1
            return None, self._answer(self._expected - 1, ACK_NO_CREDIT_LIMIT)
        if ahead > 0:
            self.counts["rx_ahead"] += 1
            if self._silent:
                return None, None
            self._silent = True
            return None, self._answer(self._expected, NAK_SEQUENCE)
        return self._carry_out(datagram, form, payload, t_rx_ps)

    def _carry_out(
        self, datagram: memoryview, form: Form, payload: memoryview, t_rx_ps: int
    ) -> tuple[Completion | None, Answer | None]:
        message, psn = self._admit(datagram, form, len(payload)), self._expected
        if isinstance(message, str):
            self.counts[message] += 1
            syndrome = _SYNDROME[message]
            self.error = f"a request of the peer was refused: {message}, NAK 0x{syndrome:02x}"
            return None, self._answer(psn, syndrome)
        slots = self._slots
        if form.first and slots.owned[message.slot]:
            self._silent = True
            return None, self._answer(psn, RNR_NAK + self._attributes.min_rnr_timer)
        slots.store(message.slot, message.arrived, payload)
        self.counts["rx_ok"] += 1
        self._expected = (psn + 1) & PSN_MASK
        self._silent = False
        message = message._replace(arrived=message.arrived + len(payload))
        self._message = None if form.last else message
        self._msn += form.last
        completion = None
        if form.last and (form.send or form.imm):
            imm = datagram[form.payload_at - IMM_BYTES : form.payload_at] if form.imm else b""
            completion = self._complete(message, psn, int.from_bytes(imm, "big"), t_rx_ps)
        asked = datagram[8] & 0x80
        return completion, self._answer(psn, ACK_NO_CREDIT_LIMIT) if asked else None

    def _admit(self, datagram: memoryview, form: Form, length: int) -> _Message | str:
        """The message that a packet begins or continues, or why it cannot be carried out."""
        message: _Message | str | None = self._message
        if form.first is not (message is None):
            return "drop_opcode"
        if message is None:
            message = self._begun(datagram, form)
        if isinstance(message, str):
            return message
        if message.send is not form.send:
            return "drop_opcode"
        end, mtu = message.arrived + length, self._attributes.path_mtu
        least = 0 if form.first else 1
        right_size = least <= length <= mtu if form.last else length == mtu
        right_end = end == message.whole if form.last and not form.send else end <= message.whole
        return message if right_size and right_end else "drop_length"

    def _begun(self, datagram: memoryview, form: Form) -> _Message | str:
        slots = self._slots
        if form.send and slots.n_slots:
            return _Message(True, slots.next_send, 0, slots.stride)  # noqa: FBT003 - a send
        if form.send:
            return "drop_bounds"
        va, rkey, whole = struct.unpack_from("!QII", datagram, BTH_BYTES)
        if rkey != slots.rkey:
            return "drop_rkey"
        found = slots.locate(va, whole)
        if found is None or found[1]:
            return "drop_bounds"
        return _Message(False, found[0], 0, whole)  # noqa: FBT003 - a write

    def _complete(self, message: _Message, psn: int, imm: int, t_rx_ps: int) -> Completion:
        slots, slot, length = self._slots, message.slot, message.arrived
        slots.hand_over(slot, send=message.send)
        at = slot * slots.stride
        return Completion(
            slot=slot,
            imm=imm,
            psn=psn,
            length=length,
            t_rx_ps=t_rx_ps,
            busy=False,
            kind="send" if message.send else "write_imm",
            header=bytes(slots.memory[at : at + min(length, HEADER_BYTES)]),
            arrival=Arrival.IN_ORDER,
        )

    def _answer(self, psn: int, syndrome: int) -> Answer:
        return Answer(psn & PSN_MASK, syndrome, self._msn & PSN_MASK)
