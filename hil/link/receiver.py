"""The receiving half of a UC queue pair: checks, PSN audit, slots and their owners.

Pure byte handling: the transport hands over datagrams (BTH .. ICRC) and says when each arrived.
What is not for us is counted by cause and dropped. Checks are made in this order, and the first
that fails names the cause: length (>= 16 bytes), ICRC, opcode and version, P_Key, QP, [PSN audit],
pad and RETH length, rkey, bounds (from the start of a slot to its end), immediate (its PSN and
slot against BTH and address).

A message may come in several packets: as writes with a RETH each, the last one with the immediate
(the sensor bridge's way; its metadata lie at the next multiple of 128), or as FIRST, MIDDLE ..,
LAST. A packet that goes on is taken only where the one before it ended and with the next PSN, and
a gap makes the message under way forgotten: it is taken up again with the next packet that begins
one. So a message with a hole never completes.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from hil.link.endpoint import HEADER_BYTES, Completion, Kind
from hil.link.screen import header_fault, payload_of
from hil.link.sequence import Arrival, SequenceAudit
from hil.link.slots import Slots
from hil.wire.hsb import round128
from hil.wire.icrc import BTH_BYTES, IcrcPath
from hil.wire.roce import IMM_BYTES, PSN_BITS, PSN_MASK, slot_imm
from hil.wire.segments import UC_FORMS, Form

if TYPE_CHECKING:
    from hil.link.compiled import Batches

COUNTED: Final = (
    *("rx_ok", "rx_busy", "drop_length", "drop_icrc", "drop_opcode", "drop_pkey", "drop_qp"),
    *("drop_rkey", "drop_bounds", "drop_imm", "drop_peer"),
)


class _Begun(NamedTuple):
    """A message under way: where and at which PSN it goes on.

    ``whole_bytes``: its length if FIRST announced it, None if each packet has its own RETH.
    """

    send: bool
    slot: int
    next_byte: int
    next_psn: int
    whole_bytes: int | None
    busy: bool
    header: bytes


class _Place(NamedTuple):
    """Where a payload goes; ``begun``: the message that it continues."""

    slot: int
    offset: int
    whole_bytes: int | None
    begun: _Begun | None


class Receiver:
    """The rules by which packets get into the memory of one queue pair.

    Attributes:
        counts: one count for every name of :data:`COUNTED`.
        audit: the PSN audit; every packet that reaches this QP intact enters it.

    Args:
        qp: own queue pair number.
        psn_start: PSN expected first.
        slots: the memory.
    """

    __slots__ = ("_begun", "_qp", "_slots", "audit", "counts")

    def __init__(self, qp: int, psn_start: int, slots: Slots) -> None:
        self._qp = qp
        self._slots = slots
        self._begun: _Begun | None = None
        self.audit = SequenceAudit(PSN_BITS, psn_start)
        self.counts = dict.fromkeys(COUNTED, 0)

    def drop(self, cause: str) -> None:
        """Count one datagram that the transport itself refused."""
        self.counts[cause] += 1

    def accept(self, datagram: memoryview, path: IcrcPath, t_rx_ps: int) -> Completion | None:
        """Judge one datagram: store it, refuse it as busy, or drop it.

        Args:
            datagram: BTH .. ICRC, writable; used until the return only.
            path: the direction it came, for the ICRC.
            t_rx_ps: when it was taken from the network.

        Returns:
            A completion for writes with immediate and sends that were stored or found their slot
            owned; None for plain writes, for packets that do not end a message, and for everything
            dropped.
        """
        cause = header_fault(datagram, path, self._qp, UC_FORMS)
        if cause:
            self.counts[cause] += 1
            return None
        form = UC_FORMS[datagram[0]]
        psn = int.from_bytes(datagram[9:12], "big")
        arrival = self.audit.observe(psn)
        if arrival is Arrival.GAP:
            self._begun = None
        payload = payload_of(datagram, form)
        place = "drop_length" if payload is None else self._place(datagram, form, psn, len(payload))
        if payload is None or isinstance(place, str):
            self.counts[str(place)] += 1
            return None
        begun = self._store(place, form, psn, payload)
        if not (form.last and (form.imm or form.send)):
            return None
        if not begun.busy:
            self._slots.hand_over(begun.slot, send=form.send)
        kind: Kind = "send" if form.send else "write_imm"
        imm = _immediate(datagram, form) if form.imm else 0
        return Completion(
            *(begun.slot, imm, psn, begun.next_byte, t_rx_ps, begun.busy, kind, begun.header),
            arrival,
        )

    def accept_batches(self, batches: Batches) -> npt.NDArray[np.int64]:
        """Store the leading datagrams that are plain and in order, at once.

        The result is that of :meth:`accept` on each of them; the first one that is not a whole
        write with immediate, for a free slot and with the next PSN, is left to :meth:`accept`.

        Returns:
            Their slots, i8[k].
        """
        from hil.link.compiled import accept_writes  # compiled: only where it is used

        slots = self._slots
        expected = (self._qp, slots.rkey, self.audit.expected or 0, slots.base_va)
        memory = (slots.stride, slots.owners_u1, slots.memory_u1)
        found = accept_writes(batches, expected, memory)
        if len(found):
            self._begun = None
            self.counts["rx_ok"] += len(found)
            self.audit.in_order(len(found))
        return found

    def _store(self, place: _Place, form: Form, psn: int, payload: memoryview) -> _Begun:
        """Write the payload unless the slot is owned; how far the message has come by it."""
        before = place.begun
        busy = bool(self._slots.owned[place.slot]) if before is None else before.busy
        header = bytes(payload[:HEADER_BYTES]) if before is None else before.header
        self.counts["rx_busy" if busy else "rx_ok"] += 1
        if not busy:
            if before is not None and place.offset > before.next_byte:
                rest = memoryview(bytes(place.offset - before.next_byte))
                self._slots.store(place.slot, before.next_byte, rest)
            self._slots.store(place.slot, place.offset, payload)
        end, next_psn = place.offset + len(payload), (psn + 1) & PSN_MASK
        begun = _Begun(form.send, place.slot, end, next_psn, place.whole_bytes, busy, header)
        plain_write = form.first and not form.send and not form.imm  # others may follow it
        self._begun = begun if plain_write or not form.last else None
        return begun

    def _place(self, datagram: memoryview, form: Form, psn: int, length: int) -> _Place | str:
        """Where the payload goes, or why it must not."""
        if not form.first:
            place = self._continued(form, psn, length)
        elif form.send:
            place = self._next_send(length)
        else:
            place = self._written(datagram, form, psn, length)
        if form.imm and not form.send and not isinstance(place, str):
            wrong = _immediate(datagram, form) != slot_imm(psn, place.slot)
            return "drop_imm" if wrong else place
        return place

    def _next_send(self, length: int) -> _Place | str:
        slots = self._slots
        fits = slots.n_slots and length <= slots.stride
        return _Place(slots.next_send, 0, slots.stride, None) if fits else "drop_bounds"

    def _written(self, datagram: memoryview, form: Form, psn: int, length: int) -> _Place | str:
        va, rkey, announced = struct.unpack_from("!QII", datagram, BTH_BYTES)
        if announced != length if form.last else announced <= length:
            return "drop_length"
        if rkey != self._slots.rkey:
            return "drop_rkey"
        found = self._slots.locate(va, announced)
        if found is None:
            return "drop_bounds"
        slot, offset = found
        if offset == 0:
            return _Place(slot, 0, None if form.last else announced, None)
        begun = self._begun
        goes_on = (
            form.last
            and begun is not None
            and begun.whole_bytes is None
            and (slot, psn) == (begun.slot, begun.next_psn)
            and offset in (begun.next_byte, round128(begun.next_byte) if form.imm else 0)
        )
        return _Place(slot, offset, None, begun) if goes_on else "drop_bounds"

    def _continued(self, form: Form, psn: int, length: int) -> _Place | str:
        begun = self._begun
        if begun is None or (begun.send, begun.next_psn) != (form.send, psn):
            return "drop_bounds"
        whole = begun.whole_bytes
        if whole is None:
            return "drop_bounds"
        end = begun.next_byte + length
        if end != whole if form.last and not form.send else end > whole:
            self._begun = None
            return "drop_bounds" if form.send else "drop_length"
        return _Place(begun.slot, begun.next_byte, whole, begun)


def _immediate(datagram: memoryview, form: Form) -> int:
    return int.from_bytes(datagram[form.payload_at - IMM_BYTES : form.payload_at], "big")
