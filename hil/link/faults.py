"""Faults on a link: a plan of what happens to which frame, and an endpoint that carries it out.

A plan names frames by number. The same plan acts on datagrams (:class:`Faulty`) and on plain
numbers (:func:`hil.link.frame_fault.arrivals`), so that large runs without packets and small runs
with packets can be compared. Plans that are drawn from a seed stand in :mod:`hil.link.fault_plan`.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

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
from hil.link.frame_fault import I64, FrameFault, arrivals
from hil.seeds import generator
from hil.timebase import monotonic_ps
from hil.wire.icrc import BTH_BYTES, ICRC_BYTES
from hil.wire.roce import IMM_BYTES, PSN_MASK, RETH_BYTES, WITH_IMM, WITH_RETH

_BYTE: Final = 8
_QP_AT, _PSN_AT, _RKEY_AT = 4, 8, 20

_CLEAN: Final = (FrameFault.NONE, 0)


class Plan(Protocol):
    """What happens to which frame."""

    def of(self, frame: int) -> tuple[FrameFault, int]:
        """The fault of one frame and its amount."""
        ...


@dataclass(frozen=True, slots=True)
class FaultPlan:
    """Faults written out frame by frame. A frame may appear in one of the fields only.

    Values are the amounts of :class:`hil.link.frame_fault.FrameFault`.

    Raises:
        UsageError: a frame has two faults, or an amount is impossible.
    """

    drop: frozenset[int] = frozenset()
    duplicate: Mapping[int, int] = field(default_factory=dict)
    reorder: Mapping[int, int] = field(default_factory=dict)
    flip: Mapping[int, int] = field(default_factory=dict)
    corrupt: Mapping[int, int] = field(default_factory=dict)
    resize: Mapping[int, int] = field(default_factory=dict)
    wrong_qp: Mapping[int, int] = field(default_factory=dict)
    wrong_rkey: Mapping[int, int] = field(default_factory=dict)
    wrong_psn: Mapping[int, int] = field(default_factory=dict)
    hold: Mapping[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        groups = self._groups
        if len(set().union(*groups.values())) != sum(map(len, groups.values())):
            raise UsageError("a frame may have one fault only", where="fault plan")
        late = (*((k, 1) for k in self.reorder.values()), *((k, 0) for k in self.hold.values()))
        if any(k < least for k, least in late) or any(k < 0 for k in self.duplicate.values()):
            raise UsageError(
                "fault plan holds an impossible delay",
                allowed="reorder >= 1, duplicate >= 0, hold >= 0",
            )

    @property
    def _groups(self) -> dict[FrameFault, Mapping[int, int]]:
        return {
            FrameFault.DROP: dict.fromkeys(self.drop, 0),
            FrameFault.DUPLICATE: self.duplicate,
            FrameFault.REORDER: self.reorder,
            FrameFault.FLIP: self.flip,
            FrameFault.CORRUPT: self.corrupt,
            FrameFault.RESIZE: self.resize,
            FrameFault.WRONG_QP: self.wrong_qp,
            FrameFault.WRONG_RKEY: self.wrong_rkey,
            FrameFault.WRONG_PSN: self.wrong_psn,
            FrameFault.HOLD: self.hold,
        }

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

    def of(self, frame: int) -> tuple[FrameFault, int]:
        """See :class:`Plan`."""
        if frame in self.drop:
            return FrameFault.DROP, 0
        for kind, amounts in self._groups.items():
            if frame in amounts:
                return kind, amounts[frame]
        return _CLEAN

    def arrivals(self, frames: int) -> I64:
        """Numbers of the first ``frames`` frames in the order in which they arrive, i8[m]."""
        kinds, amounts = np.zeros(frames, np.uint8), np.zeros(frames, np.int64)
        for kind, of_frame in self._groups.items():
            at = np.array([frame for frame in of_frame if frame < frames], np.int64)
            kinds[at] = kind
            amounts[at] = [of_frame[frame] for frame in at.tolist()]
        return arrivals(np.arange(frames), kinds, amounts)[0]


class Faulty:
    """An endpoint whose outgoing frames suffer a plan. Everything else is passed through.

    Args:
        inner: the endpoint that is wrapped; its ``intercept`` is taken.
        plan: what happens to which frame.
        number: tells the number of a datagram, ``None`` for one that the plan does not concern
            (acknowledgements). Each number suffers once: what a reliable connection sends again
            goes through. Default: every datagram counts, the first one is 0.
        withhold_ps: slots that the application gives back reach the peer so much later: receives
            run short.

    Attributes:
        injected: faults that were carried out, by kind.
    """

    def __init__(
        self,
        inner: Endpoint,
        plan: Plan,
        number: Callable[[bytes], int | None] | None = None,
        *,
        withhold_ps: int = 0,
    ) -> None:
        self.inner = inner
        self.plan = plan
        self.injected: Counter[FrameFault] = Counter()
        self._number = number
        self._last = -1
        self._behind: list[tuple[int, bytes]] = []  # (number of the frame to wait for, datagram)
        self._port: deque[tuple[int, bytes]] = deque()  # (when it may leave, datagram)
        self._pauses = 0
        self._paused = False
        self._withhold_ps = withhold_ps
        self._kept: deque[tuple[int, int]] = deque()  # (when it is given back, slot)
        inner.intercept(self._suffer)

    def _suffer(self, datagram: bytes) -> Iterator[bytes]:
        self._send_due()
        frame = self._last + 1 if self._number is None else self._number(datagram)
        if frame is None or frame <= self._last:
            yield from self._leave((datagram,))
            return
        self._last = frame
        kind, amount = self.plan.of(frame)
        if kind is not FrameFault.NONE:
            self.injected[kind] += 1
        if kind is FrameFault.HOLD:
            self._pauses += not self._paused
            self._hold(datagram, amount)
        elif kind is FrameFault.REORDER:
            self._behind.append((frame + amount, datagram))
        elif kind is not FrameFault.DROP:
            yield from self._leave((self._spoiled(datagram, kind, amount),))
            if kind is FrameFault.DUPLICATE:
                self._behind.append((frame + amount, datagram))
        self._paused = kind is FrameFault.HOLD
        yield from self._leave(self._overtaken(frame))

    def _spoiled(self, datagram: bytes, kind: FrameFault, amount: int) -> bytes:
        """The datagram as it goes onto the wire."""
        if kind is FrameFault.FLIP:
            return bytes(_flipped(datagram, amount))
        start = payload_at(datagram)
        if kind is FrameFault.CORRUPT:
            changed = _flipped(datagram, _BYTE * start + amount)
        elif kind is FrameFault.RESIZE:
            changed = _resized(datagram, start, amount)
        elif kind is FrameFault.WRONG_QP:
            changed = _xored(datagram, _QP_AT, amount)
        elif kind is FrameFault.WRONG_RKEY and datagram[0] in WITH_RETH:
            changed = _xored(datagram, _RKEY_AT, amount)
        elif kind is FrameFault.WRONG_PSN:
            psn = int.from_bytes(datagram[_PSN_AT + 1 : _PSN_AT + 4], "big")
            changed = _xored(datagram, _PSN_AT, psn ^ (psn + amount & PSN_MASK))
        else:
            return datagram
        self.inner.seal(changed)
        return bytes(changed)

    def _overtaken(self, frame: int) -> list[bytes]:
        due = [datagram for when, datagram in self._behind if when <= frame]
        self._behind = [(when, datagram) for when, datagram in self._behind if when > frame]
        return due

    # -- the port: what a pause holds back, and all behind it --------------------------------------

    def _hold(self, datagram: bytes, amount_ps: int) -> None:
        last_ps = self._port[-1][0] if self._port else 0
        self._port.append((max(last_ps, monotonic_ps() + amount_ps), datagram))

    def _leave(self, datagrams: Iterable[bytes]) -> Iterable[bytes]:
        """What goes out now; behind a paused port nothing does."""
        if not self._port:
            return datagrams
        last_ps = self._port[-1][0]
        self._port.extend((last_ps, datagram) for datagram in datagrams)
        return ()

    def _send_due(self) -> None:
        while self._port and self._port[0][0] <= monotonic_ps():
            self.inner.transmit(self._port.popleft()[1])
        while self._kept and self._kept[0][0] <= monotonic_ps():
            self.inner.release(self._kept.popleft()[1])

    def next_timer_ps(self) -> int | None:
        """The endpoint's own timer, the end of a pause, or of a slot's detention."""
        timers = [
            self.inner.next_timer_ps(),
            *(held[0][0] for held in (self._port, self._kept) if held),
        ]
        return min((timer for timer in timers if timer is not None), default=None)

    def poll(self, max_completions: int) -> list[Completion]:
        """Let go of what was held long enough, then as the endpoint does."""
        self._send_due()
        return self.inner.poll(max_completions)

    def flush(self) -> None:
        """Send what is still held back."""
        port, self._port = self._port, deque()
        behind, self._behind = self._behind, []
        for _, datagram in (*port, *sorted(behind, key=lambda one: one[0])):
            self.inner.transmit(datagram)

    def counters(self) -> dict[str, int]:
        """The endpoint's counters, and ``pauses``: how often the port was stopped.

        One pause is a run of frames that it holds. Network cards count pauses too.
        """
        return {**self.inner.counters(), "pauses": self._pauses}

    def close(self) -> None:
        """Send what is held back, then close."""
        self.flush()
        self.inner.close()

    # -- passed through ----------------------------------------------------------------------------

    @property
    def transport(self) -> Transport:
        """Passed through."""
        return self.inner.transport

    @property
    def error(self) -> str:
        """Passed through."""
        return self.inner.error

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

    def release(self, slot: int) -> None:
        """Passed through, late if slots are withheld."""
        if self._withhold_ps:
            self._kept.append((monotonic_ps() + self._withhold_ps, slot))
        else:
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


def _flipped(datagram: bytes, bit: int) -> bytearray:
    place = bit // _BYTE
    if place >= len(datagram):
        raise UsageError("bit lies outside the datagram", got=str(bit))
    spoiled = bytearray(datagram)
    spoiled[place] ^= 1 << bit % _BYTE
    return spoiled


def _resized(datagram: bytes, start: int, added: int) -> bytearray:
    end = len(datagram) - ICRC_BYTES
    payload = datagram[start:end]
    payload = payload[: max(0, len(payload) + added)] + bytes(max(0, added))
    return bytearray(datagram[:start] + payload + datagram[end:])


def _xored(datagram: bytes, at: int, mask: int) -> bytearray:
    changed = bytearray(datagram)
    word = int.from_bytes(datagram[at : at + 4], "big") ^ mask
    changed[at : at + 4] = word.to_bytes(4, "big")
    return changed


def payload_at(datagram: bytes) -> int:
    """Offset of the payload in a datagram (BTH .. ICRC)."""
    opcode = datagram[0]
    imm = IMM_BYTES if opcode in WITH_IMM else 0
    return BTH_BYTES + (RETH_BYTES if opcode in WITH_RETH else 0) + imm
