"""Faults on a link: a plan of what happens to which frame, and an endpoint that carries it out.

A plan names frames by their index: 0 is the first one posted. The same plan acts on datagrams
(:class:`Faulty`) and on plain sequence numbers (:meth:`FaultPlan.arrivals`), so that large runs
without packets and small runs with packets can be compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from hil.errors import UsageError
from hil.link.endpoint import (
    Buffer,
    Completion,
    Endpoint,
    Kind,
    PeerAddress,
    Prepared,
    Stage,
    Transport,
)
from hil.seeds import generator
from hil.wire.icrc import ICRC_BYTES
from hil.wire.roce import WITH_IMM, WITH_RETH

_BYTE: Final = 8


@dataclass(frozen=True, slots=True)
class FaultPlan:
    """What happens to frames on their way out. A frame may appear in one of the fields only.

    Args:
        drop: frames that never leave.
        duplicate: frame -> frames after which a second copy is sent (0 = at once).
        reorder: frame -> number of later frames that overtake it (>= 1).
        flip: frame -> bit of the datagram (BTH .. ICRC) that is inverted; the ICRC is left.
        corrupt: frame -> bit of the payload that is inverted before the ICRC is made: no
            transport check can see it.
    """

    drop: frozenset[int] = frozenset()
    duplicate: Mapping[int, int] = field(default_factory=dict)
    reorder: Mapping[int, int] = field(default_factory=dict)
    flip: Mapping[int, int] = field(default_factory=dict)
    corrupt: Mapping[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        groups = (self.drop, self.duplicate, self.reorder, self.flip, self.corrupt)
        if len(set().union(*groups)) != sum(len(group) for group in groups):
            raise UsageError("a frame may have one fault only", where="fault plan")
        if any(k < 1 for k in self.reorder.values()) or any(k < 0 for k in self.duplicate.values()):
            raise UsageError(
                "fault plan holds an impossible delay", allowed="reorder >= 1, duplicate >= 0"
            )

    @classmethod
    def seeded(
        cls,
        seed: int,
        frames: int,
        *,
        drop: int = 0,
        duplicate: int = 0,
        reorder: int = 0,
        flip: int = 0,
        max_delay: int = 8,
    ) -> FaultPlan:
        """A plan with exact numbers of faults at random places.

        Faulty frames are more than ``2 * max_delay`` apart and away from both ends, so that each
        fault is countable on its own.

        Args:
            seed: run seed; the stream is ``link.faults``.
            frames: frames of the run.
            drop: how many are lost.
            duplicate: how many are sent twice, the copy 0..max_delay frames later.
            reorder: how many are overtaken by 1..max_delay frames.
            flip: how many have one bit of the BTH's QP inverted on the wire.
            max_delay: the longest delay in frames.

        Raises:
            UsageError: there is no room for so many faults.
        """
        total = drop + duplicate + reorder + flip
        room = 2 * max_delay + 2
        places = frames // room - 2
        if total > places:
            raise UsageError(
                "too many faults for so few frames",
                got=f"{total} faults in {frames} frames",
                allowed=f"<= {max(0, places)}",
            )
        rng = generator(seed, "link", "faults")
        chosen = (1 + rng.permutation(places)[:total]) * room + rng.integers(0, 2, total)
        ends = np.cumsum([drop, duplicate, reorder, flip])
        dropped, copied, moved, flipped, _ = (part.tolist() for part in np.split(chosen, ends))
        delays = rng.integers(1, max_delay + 1, total).tolist()
        return cls(
            frozenset(dropped),
            {frame: delays.pop() - 1 for frame in copied},
            {frame: delays.pop() for frame in moved},
            {frame: 40 + int(rng.integers(0, 24)) for frame in flipped},
        )

    def arrivals(self, frames: int) -> npt.NDArray[np.int64]:
        """Indices of frames in the order in which they arrive, i8[m]; flipped ones are lost."""
        gone = np.array(sorted({*self.drop, *self.flip}), np.int64)
        order = np.setdiff1d(np.arange(frames), gone, assume_unique=True)
        keys = order * 2
        late = np.isin(order, np.array(sorted(self.reorder), np.int64))
        keys[late] += 2 * np.array([self.reorder[i] for i in order[late].tolist()], np.int64) + 1
        copies = np.array(sorted(self.duplicate), np.int64)
        after = 2 * np.array([i + self.duplicate[i] for i in copies.tolist()], np.int64) + 1
        both = np.concatenate((order, copies[copies < frames]))
        when = np.concatenate((keys, after[copies < frames]))
        return both[np.lexsort((both, when))]


class Faulty:
    """An endpoint whose outgoing frames suffer a plan. Everything else is passed through.

    Args:
        inner: the endpoint that is wrapped; its ``intercept`` is taken.
        plan: what happens to which frame.
    """

    def __init__(self, inner: Endpoint, plan: FaultPlan) -> None:
        self.inner = inner
        self.plan = plan
        self._frame = 0
        self._held: list[tuple[int, bytes]] = []
        inner.intercept(self._suffer)

    def _suffer(self, datagram: bytes) -> Iterator[bytes]:
        frame, plan = self._frame, self.plan
        self._frame += 1
        if frame in plan.reorder:
            self._held.append((frame + plan.reorder[frame], datagram))
        elif frame in plan.flip:
            yield _flipped(datagram, plan.flip[frame])
        elif frame in plan.corrupt:
            spoiled = bytearray(_flipped(datagram, _BYTE * _start(datagram) + plan.corrupt[frame]))
            self.inner.seal(spoiled)
            yield bytes(spoiled)
        elif frame not in plan.drop:
            yield datagram
            if frame in plan.duplicate:
                self._held.append((frame + plan.duplicate[frame], datagram))
        yield from self._due(frame)

    def _due(self, frame: int) -> list[bytes]:
        due = [datagram for when, datagram in self._held if when <= frame]
        self._held = [(when, datagram) for when, datagram in self._held if when > frame]
        return due

    def flush(self) -> None:
        """Send what is still held back."""
        held, self._held = self._held, []
        for _, datagram in sorted(held, key=lambda one: one[0]):
            self.inner.transmit(datagram)

    @property
    def transport(self) -> Transport:
        """Passed through."""
        return self.inner.transport

    @property
    def error(self) -> str:
        """Passed through."""
        return self.inner.error

    def next_timer_ps(self) -> int | None:
        """Passed through."""
        return self.inner.next_timer_ps()

    def register(self, n_slots: int, slot_bytes: int) -> memoryview:
        """See :class:`hil.link.endpoint.Endpoint`; so are all that follow."""
        return self.inner.register(n_slots, slot_bytes)

    def address(self) -> PeerAddress:
        """Passed through."""
        return self.inner.address()

    def connect(self, peer: PeerAddress) -> None:
        """Passed through."""
        self.inner.connect(peer)

    def post_write_imm(self, payload: Buffer, slot: int) -> None:
        """Passed through."""
        self.inner.post_write_imm(payload, slot)

    def post_write(self, payload: Buffer, slot: int) -> None:
        """Passed through."""
        self.inner.post_write(payload, slot)

    def post_send(self, payload: Buffer) -> None:
        """Passed through."""
        self.inner.post_send(payload)

    def prepare(
        self,
        payloads: npt.NDArray[np.uint8],
        slots: npt.NDArray[np.int64] | None,
        kind: Kind = "write_imm",
    ) -> Prepared:
        """Passed through."""
        return self.inner.prepare(payloads, slots, kind)

    def post(self, prepared: Prepared, index: int) -> None:
        """Passed through."""
        self.inner.post(prepared, index)

    def poll(self, max_completions: int) -> list[Completion]:
        """Passed through."""
        return self.inner.poll(max_completions)

    def release(self, slot: int) -> None:
        """Passed through."""
        self.inner.release(slot)

    def intercept(self, stage: Stage | None) -> None:
        """A second stage behind the faults is not built."""
        if stage is not None:
            raise UsageError("a faulty endpoint has no room for another stage")

    def seal(self, datagram: bytearray) -> None:
        """Passed through."""
        self.inner.seal(datagram)

    def transmit(self, datagram: bytes) -> None:
        """Passed through."""
        self.inner.transmit(datagram)

    def fileno(self) -> int | None:
        """Passed through."""
        return self.inner.fileno()

    def counters(self) -> dict[str, int]:
        """Passed through."""
        return self.inner.counters()

    def close(self) -> None:
        """Send what is held back, then close."""
        self.flush()
        self.inner.close()


def _flipped(datagram: bytes, bit: int) -> bytes:
    place = bit // _BYTE
    if place >= len(datagram):
        raise UsageError("bit lies outside the datagram", got=str(bit))
    spoiled = bytearray(datagram)
    spoiled[place] ^= 1 << bit % _BYTE
    return bytes(spoiled)


def _start(datagram: bytes) -> int:
    opcode = datagram[0]
    return 12 + (16 if opcode in WITH_RETH else 0) + (ICRC_BYTES if opcode in WITH_IMM else 0)
