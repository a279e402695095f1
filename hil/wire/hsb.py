"""Windows of NVIDIA's Holoscan Sensor Bridge (HSB) as packets, and back from packets.

A *window* is what the FPGA delivers at once: here one RPC message with its padding. Windows fill a
ring of slots in the host's memory, strictly in turn. A window longer than a packet goes as WRITE
ONLY 0x2A .. 0x2A and ends with WRITE ONLY WITH IMMEDIATE 0x2B; with metadata on, all its packets
are 0x2A and one more 0x2B of 128 bytes follows at the next multiple of 128. Every packet has a RETH
of its own. Sources of all numbers: HSB commit 1a1febe (``data_channel.cpp``, ``dp_pkt_top.sv``) and
frames recorded from its RTL (``tests/data/hsb_frames``).
"""

from __future__ import annotations

import struct
import zlib
from collections import Counter
from dataclasses import dataclass
from typing import Final, Self

from hil.errors import WireError
from hil.wire.roce import (
    MAX_SLOTS,
    PSN_MASK,
    STRIDE_UNIT,
    Opcode,
    Packet,
    Reth,
    Target,
    payload_limit,
    slot_imm,
    write_only,
    write_only_imm,
)

METADATA_BYTES: Final = 128
WINDOW_UNIT: Final = 32
"""Windows are whole beats: the pad count of the BTH is not maintained by the FPGA."""

FRAME_NUMBER_MASK: Final = 0xFFFF
_TOP: Final = 1 << 39  # the host refuses base + slots * stride beyond this
_REGION: Final = 1 << 33  # the FPGA adds 33 bits: a ring must not cross an 8 GiB border
_METADATA: Final = struct.Struct(">IIIQIQHHQI")
_NS_PER_S: Final = 1_000_000_000
_FIRST_OF_BEHIND: Final = 1 << 23
_OPCODES: Final = (int(Opcode.UC_WRITE_ONLY), int(Opcode.UC_WRITE_ONLY_IMM))


def round128(count: int) -> int:
    """The next multiple of 128."""
    return -(-count // STRIDE_UNIT) * STRIDE_UNIT


def window_crc(window: bytes, xor: int = 0) -> int:
    """CRC of a window as the metadata carry it: NOT of zlib's CRC-32, XOR HIF register +0x10."""
    return zlib.crc32(window) ^ 0xFFFFFFFF ^ xor


@dataclass(frozen=True, slots=True)
class Metadata:
    """What the FPGA says about a window; big-endian in 128 bytes, those behind byte 48 zero.

    Attributes:
        flags: bit 0 the sensor ended the window early, bit 1 it was ended by its length alone.
        psn: of the packet that carries this.
        window_crc: see :func:`window_crc`.
        first_data_ns: PTP time of the first data.
        valid_bytes: bytes of the window that came from the sensor.
        frame_number: counts windows, 16 bit.
        created_ns: PTP time at which this packet was made.
    """

    flags: int
    psn: int
    window_crc: int
    first_data_ns: int
    valid_bytes: int
    frame_number: int
    created_ns: int

    def pack(self) -> bytes:
        """The 128 bytes on the wire.

        Raises:
            WireError: a field does not fit its place.
        """
        try:
            packed = _METADATA.pack(
                *(self.flags, self.psn, self.window_crc),
                *divmod(self.first_data_ns, _NS_PER_S),
                *(self.valid_bytes, 0, self.frame_number),
                *divmod(self.created_ns, _NS_PER_S),
            )
        except struct.error as error:
            raise WireError("a field does not fit its place", got=repr(self)) from error
        return packed.ljust(METADATA_BYTES, b"\0")

    @classmethod
    def unpack(cls, data: bytes | memoryview) -> Self:
        """Read 128 bytes; reserved ones are not looked at.

        Raises:
            WireError: another length, or nanoseconds of a second or more.
        """
        if len(data) != METADATA_BYTES:
            raise WireError(
                "not the length of metadata", got=f"{len(data)} B", allowed=f"{METADATA_BYTES} B"
            )
        flags, psn, crc, sec, nsec, valid, _, frame, made_sec, made_nsec = _METADATA.unpack_from(
            data
        )
        if max(nsec, made_nsec) >= _NS_PER_S:
            raise WireError(
                "not a PTP time in metadata",
                got=f"{nsec} ns, {made_nsec} ns",
                allowed=f"< {_NS_PER_S} ns beside the seconds",
            )
        first, made = sec * _NS_PER_S + nsec, made_sec * _NS_PER_S + made_nsec
        return cls(flags, psn, crc, first, valid, frame, made)


@dataclass(frozen=True, slots=True)
class WindowRing:
    """Where windows go: what the FPGA's data-plane registers hold of one ring.

    Args:
        window_bytes: length of every window, a multiple of 32.
        stride: bytes from slot to slot (page increment x 128).
        n_slots: 1..4096.
        base_va: address of slot 0.
        qp: queue pair of the host.
        rkey: its memory key.
        metadata: whether a metadata packet follows each window.
        mtu_bytes: limits the payload of a packet (:func:`hil.wire.roce.payload_limit`).

    Raises:
        WireError: a rule of the FPGA or its host software is broken.
    """

    window_bytes: int
    stride: int
    n_slots: int
    base_va: int
    qp: int
    rkey: int
    metadata: bool = False
    mtu_bytes: int = 1500

    def __post_init__(self) -> None:
        end = self.base_va + self.n_slots * self.stride
        aligned = self.base_va % STRIDE_UNIT == 0 and self.stride % STRIDE_UNIT == 0
        rules = {
            f"window of {WINDOW_UNIT}, {2 * WINDOW_UNIT}, .. bytes": self.window_bytes > 0
            and self.window_bytes % WINDOW_UNIT == 0,
            f"1..{MAX_SLOTS} slots": 1 <= self.n_slots <= MAX_SLOTS,
            "base and stride are multiples of 128": aligned,
            f"stride >= {self.least_stride} B": self.stride >= self.least_stride,
            "base + slots x stride < 2^39": self.base_va >= 0 and end < _TOP,
            "the ring lies inside one aligned 8 GiB": self.base_va // _REGION
            == (end - 1) // _REGION,
            "mtu >= 202 B": payload_limit(self.mtu_bytes) > 0,
        }
        for allowed, holds in rules.items():
            if not holds:
                raise WireError("not a ring of the sensor bridge", got=str(self), allowed=allowed)

    @property
    def least_stride(self) -> int:
        """Smallest stride: room for metadata, which long windows need even where it is off."""
        room = round128(self.window_bytes)
        wants_room = self.metadata or self.window_bytes > STRIDE_UNIT
        return room + METADATA_BYTES if wants_room else room

    @property
    def packet_bytes(self) -> int:
        """Payload of every packet of a window but the last one."""
        return payload_limit(self.mtu_bytes)

    @property
    def target(self) -> Target:
        """The ring as packets address it."""
        return Target(self.qp, self.rkey, self.base_va, self.stride)


@dataclass(frozen=True, slots=True)
class Stamp:
    """What the FPGA adds to a window in its metadata: number and PTP times of it."""

    frame_number: int
    first_data_ns: int
    created_ns: int
    flags: int = 0


def window_packets(
    ring: WindowRing, window: bytes, slot: int, psn: int, stamp: Stamp | None = None
) -> list[Packet]:
    """The packets of one window, in order of transmission.

    Args:
        ring: where it goes.
        window: its bytes.
        slot: 0 .. n_slots - 1.
        psn: packet sequence number of the first packet; the others follow.
        stamp: for the metadata; given exactly if the ring has them.

    Raises:
        WireError: window, slot or stamp do not fit the ring.
    """
    if len(window) != ring.window_bytes or not 0 <= slot < ring.n_slots:
        raise WireError(
            "window does not fit the ring",
            got=f"{len(window)} B, slot {slot}",
            allowed=f"{ring.window_bytes} B, slot < {ring.n_slots}",
        )
    if (stamp is None) == ring.metadata:
        raise WireError("a stamp goes with metadata and only with it", got=str(stamp))
    size, target = ring.packet_bytes, ring.target
    offsets = range(0, len(window), size)
    packets = [
        write_only(target, psn + k, slot, window[at : at + size], at)
        for k, at in enumerate(offsets)
    ]
    if stamp is None:
        last = offsets[-1]
        end = psn + len(packets) - 1
        packets[-1] = write_only_imm(target, end, slot, window[last:], last)
        return packets
    psn = (psn + len(packets)) & PSN_MASK
    metadata = Metadata(
        *(stamp.flags, psn, window_crc(window), stamp.first_data_ns, len(window)),
        *(stamp.frame_number & FRAME_NUMBER_MASK, stamp.created_ns),
    )
    behind = round128(len(window))
    return [*packets, write_only_imm(target, psn, slot, metadata.pack(), behind)]


@dataclass(frozen=True, slots=True)
class Window:
    """A window put together again.

    Attributes:
        slot: where it lies.
        psn: of its last packet.
        data: its bytes.
        metadata: what came with it, if the ring has them.
        faults: names of what is wrong with it (:class:`WindowReader`), empty if nothing is.
    """

    slot: int
    psn: int
    data: bytes
    metadata: Metadata | None
    faults: tuple[str, ...] = ()


class WindowReader:
    """Packets of one ring -> windows. Nothing that arrives raises; what is wrong is counted.

    A window with a hole is never given out: after a gap of the PSN the reader begins again with
    the next window. Names in ``counts`` beside ``packets`` and ``windows``:

    ``qp`` ``opcode``: packet of somebody else, skipped. ``psn_gap``, ``psn_lost``: jumps, and
    packets jumped over. ``psn_behind``: copies and late packets, skipped. ``rkey`` ``length``
    ``bounds``: packet outside the ring. ``incomplete``: windows given up.
    Faults of a window that is given out: ``imm`` (immediate repeats not PSN and slot),
    ``slot_order`` (not the slot behind the one before), ``metadata`` (unreadable),
    ``metadata_psn``, ``window_crc``, ``valid_bytes`` (the sensor ended the window early),
    ``frame_number`` (not the one before + 1).

    Args:
        ring: what was configured.
        crc_xor: HIF register +0x10.
    """

    def __init__(self, ring: WindowRing, crc_xor: int = 0) -> None:
        self._ring = ring
        self._xor = crc_xor
        self._end = round128(ring.window_bytes) + METADATA_BYTES
        self._next_psn: int | None = None
        self._next_slot: int | None = None
        self._next_frame: int | None = None
        self._slot = -1  # of the window under way, -1: none is
        self._parts = bytearray()
        self.counts: Counter[str] = Counter()

    def packet(self, packet: Packet) -> Window | None:
        """Take one packet, whose ICRC was right; returns the window that it completes."""
        self.counts["packets"] += 1
        bth, reth = packet.bth, packet.reth
        if bth.opcode not in _OPCODES or reth is None or bth.dest_qp != self._ring.qp:
            self.counts["opcode" if bth.dest_qp == self._ring.qp else "qp"] += 1
            return None
        if not self._in_turn(bth.psn):
            self.counts["psn_behind"] += 1
            return None
        length, last = len(packet.payload), bth.opcode == Opcode.UC_WRITE_ONLY_IMM
        slot, offset = divmod(reth.va - self._ring.base_va, self._ring.stride)
        fault = self._misplaced(reth, slot, offset, length)
        if fault:
            self.counts[fault] += 1
        if fault or not self._goes_on(slot, offset, length, last=last):
            self._give_up()
            return None
        self._slot = slot
        self._parts += bytes(offset - len(self._parts)) + packet.payload
        return self._complete(packet) if last else None

    def _misplaced(self, reth: Reth, slot: int, offset: int, length: int) -> str:
        ring = self._ring
        checks = {
            "rkey": reth.rkey == ring.rkey,
            "length": reth.length == length,
            "bounds": 0 <= slot < ring.n_slots and offset + length <= ring.stride,
        }
        return next((name for name, good in checks.items() if not good), "")

    def _in_turn(self, psn: int) -> bool:
        """Follow the PSN; False for what is behind it."""
        expected = psn if self._next_psn is None else self._next_psn
        ahead = (psn - expected) & PSN_MASK
        if ahead >= _FIRST_OF_BEHIND:
            return False
        if ahead:
            self.counts["psn_gap"] += 1
            self.counts["psn_lost"] += ahead
            self._give_up()
        self._next_psn = (psn + 1) & PSN_MASK
        return True

    def _goes_on(self, slot: int, offset: int, length: int, *, last: bool) -> bool:
        """Whether the packet goes on where the one before it ended, or begins a window."""
        at, window = len(self._parts), self._ring.window_bytes
        if offset == 0:
            if self._slot >= 0:
                self._give_up()
            at = 0
        elif slot != self._slot:
            return False
        padded = last and self._ring.metadata and at == window and offset == round128(window)
        end = offset + length
        finish = self._end if self._ring.metadata else window
        whole = end == finish if last else end <= window
        return whole and (offset == at or padded)

    def _give_up(self) -> None:
        self.counts["incomplete"] += self._slot >= 0
        self._slot = -1
        self._parts.clear()

    def _complete(self, packet: Packet) -> Window:
        ring, slot, psn = self._ring, self._slot, packet.bth.psn
        data = bytes(self._parts[: ring.window_bytes])
        good = {"imm": packet.imm == slot_imm(psn, slot)}
        good["slot_order"] = self._next_slot in (None, slot)
        metadata = None
        if ring.metadata:
            try:
                metadata = Metadata.unpack(bytes(self._parts[-METADATA_BYTES:]))
            except WireError:
                good["metadata"] = False
        if metadata is not None:
            good["metadata_psn"] = metadata.psn == psn
            good["window_crc"] = metadata.window_crc == window_crc(data, self._xor)
            good["valid_bytes"] = metadata.valid_bytes == ring.window_bytes
            good["frame_number"] = self._next_frame in (None, metadata.frame_number)
            self._next_frame = (metadata.frame_number + 1) & FRAME_NUMBER_MASK
        faults = tuple(name for name, holds in good.items() if not holds)
        self.counts.update(("windows", *faults))
        self._next_slot = (slot + 1) % ring.n_slots
        self._slot = -1
        self._parts.clear()
        return Window(slot, psn, data, metadata, faults)
