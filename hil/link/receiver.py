"""The receiving half of a UC queue pair: checks, PSN audit, slots and their owners.

Pure byte handling: the transport hands over datagrams (BTH .. ICRC) and says when each arrived.
What is not for us is counted by cause and dropped. Checks are made in this order, and the first
that fails names the cause: length (>= 16 bytes), ICRC, opcode and version, P_Key, QP, [PSN audit],
pad and RETH length, rkey, bounds (from the start of a slot to its end), immediate (its PSN and
slot against BTH and RETH).

A message may come in several writes, each with its own RETH; the last one has the immediate. A
write behind the start of a slot is taken only where the one before it ended and with the next PSN,
so a message with a hole never completes.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from hil.errors import LinkError
from hil.link.endpoint import HEADER_BYTES, Completion, Kind
from hil.link.sequence import SequenceAudit
from hil.wire.icrc import BTH_BYTES, ICRC_BYTES, IcrcPath
from hil.wire.roce import (
    IMM_BYTES,
    MAX_QP,
    MAX_SLOTS,
    MIN_DATAGRAM_BYTES,
    PKEY_DEFAULT,
    PSN_BITS,
    PSN_MASK,
    RETH_BYTES,
    STRIDE_UNIT,
    Opcode,
    slot_imm,
)

if TYPE_CHECKING:
    from hil.wire.roce_bulk import Batches

BASE_VA: Final = 0x1000_0000
_WRITE: Final = int(Opcode.UC_WRITE_ONLY)
_WRITE_IMM: Final = int(Opcode.UC_WRITE_ONLY_IMM)
_SEND: Final = int(Opcode.UC_SEND_ONLY)
_PAYLOAD_AT: Final = {
    _WRITE: BTH_BYTES + RETH_BYTES,
    _WRITE_IMM: BTH_BYTES + RETH_BYTES + IMM_BYTES,
    _SEND: BTH_BYTES,
}

COUNTED: Final = (
    *("rx_ok", "rx_busy", "drop_length", "drop_icrc", "drop_opcode", "drop_pkey", "drop_qp"),
    *("drop_rkey", "drop_bounds", "drop_imm", "drop_peer"),
)


@dataclass(frozen=True, slots=True)
class _Begun:
    """A message of several writes: the address and the PSN at which it goes on."""

    slot: int
    next_byte: int
    next_psn: int
    busy: bool
    header: bytes


class Receiver:
    """Memory of one queue pair and the rules by which packets get into it.

    Attributes:
        counts: one count for every name of :data:`COUNTED`.
        audit: the PSN audit; every packet that reaches this QP intact enters it.
        n_slots: 0 until :meth:`register`.
        stride: bytes from slot to slot.

    Args:
        qp: own queue pair number.
        rkey: own memory key.
        psn_start: PSN expected first.
    """

    __slots__ = (
        *("_begun", "_bytes", "_memory", "_owned", "_owners", "_qp", "_rkey", "_send_slot"),
        *("audit", "counts", "n_slots", "stride"),
    )

    def __init__(self, qp: int, rkey: int, psn_start: int) -> None:
        self._qp, self._rkey = qp, rkey
        self._memory = memoryview(b"")
        self._owned = bytearray()
        self._bytes = self._owners = np.empty(0, np.uint8)
        self._send_slot = 0
        self._begun: _Begun | None = None
        self.n_slots = self.stride = 0
        self.audit = SequenceAudit(PSN_BITS, psn_start)
        self.counts = dict.fromkeys(COUNTED, 0)

    def register(self, n_slots: int, slot_bytes: int) -> memoryview:
        """Make the slots; see :meth:`hil.link.endpoint.Endpoint.register`.

        Raises:
            LinkError: called twice, or sizes out of range.
        """
        if self.n_slots or not 1 <= n_slots <= MAX_SLOTS or slot_bytes < 1:
            raise LinkError(
                "memory cannot be registered",
                got=f"{n_slots} slots of {slot_bytes} B after {self.n_slots} slots",
                allowed=f"once, 1..{MAX_SLOTS} slots of >= 1 B",
            )
        self.n_slots = n_slots
        self.stride = -(-slot_bytes // STRIDE_UNIT) * STRIDE_UNIT
        self._memory = memoryview(bytearray(n_slots * self.stride))
        self._owned = bytearray(n_slots)
        self._bytes = np.frombuffer(self._memory, np.uint8)
        self._owners = np.frombuffer(self._owned, np.uint8)
        return self._memory

    def release(self, slot: int) -> None:
        """Take a slot back from the application.

        Raises:
            LinkError: it does not own that slot.
        """
        if not 0 <= slot < self.n_slots or not self._owned[slot]:
            raise LinkError(
                "slot is not owned", got=str(slot), fix="release once, and never a busy completion"
            )
        self._owned[slot] = 0

    def release_many(self, slots: npt.NDArray[np.int64]) -> None:
        """Take different slots i8[n] back at once.

        Raises:
            LinkError: the application does not own one of them; then none is taken back.
        """
        try:
            owned = slots.min(initial=0) >= 0 and self._owners[slots].all()
        except IndexError:
            owned = False
        if not owned:
            raise LinkError("slots are not owned", got=str(slots.tolist()), fix="release once")
        self._owners[slots] = 0

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
            owned; None for plain writes and for everything dropped.
        """
        cause = self._transport_fault(datagram, path)
        if cause:
            self.counts[cause] += 1
            return None
        opcode = datagram[0]
        psn = int.from_bytes(datagram[9:12], "big")
        arrival = self.audit.observe(psn)
        start = _PAYLOAD_AT[opcode]
        payload = datagram[start : max(start, len(datagram) - ICRC_BYTES - (datagram[1] >> 4 & 3))]
        slot, offset, cause = self._place(datagram, opcode, psn, len(payload))
        if cause:
            self.counts[cause] += 1
            return None
        begun = self._begun if offset else None
        busy = self._owned[slot] != 0 if begun is None else begun.busy
        header = bytes(payload[:HEADER_BYTES]) if begun is None else begun.header
        self.counts["rx_busy" if busy else "rx_ok"] += 1
        end = offset + len(payload)
        if not busy:
            at = slot * self.stride
            self._memory[at + offset : at + end] = payload
        if opcode == _WRITE:
            self._begun = _Begun(slot, end, (psn + 1) & PSN_MASK, busy, header)
            return None
        self._begun = None
        if not busy:
            self._owned[slot] = 1
            if opcode == _SEND:
                self._send_slot = (slot + 1) % self.n_slots
        kind: Kind = "send" if opcode == _SEND else "write_imm"
        imm = int.from_bytes(datagram[28:32], "big") if opcode == _WRITE_IMM else 0
        return Completion(slot, imm, psn, end, t_rx_ps, busy, kind, header, arrival)

    def accept_batches(self, batches: Batches) -> npt.NDArray[np.int64]:
        """Store the leading datagrams that are plain and in order, at once.

        The result is that of :meth:`accept` on each of them; the first one that is not a whole
        write with immediate, for a free slot and with the next PSN, is left to :meth:`accept`.

        Returns:
            Their slots, i8[k].
        """
        from hil.wire.roce_bulk import accept_writes  # compiled: only where it is used

        expected = (self._qp, self._rkey, self.audit.expected or 0, BASE_VA)
        slots = accept_writes(batches, expected, (self.stride, self._owners, self._bytes))
        if len(slots):
            self._begun = None
            self.counts["rx_ok"] += len(slots)
            self.audit.in_order(len(slots))
        return slots

    def _transport_fault(self, datagram: memoryview, path: IcrcPath) -> str:
        if len(datagram) < MIN_DATAGRAM_BYTES:
            return "drop_length"
        if not path.check(datagram):
            return "drop_icrc"
        opcode, flags, pkey, qp, _ = struct.unpack_from("!BBHII", datagram)
        if opcode not in _PAYLOAD_AT or flags & 15:
            return "drop_opcode"
        if pkey != PKEY_DEFAULT:
            return "drop_pkey"
        return "" if qp & MAX_QP == self._qp else "drop_qp"

    def _place(
        self, datagram: memoryview, opcode: int, psn: int, length: int
    ) -> tuple[int, int, str]:
        """Slot, offset in it, and why the payload must not go there."""
        whole = _PAYLOAD_AT[opcode] + length + (datagram[1] >> 4 & 3) + ICRC_BYTES
        if whole != len(datagram) or whole % 4:
            return 0, 0, "drop_length"
        if length > self.stride or not self.n_slots:
            return 0, 0, "drop_bounds"
        if opcode == _SEND:
            return self._send_slot, 0, ""
        return self._written_slot(datagram, opcode, psn, length)

    def _written_slot(
        self, datagram: memoryview, opcode: int, psn: int, length: int
    ) -> tuple[int, int, str]:
        va, rkey, announced = struct.unpack_from("!QII", datagram, BTH_BYTES)
        if announced != length:
            return 0, 0, "drop_length"
        if rkey != self._rkey:
            return 0, 0, "drop_rkey"
        slot, offset = divmod(va - BASE_VA, self.stride)
        inside = 0 <= slot < self.n_slots and offset + length <= self.stride
        if not inside or (offset and not self._goes_on(slot, offset, psn)):
            return 0, 0, "drop_bounds"
        imm = int.from_bytes(datagram[28:32], "big")
        wrong = opcode == _WRITE_IMM and imm != slot_imm(psn, slot)
        return slot, offset, "drop_imm" if wrong else ""

    def _goes_on(self, slot: int, offset: int, psn: int) -> bool:
        begun = self._begun
        return begun is not None and (slot, offset, psn) == (
            begun.slot,
            begun.next_byte,
            begun.next_psn,
        )
