"""What a link endpoint is: registered memory, one peer, posts, completions, counters.

An endpoint is one queue pair, on an unreliable connection (UC) as NVIDIA's sensor bridge uses it
(no acknowledgement, no retransmission), or on a reliable one (RC: every message arrives once and in
order, or the pair goes into error). A slot is *owned* by the receiving application from the
completion until :meth:`Endpoint.release`; a frame for an owned slot is never written. On UC its
completion says ``busy`` and carries the header, so that the application can answer BUSY; on RC the
sender is told to come again later (RNR).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt

from hil.errors import LinkError
from hil.link.sequence import Arrival

Kind: TypeAlias = Literal["write_imm", "send"]
Transport: TypeAlias = Literal["uc", "rc"]
Buffer: TypeAlias = bytes | bytearray | memoryview
Stage: TypeAlias = Callable[[bytes], Iterable[bytes]]
"""What stands between an endpoint and its wire: one datagram in, any number of datagrams out."""

HEADER_BYTES = 24
"""So many payload bytes are copied into every completion: one RPC header."""


@dataclass(frozen=True, slots=True)
class PeerAddress:
    """What a sender must know of a receiver.

    Slot ``s`` of the receiver's memory begins at ``base_va + s * stride``. ``psn`` is the PSN that
    the receiver expects first: the sender starts there.
    """

    host: str
    port: int
    qp: int
    psn: int
    rkey: int
    base_va: int
    stride: int
    n_slots: int


class Completion(NamedTuple):
    """Receive completion of a write-with-immediate or a send.

    ``slot`` tells where the payload lies (``length`` bytes) unless ``busy``: then nothing was
    written and nothing must be released. ``imm`` is 0 where there is none. ``t_rx_ps`` is the
    host's monotonic clock right after the packet was taken from the network. ``header``: the first
    24 payload bytes (fewer if the payload is shorter). ``arrival``: what the PSN audit says; a busy
    completion may also be the copy of a frame whose original still owns the slot.
    """

    slot: int
    imm: int
    psn: int
    length: int
    t_rx_ps: int
    busy: bool
    kind: Kind
    header: bytes
    arrival: Arrival


@dataclass(frozen=True, slots=True)
class Prepared:
    """Frames built ahead of time; PSN, immediate and ICRC are filled in when one is posted.

    ``rows``: u1[n, bytes], BTH .. ICRC. ``slots``: i8[n]; unused for sends.
    """

    kind: Kind
    rows: npt.NDArray[np.uint8]
    slots: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)


@runtime_checkable
class Endpoint(Protocol):
    """One end of a link. All calls come from one thread; none blocks.

    A post that finds the send queue full, or the pair in error, is refused and counted
    (``tx_refused``), never waited for; both can happen on RC only.
    """

    @property
    def transport(self) -> Transport:
        """Unreliable or reliable connection."""
        ...

    @property
    def error(self) -> str:
        """Why the pair is in error and stays so; empty while it works. Always empty on UC."""
        ...

    def next_timer_ps(self) -> int | None:
        """When :meth:`poll` is wanted though nothing arrived (RC), on the monotonic clock."""
        ...

    def register(self, n_slots: int, slot_bytes: int) -> memoryview:
        """Make memory that the peer may write: ``n_slots`` slots, ``stride`` bytes apart.

        The stride is ``slot_bytes`` rounded up to a multiple of 128 and stands in
        :meth:`address`. Sends fill the same slots, round robin. Called once.
        """
        ...

    def address(self) -> PeerAddress:
        """What the peer must know of this end. Needs :meth:`register` first."""
        ...

    def connect(self, peer: PeerAddress) -> None:
        """Set the peer: the only one that is sent to and heard."""
        ...

    def post_write_imm(self, payload: Buffer, slot: int) -> None:
        """WRITE WITH IMMEDIATE into the peer's slot.

        A payload longer than a packet goes in several, without a gap in the PSN: one message, one
        completion at the peer, with the length of the whole.
        """
        ...

    def post_write(self, payload: Buffer, slot: int) -> None:
        """WRITE into the peer's slot: no completion at the peer. On UC one packet at most."""
        ...

    def post_send(self, payload: Buffer) -> None:
        """SEND: lands in the peer's next slot. On UC one packet at most."""
        ...

    def prepare(
        self,
        payloads: npt.NDArray[np.uint8],
        slots: npt.NDArray[np.int64] | None,
        kind: Kind = "write_imm",
    ) -> Prepared:
        """Build frames, a packet each, from u1[n, L] for slots i8[n] (None for kind ``send``)."""
        ...

    def post(self, prepared: Prepared, index: int) -> None:
        """Send one prepared frame with the next PSN; order and repetition are free."""
        ...

    def poll(self, max_completions: int) -> list[Completion]:
        """Completions that are there now, at most so many; never blocks, never raises on input.

        One call looks at a bounded number of datagrams: behind a flood of foreign ones a later
        call finds what this one did not reach.
        """
        ...

    def release(self, slot: int) -> None:
        """Give an owned slot back to the peer."""
        ...

    def intercept(self, stage: Stage | None) -> None:
        """Let every outgoing datagram pass through ``stage`` (fault injection, capture)."""
        ...

    def seal(self, datagram: bytearray) -> None:
        """Recompute the ICRC of an outgoing datagram in place."""
        ...

    def transmit(self, datagram: bytes) -> None:
        """Put a finished datagram on the wire, past any stage."""
        ...

    def fileno(self) -> int | None:
        """Descriptor for ``select``, or None."""
        ...

    def counters(self) -> dict[str, int]:
        """Counts since creation; every key of :data:`hil.link.packets.COUNTERS`, and maybe more."""
        ...

    def close(self) -> None:
        """Let go of socket and address; closing twice is fine."""
        ...


def places_of(
    payloads: npt.NDArray[np.uint8],
    slots: npt.NDArray[np.int64] | None,
    kind: Kind,
    check: Callable[[int, int], object],
) -> npt.NDArray[np.int64]:
    """Slots i8[n] of messages to be prepared, zeros for sends.

    Args:
        payloads: u1[n, L].
        slots: i8[n]; None for kind ``send`` and only for it.
        kind: of the messages.
        check: raises where a payload of so many bytes does not fit that slot of the peer.

    Raises:
        LinkError: slots and kind do not go together.
    """
    if (slots is None) != (kind == "send"):
        raise LinkError("slots are given for kind 'write_imm' and only for it", got=kind)
    where = np.zeros(len(payloads), np.int64) if slots is None else np.asarray(slots, np.int64)
    for slot in (int(where.min()), int(where.max())) if len(where) else ():
        check(payloads.shape[1], slot)
    return where
