"""An RDMA device as endpoint: the kernel's verbs, through pyverbs (:mod:`hil.link.verbs_queue`).

The device makes and checks the packets. Three things are therefore less than on our own endpoints,
and are so with every RDMA device:

- A write lands although its slot is owned. Its completion says ``busy``, but what the slot held is
  gone. (A receive is posted for every free slot: when none is free, RC tells the sender to come
  again and UC drops.)
- PSNs are not shown. That of a write is taken from the immediate, ``(PSN[19:0] << 12) | slot``; a
  send is taken to have come in order.
- Packets cannot be looked at: no fault injection, no capture, and no counts of what was dropped.

Memory on a GPU (dma-buf) is written for, and has never been run.
"""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from hil.errors import LinkError
from hil.link.endpoint import (
    HEADER_BYTES,
    Buffer,
    Completion,
    Kind,
    PeerAddress,
    Prepared,
    Stage,
    Transport,
    places_of,
)
from hil.link.packets import COUNTERS
from hil.link.rc_requester import RcAttributes
from hil.link.sequence import SequenceAudit
from hil.link.verbs_queue import Got, VerbsQueue, VerbsUnavailableError
from hil.timebase import monotonic_ps
from hil.wire.roce import MAX_SLOTS, PSN_BITS, PSN_MASK, ROCE_PORT, STRIDE_UNIT, slot_imm
from hil.wire.segments import path_mtu

N_SENDS: Final = 256
"""Posts that may wait for their completion; one more is refused."""

_SLOT_MASK: Final = MAX_SLOTS - 1
_IMM_PSN_BITS: Final = 20
_PROBE_S: Final = 60.0
_PROBE: Final = """
import json, sys
def end(why, names=()): print(json.dumps({"devices": list(names), "why": why})); sys.exit()
try:
    from pyverbs.device import get_device_list
except ImportError as error:
    end(f"pyverbs cannot be imported: {error}")
try:
    names = [device.name.decode() for device in get_device_list()]
except Exception as error:
    end(f"{type(error).__name__}: {error}")
end("" if names else "no verbs device", names)
"""


@dataclass(frozen=True, slots=True)
class Devices:
    """Verbs devices of this machine; ``why`` there are none, empty if there are some."""

    names: tuple[str, ...]
    why: str


def probe() -> Devices:
    """Ask for the verbs devices, in a process of its own: a wrong library would end this one."""
    command = [sys.executable, "-c", _PROBE]
    try:
        done = subprocess.run(  # noqa: S603 - our own interpreter and text
            command, capture_output=True, text=True, timeout=_PROBE_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Devices((), f"the probe failed: {error}")
    if done.returncode != 0 or not done.stdout.strip():
        return Devices((), f"the probe died, status {done.returncode}")
    found = json.loads(done.stdout.splitlines()[-1])
    return Devices(tuple(found["devices"]), found["why"])


class Queue(Protocol):
    """What an endpoint needs of a queue pair: :class:`hil.link.verbs_queue.VerbsQueue`."""

    number: int
    rkey: int
    va: int
    memory: memoryview
    error: str

    def connect(self, host: str, number: int, psn: int) -> None:
        """Join the peer."""
        ...

    def write(self, data: bytes, va: int, rkey: int, imm: int | None) -> bool:
        """RDMA write; False if it is refused."""
        ...

    def send(self, data: bytes) -> bool:
        """Send; False if it is refused."""
        ...

    def poll(self, most: int) -> list[Got]:
        """Completed receives."""
        ...

    def release(self, slot: int, kind: str) -> None:
        """A slot is free again."""
        ...

    def close(self) -> None:
        """Give everything back."""
        ...


class OpenQueue(Protocol):
    """Makes a queue pair; see :class:`hil.link.verbs_queue.VerbsQueue`."""

    def __call__(
        self,
        device: str,
        host: str,
        transport: str,
        n_slots: int,
        stride: int,
        n_sends: int,
        send_bytes: int,
        psn: int,
        path_mtu: int,
        timeout: int,
        retry_cnt: int,
        rnr_retry: int,
        min_rnr_timer: int,
    ) -> Queue:
        """A queue pair with its memory and its receives posted."""
        ...


class VerbsEndpoint:
    """One queue pair of a verbs device.

    Args:
        device: its name, such as ``mlx5_0`` or ``rxe0``.
        host: own IPv4 address, one of the device's.
        psn_start: PSN that this end expects first; random if None.
        mtu_bytes: MTU of the network: the path MTU is the largest that fits.
        transport: unreliable or reliable connection.
        attributes: limits and times of RC; None: the usual ones. Of its packets' limits only the
            path MTU counts: the device has a queue of its own (:data:`N_SENDS` messages).
        message_bytes: the longest message that will be sent.
        open_queue: makes the queue pair (tests put another machine's in).
    """

    def __init__(
        self,
        device: str,
        host: str,
        *,
        psn_start: int | None = None,
        mtu_bytes: int = 1500,
        transport: Transport = "rc",
        attributes: RcAttributes | None = None,
        message_bytes: int = 4096,
        open_queue: OpenQueue = VerbsQueue,
    ) -> None:
        self._device, self._host, self._transport = device, host, transport
        self._psn_start = secrets.randbelow(PSN_MASK + 1) if psn_start is None else psn_start
        self._attributes = attributes or RcAttributes(path_mtu=path_mtu(mtu_bytes))
        self._path_mtu = self._attributes.path_mtu
        self._message_bytes = message_bytes
        self._open_queue = open_queue
        self._queue: Queue | None = None
        self._peer: PeerAddress | None = None
        self._psn_out = 0
        self._stride = 0
        self._owned: dict[int, Kind] = {}
        self._audit = SequenceAudit(PSN_BITS, self._psn_start)
        self._counts = dict.fromkeys(COUNTERS, 0)

    @property
    def transport(self) -> Transport:
        """See :attr:`hil.link.endpoint.Endpoint.transport`."""
        return self._transport

    @property
    def error(self) -> str:
        """See :attr:`hil.link.endpoint.Endpoint.error`; here UC can be in error too."""
        return "" if self._queue is None else self._queue.error

    def next_timer_ps(self) -> int | None:
        """None: the device has its own timers."""
        return None

    def register(self, n_slots: int, slot_bytes: int) -> memoryview:
        """See :meth:`hil.link.endpoint.Endpoint.register`.

        Raises:
            LinkError: called twice, sizes out of range, or the device cannot be used.
        """
        if self._queue is not None or not 1 <= n_slots <= MAX_SLOTS or slot_bytes < 1:
            raise LinkError(
                "memory cannot be registered",
                got=f"{n_slots} slots of {slot_bytes} B",
                allowed=f"once, 1..{MAX_SLOTS} slots of >= 1 B",
            )
        self._stride = -(-slot_bytes // STRIDE_UNIT) * STRIDE_UNIT
        rules = self._attributes
        try:
            self._queue = self._open_queue(
                *(self._device, self._host, self._transport, n_slots, self._stride),
                *(N_SENDS, self._message_bytes, self._psn_start, self._path_mtu),
                *(rules.timeout, rules.retry_cnt, rules.rnr_retry, rules.min_rnr_timer),
            )
        except VerbsUnavailableError as error:
            raise LinkError(
                "verbs device cannot be used",
                where=f"verbs {self._device}",
                got=str(error),
                fix="see `hil doctor`, section network",
            ) from error
        return self._queue.memory

    def address(self) -> PeerAddress:
        """See :meth:`hil.link.endpoint.Endpoint.address`."""
        queue = self._registered()
        ends = (self._host, ROCE_PORT, queue.number, self._psn_start, queue.rkey, queue.va)
        n_slots = len(queue.memory) // self._stride
        return PeerAddress(*ends, self._stride, n_slots)

    def connect(self, peer: PeerAddress) -> None:
        """See :meth:`hil.link.endpoint.Endpoint.connect`."""
        self._registered().connect(peer.host, peer.qp, peer.psn)
        self._peer, self._psn_out = peer, peer.psn

    # -- posting --------------------------------------------------------------------------------

    def post_write_imm(self, payload: Buffer, slot: int) -> None:
        """See :meth:`hil.link.endpoint.Endpoint.post_write_imm`; the device cuts it in packets."""
        self._write(payload, slot, with_imm=True)

    def post_write(self, payload: Buffer, slot: int) -> None:
        """See :meth:`hil.link.endpoint.Endpoint.post_write`."""
        self._write(payload, slot, with_imm=False)

    def _write(self, payload: Buffer, slot: int, *, with_imm: bool) -> None:
        peer = self._check(len(payload), slot)
        last = self._psn_out + self._packets(len(payload)) - 1
        imm = slot_imm(last, slot) if with_imm else None
        va = peer.base_va + slot * peer.stride
        taken = self._registered().write(bytes(payload), va, peer.rkey, imm)
        self._posted(len(payload), taken=taken)

    def post_send(self, payload: Buffer) -> None:
        """See :meth:`hil.link.endpoint.Endpoint.post_send`."""
        self._check(len(payload), 0)
        self._posted(len(payload), taken=self._registered().send(bytes(payload)))

    def _posted(self, length: int, *, taken: bool) -> None:
        if not taken:
            self._counts["tx_refused"] += 1
            return
        packets = self._packets(length)
        self._psn_out = (self._psn_out + packets) & PSN_MASK
        self._counts["tx"] += packets

    def prepare(
        self,
        payloads: npt.NDArray[np.uint8],
        slots: npt.NDArray[np.int64] | None,
        kind: Kind = "write_imm",
    ) -> Prepared:
        """See :meth:`hil.link.endpoint.Endpoint.prepare`; the rows are payloads, no packets."""
        where = places_of(payloads, slots, kind, self._check)
        return Prepared(kind, np.ascontiguousarray(payloads), where)

    def post(self, prepared: Prepared, index: int) -> None:
        """See :meth:`hil.link.endpoint.Endpoint.post`."""
        if prepared.kind == "send":
            self.post_send(prepared.rows[index].tobytes())
        else:
            self.post_write_imm(prepared.rows[index].tobytes(), int(prepared.slots[index]))

    # -- receiving ------------------------------------------------------------------------------

    def poll(self, max_completions: int) -> list[Completion]:
        """See :meth:`hil.link.endpoint.Endpoint.poll`."""
        queue = self._registered()
        t_rx_ps = monotonic_ps()
        found = (self._completion(queue, got, t_rx_ps) for got in queue.poll(max_completions))
        return [completion for completion in found if completion is not None]

    def _completion(self, queue: Queue, got: Got, t_rx_ps: int) -> Completion | None:
        packets = self._packets(got.length)
        expected = self._audit.expected or 0
        slot, first = got.slot, expected
        if got.kind == "write_imm":
            slot = got.imm & _SLOT_MASK
            first = _whole_psn((got.imm >> MAX_SLOTS.bit_length() - 1) - packets + 1, expected)
        if slot >= len(queue.memory) // self._stride:
            self._counts["drop_imm"] += 1
            queue.release(slot, got.kind)
            return None
        arrival = self._audit.observe(first)
        for more in range(1, packets):
            self._audit.observe(first + more)
        busy = slot in self._owned
        self._counts["rx_busy" if busy else "rx_ok"] += 1
        if busy:
            queue.release(slot, got.kind)  # only its receive: the application never gets the slot
        else:
            self._owned[slot] = got.kind
        at = slot * self._stride
        header = bytes(queue.memory[at : at + min(HEADER_BYTES, got.length)])
        psn = (first + packets - 1) & PSN_MASK
        return Completion(
            *(slot, got.imm, psn, got.length, t_rx_ps, busy, got.kind, header, arrival)
        )

    def release(self, slot: int) -> None:
        """See :meth:`hil.link.endpoint.Endpoint.release`.

        Raises:
            LinkError: nobody owns that slot.
        """
        if slot not in self._owned:
            raise LinkError("slot is not owned", got=str(slot), fix="release once")
        self._registered().release(slot, self._owned.pop(slot))

    # -- what a device does not let anybody do ---------------------------------------------------

    def intercept(self, stage: Stage | None) -> None:
        """Refused: packets are made by the device.

        Raises:
            LinkError: a stage was given.
        """
        if stage is not None:
            raise _hidden()

    def seal(self, datagram: bytearray) -> None:
        """Refused: see :meth:`intercept`."""
        raise _hidden()

    def transmit(self, datagram: bytes) -> None:
        """Refused: see :meth:`intercept`."""
        raise _hidden()

    # -- the rest -------------------------------------------------------------------------------

    def fileno(self) -> int | None:
        """None for a device (it must be polled); the descriptor of a queue that has one."""
        descriptor: int | None = getattr(self._queue, "descriptor", None)
        return descriptor

    def counters(self) -> dict[str, int]:
        """See :meth:`hil.link.endpoint.Endpoint.counters`; drops and repeats stay unseen: 0."""
        audit = self._audit
        return self._counts | {
            "psn_gap": audit.gaps,
            "psn_lost": audit.lost,
            "psn_dup": audit.duplicate,
            "psn_reorder": audit.reordered,
            "psn_stale": audit.stale,
        }

    def close(self) -> None:
        """See :meth:`hil.link.endpoint.Endpoint.close`."""
        queue, self._queue = self._queue, None
        if queue is not None:
            queue.close()

    def _packets(self, length: int) -> int:
        return max(1, -(-length // self._path_mtu))

    def _registered(self) -> Queue:
        if self._queue is None:
            raise LinkError("endpoint has no memory yet", fix="call register() first")
        return self._queue

    def _check(self, length: int, slot: int) -> PeerAddress:
        peer = self._peer
        if peer is None:
            raise LinkError("endpoint has no peer yet", fix="call connect() first")
        limit = min(peer.stride, self._message_bytes)
        if length > limit or not 0 <= slot < peer.n_slots:
            raise LinkError(
                "payload or slot does not fit the peer",
                where=f"verbs {self._device}",
                got=f"{length} B, slot {slot}",
                allowed=f"<= {limit} B, slot < {peer.n_slots}",
            )
        return peer


def _whole_psn(low: int, expected: int) -> int:
    """The 24-bit number nearest to ``expected`` whose lowest 20 bits are those of ``low``."""
    half, span = 1 << (_IMM_PSN_BITS - 1), 1 << _IMM_PSN_BITS
    return (expected + (low - expected + half) % span - half) & PSN_MASK


def _hidden() -> LinkError:
    return LinkError(
        "packets of a verbs device are made by the device",
        fix="inject faults and capture at the other end, if that is one of our own endpoints",
    )
