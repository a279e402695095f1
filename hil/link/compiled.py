"""RoCEv2 datagrams by the batch, compiled: what a sender writes last and what a receiver reads.

A batch is u1[n, W]: n datagrams (BTH .. ICRC) of one length, as UDP_SEGMENT takes them from one
buffer and UDP_GRO gives them back. The rules are those of :mod:`hil.wire.roce` and of
:class:`hil.link.receiver.Receiver`; only the plainest case is compiled, everything else is left to
the code for single packets.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from hil.wire.icrc import BTH_BYTES, ICRC_BYTES, U1, U4
from hil.wire.roce import IMM_BYTES, RETH_BYTES, Opcode

I8 = npt.NDArray[np.int64]

_WRITE_IMM: Final = int(Opcode.UC_WRITE_ONLY_IMM)
_PAYLOAD_AT: Final = BTH_BYTES + RETH_BYTES + IMM_BYTES
_CRC32: Final = 0xEDB88320


def _tables() -> U4:
    """Tables of slicing-by-16: ``tables[k, b]`` = CRC of byte b with k zero bytes behind it."""
    tables = np.zeros((16, 256), np.uint32)
    column = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        column = np.where(column & 1, column >> 1 ^ np.uint32(_CRC32), column >> 1)
    tables[0] = column
    for k in range(1, 16):
        tables[k] = tables[k - 1] >> 8 ^ tables[0, tables[k - 1] & 255]
    return tables


_TABLES: Final = _tables()


class Batches(NamedTuple):
    """Where received datagrams of one length lie in a buffer.

    Batch i begins at byte ``offsets[i]`` and holds ``counts[i]`` datagrams of ``width`` bytes;
    of batch 0 only those from ``first`` on are meant. Datagram k of a batch was segment k of its
    UDP_SEGMENT call: ``states[k]`` is the running CRC over its masked headers
    (:meth:`hil.wire.icrc.IcrcPath.state`).
    """

    buffer: U1
    offsets: I8
    counts: I8
    first: int
    width: int
    states: U4


def seal_batch(rows: U1, slots: I8 | None, psn: int, states: U4) -> None:
    """Write PSN, immediate and ICRC into datagrams of UC WRITE ONLY WITH IMM or SEND ONLY.

    Args:
        rows: u1[n, W], contiguous; changed in place.
        slots: i8[n]; None for sends, which have no immediate.
        psn: of the first row; counts up and wraps.
        states: u4[m]; row k is segment k % m of its call, see :class:`Batches`.
    """
    where = np.zeros(len(rows), np.int64) if slots is None else slots
    _seal(rows, where, slots is not None, psn, states, _TABLES)


def accept_writes(
    batches: Batches,
    expected: tuple[int, int, int, int],
    slots: tuple[int, U1, U1],
) -> I8:
    """Store the leading datagrams that are exactly what a receiver expects next.

    A datagram is taken if it is a UC WRITE ONLY WITH IMM with the right ICRC, P_Key, queue pair,
    memory key and immediate, has the next PSN, and starts at a slot that is free and large
    enough. The first one that is anything else ends the call; nothing of it was stored.

    Args:
        batches: the datagrams; one byte of each is changed while it is looked at.
        expected: own queue pair, own memory key, next PSN, address of slot 0.
        slots: bytes from slot to slot; owners u1[n_slots], 0 = free; memory u1[n_slots * stride].
            Both arrays are changed.

    Returns:
        The slots of those taken, in order; i8[k].
    """
    qp, rkey, psn, base_va = expected
    stride, owners, memory = slots
    placed = np.empty(int(batches.counts.sum()) - batches.first, np.int64)
    taken = _accept(*batches, qp, rkey, psn, base_va, stride, owners, memory, placed, _TABLES)
    return placed[:taken]


def crc32_batch(rows: U1, states: U4) -> U4:
    """CRC-32 of every row of u1[n, L], row k continuing from ``states[k]``; u4[n]."""
    out = np.empty(len(rows), np.uint32)
    _crc_rows(np.ascontiguousarray(rows), states, out, _TABLES)
    return out


@njit(cache=True, inline="always")
def _crc(row: U1, end: int, state: np.uint32, t: U4) -> np.uint32:
    """CRC-32 of ``row[:end]`` by slicing-by-16 (the polynomial of zlib)."""
    low, ones = np.uint32(255), np.uint32(0xFFFFFFFF)
    c = np.uint32(state ^ ones)
    i = 0
    while i + 16 <= end:
        x = c ^ (
            np.uint32(row[i])
            | np.uint32(row[i + 1]) << np.uint32(8)
            | np.uint32(row[i + 2]) << np.uint32(16)
            | np.uint32(row[i + 3]) << np.uint32(24)
        )
        c = t[15, x & low] ^ t[14, x >> np.uint32(8) & low] ^ t[13, x >> np.uint32(16) & low]
        c ^= t[12, x >> np.uint32(24)] ^ t[11, row[i + 4]] ^ t[10, row[i + 5]]
        c ^= t[9, row[i + 6]] ^ t[8, row[i + 7]] ^ t[7, row[i + 8]] ^ t[6, row[i + 9]]
        c ^= t[5, row[i + 10]] ^ t[4, row[i + 11]] ^ t[3, row[i + 12]] ^ t[2, row[i + 13]]
        c ^= t[1, row[i + 14]] ^ t[0, row[i + 15]]
        i += 16
    while i < end:
        c = c >> np.uint32(8) ^ t[0, (c ^ np.uint32(row[i])) & low]
        i += 1
    return c ^ ones


@njit(cache=True, inline="always")
def _icrc(row: U1, state: np.uint32, t: U4) -> np.uint32:
    kept = row[4]
    row[4] = 0xFF  # FECN, BECN and reserved bits are outside
    crc = _crc(row, row.size - ICRC_BYTES, state, t)
    row[4] = kept
    return crc


@njit(cache=True, inline="always")
def _big(row: U1, at: int, count: int) -> np.int64:
    value = np.int64(0)
    for k in range(count):
        value = value << 8 | np.int64(row[at + k])
    return value


@njit(cache=True, inline="always")
def _little(row: U1, at: int) -> np.int64:
    value = np.int64(0)
    for k in range(4):
        value |= np.int64(row[at + k]) << 8 * k
    return value


@njit(cache=True)
def _crc_rows(rows: U1, states: U4, out: U4, t: U4) -> None:
    for k in range(rows.shape[0]):
        out[k] = _crc(rows[k], rows.shape[1], states[k], t)


@njit(cache=True)
def _seal(rows: U1, slots: I8, with_imm: bool, psn: int, states: U4, t: U4) -> None:
    end = rows.shape[1] - ICRC_BYTES
    for k in range(rows.shape[0]):
        row = rows[k]
        number = (psn + k) & 0xFFFFFF
        for b in range(3):
            row[9 + b] = number >> (16 - 8 * b) & 255
        if with_imm:
            imm = (number & 0xFFFFF) << 12 | slots[k]
            for b in range(4):
                row[28 + b] = imm >> (24 - 8 * b) & 255
        crc = _icrc(row, states[k % states.size], t)
        for b in range(4):
            row[end + b] = crc >> np.uint32(8 * b) & np.uint32(255)


@njit(cache=True, inline="always")
def _is_next(row: U1, qp: int, rkey: int, psn: int) -> bool:
    """A write with immediate for this queue pair and memory, with the PSN ``psn``?"""
    head = row[0] == _WRITE_IMM and row[1] & 15 == 0 and row[2] == 255 and row[3] == 255
    return bool(
        head and _big(row, 5, 3) == qp and _big(row, 9, 3) == psn and _big(row, 20, 4) == rkey
    )


@njit(cache=True, inline="always")
def _free_slot(row: U1, psn: int, offset: np.int64, length: int, stride: int, owners: U1) -> int:
    """The slot that begins ``offset`` bytes into the memory, or -1 if it must not be written."""
    if length < 0 or length > stride or _big(row, 24, 4) != length or offset < 0:
        return -1
    slot = offset // stride
    if slot >= owners.size or offset % stride or owners[slot]:
        return -1
    return int(slot) if _big(row, 28, 4) == ((psn & 0xFFFFF) << 12 | slot) else -1


@njit(cache=True)
def _accept(
    buffer: U1,
    offsets: I8,
    counts: I8,
    first: int,
    width: int,
    states: U4,
    qp: int,
    rkey: int,
    psn: int,
    base_va: int,
    stride: int,
    owners: U1,
    memory: U1,
    placed: I8,
    t: U4,
) -> int:
    taken, end = 0, width - ICRC_BYTES
    if width % 4 or end < _PAYLOAD_AT:
        return 0
    for i in range(offsets.size):
        for k in range(first if i == 0 else 0, counts[i]):
            start = offsets[i] + k * width
            row, number = buffer[start : start + width], (psn + taken) & 0xFFFFFF
            if not _is_next(row, qp, rkey, number):
                return taken
            length = end - _PAYLOAD_AT - (row[1] >> 4 & 3)
            slot = _free_slot(row, number, _big(row, 12, 8) - base_va, length, stride, owners)
            if slot < 0 or _little(row, end) != np.int64(_icrc(row, states[k], t)):
                return taken
            at = slot * stride
            for b in range(length):
                memory[at + b] = row[_PAYLOAD_AT + b]
            owners[slot] = 1
            placed[taken] = slot
            taken += 1
    return taken
