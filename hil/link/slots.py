"""Registered memory of a queue pair: slots of one size, and who owns each."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from hil.errors import LinkError
from hil.wire.roce import MAX_SLOTS, STRIDE_UNIT

BASE_VA: Final = 0x1000_0000


class Slots:
    """What a peer may write: ``n_slots`` slots, ``stride`` bytes apart, from ``base_va`` on.

    A slot is owned by the application from its completion until :meth:`release`. Sends fill the
    slots in turn.

    Attributes:
        memory: all slots, writable.
        owned: one byte per slot, 1 = owned by the application.
        memory_u1: the same memory as an array, u1[n_slots * stride].
        owners_u1: ``owned`` as an array, u1[n_slots].
        n_slots: 0 until :meth:`register`.
        stride: bytes from slot to slot.
        next_send: the slot that the next send fills.

    Args:
        rkey: memory key by which the peer writes.
        base_va: address of slot 0 as the peer sees it.
        unit: the stride is a multiple of so many bytes.
    """

    __slots__ = (
        *("_unit", "base_va", "memory", "memory_u1", "n_slots", "next_send", "owned", "owners_u1"),
        *("rkey", "stride"),
    )

    def __init__(self, rkey: int, base_va: int = BASE_VA, unit: int = STRIDE_UNIT) -> None:
        self.rkey, self.base_va, self._unit = rkey, base_va, unit
        self.memory = memoryview(b"")
        self.owned = bytearray()
        self.memory_u1 = self.owners_u1 = np.empty(0, np.uint8)
        self.n_slots = self.stride = self.next_send = 0

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
        self.stride = -(-slot_bytes // self._unit) * self._unit
        self.memory = memoryview(bytearray(n_slots * self.stride))
        self.owned = bytearray(n_slots)
        self.memory_u1 = np.frombuffer(self.memory, np.uint8)
        self.owners_u1 = np.frombuffer(self.owned, np.uint8)
        return self.memory

    def locate(self, va: int, length: int) -> tuple[int, int] | None:
        """Slot and offset of an address; None unless ``length`` bytes from it lie in one slot."""
        if not self.n_slots:
            return None
        slot, offset = divmod(va - self.base_va, self.stride)
        inside = 0 <= slot < self.n_slots and offset + length <= self.stride
        return (slot, offset) if inside else None

    def store(self, slot: int, offset: int, payload: memoryview) -> None:
        """Write into a slot; the caller has checked the bounds."""
        at = slot * self.stride + offset
        self.memory[at : at + len(payload)] = payload

    def hand_over(self, slot: int, *, send: bool) -> None:
        """Make the application the owner; ``send``: the slot's turn is over."""
        self.owned[slot] = 1
        if send:
            self.next_send = (slot + 1) % self.n_slots

    def release(self, slot: int) -> None:
        """Take a slot back from the application.

        Raises:
            LinkError: the application does not own it.
        """
        if not 0 <= slot < self.n_slots or not self.owned[slot]:
            raise LinkError(
                "slot is not owned", got=str(slot), fix="release once, and never a busy completion"
            )
        self.owned[slot] = 0

    def release_many(self, slots: npt.NDArray[np.int64]) -> None:
        """Take different slots i8[n] back at once.

        Raises:
            LinkError: the application does not own one of them; then none is taken back.
        """
        try:
            owned = slots.min(initial=0) >= 0 and self.owners_u1[slots].all()
        except IndexError:
            owned = False
        if not owned:
            raise LinkError("slots are not owned", got=str(slots.tolist()), fix="release once")
        self.owners_u1[slots] = 0
