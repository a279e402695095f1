"""RPC requests by the thousand: one numpy row per message, nothing per message in Python.

Rows of one batch have one length: the longest message, padded with zeros to a multiple of 64.
"""

from __future__ import annotations

import struct
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from hil.errors import WireError
from hil.wire.icrc import U1, crc32_rows
from hil.wire.predecode import PREDECODE
from hil.wire.rpc import (
    CRC_BYTES,
    CRC_FROM,
    ENQUEUE_FIXED_BYTES,
    ENQUEUE_SYNDROMES,
    ENVELOPE_BYTES,
    FRAME_UNIT,
    GET_CORRECTIONS,
    GET_FIXED_BYTES,
    HEADER_BYTES,
    MAGIC_REQUEST,
    MAX_SYNDROMES,
    EnvelopeKind,
)

_ID_MASK: Final = np.uint64(0xFFFFFFFF)
_NS_PER_S: Final = np.uint64(1_000_000_000)

U8 = npt.NDArray[np.uint64]
Integers = npt.NDArray[np.integer[Any]] | int


def ptp_from_ns_array(nanoseconds: npt.NDArray[np.int64]) -> U8:
    """FPGA timestamps ``(sec << 32) | nsec``, u8 of the same shape."""
    ns = np.asarray(nanoseconds).astype(np.uint64)
    return (ns // _NS_PER_S << np.uint64(32)) | ns % _NS_PER_S


def row_bytes(message_bytes: int) -> int:
    """Length of a row that holds a message: the next multiple of 64."""
    return -(-message_bytes // FRAME_UNIT) * FRAME_UNIT


def enqueue_row_bytes(largest_block: int, envelope: EnvelopeKind = "hil") -> int:
    """Row length of a batch whose largest block has that many bits."""
    tail = ENVELOPE_BYTES if envelope == "hil" else 0
    return row_bytes(HEADER_BYTES + ENQUEUE_FIXED_BYTES + (largest_block + 7) // 8 + tail)


def get_row_bytes(envelope: EnvelopeKind = "hil") -> int:
    """Row length of a batch of ``get_corrections``."""
    return row_bytes(HEADER_BYTES + GET_FIXED_BYTES + (ENVELOPE_BYTES if envelope == "hil" else 0))


def predecode_row_bytes(n_detectors: int) -> int:
    """Row length of a batch of ``predecode`` for shots of that many detectors."""
    return row_bytes(HEADER_BYTES + n_detectors)


def split_blocks(detectors_b8: U1, block_sizes: npt.NDArray[np.int64]) -> U1:
    """Cut packed shots into packed blocks that each begin at a byte.

    Args:
        detectors_b8: u1[n, ceil(D / 8)], LSB first.
        block_sizes: i8[r], number of consecutive detectors in each block, sum D.

    Returns:
        u1[n, r, ceil(max(block_sizes) / 8)], LSB first, unused bits 0.

    Raises:
        WireError: the sizes do not add up to what the rows hold.
    """
    sizes = np.asarray(block_sizes, np.int64)
    total = int(sizes.sum())
    if detectors_b8.shape[1] != (total + 7) // 8:
        raise WireError(
            "block sizes do not cover the packed shots",
            got=f"{detectors_b8.shape[1]} B per shot",
            allowed=f"{(total + 7) // 8} B for {total} detectors",
        )
    widest = int(sizes.max())
    bits = np.unpackbits(detectors_b8, axis=1, bitorder="little", count=total)
    starts = np.cumsum(sizes) - sizes
    within = np.arange(widest)
    source = np.minimum(starts[:, None] + within, total - 1)
    blocks = bits[:, source] * (within < sizes[:, None]).astype(np.uint8)
    return np.packbits(blocks, axis=2, bitorder="little")


def build_enqueue_batch(
    bits_b8: U1,
    num_syndromes: npt.NDArray[np.int64],
    *,
    counters: U8,
    ptp_timestamps: U8,
    decoder_id: int = 0,
    envelope: EnvelopeKind = "hil",
    epoch: Integers = 0,
    board_mask: Integers = 0,
    valid_until_round: Integers = 0,
) -> U1:
    """Messages ``enqueue_syndromes`` for n shots of r blocks.

    Args:
        bits_b8: u1[n, r, B], block bits LSB first with unused bits 0 (:func:`split_blocks`).
        num_syndromes: i8[r], bits in each block, 1 .. 8 B.
        counters: u8[n, r] application sequence numbers; request_id is their low 32 bits.
        ptp_timestamps: u8[n, r], 0 = unused (:func:`ptp_from_ns_array`).
        decoder_id: the same for all.
        envelope: ``hil`` or ``nvidia`` (none).
        epoch: u32, one or anything that broadcasts to [n, r]; so are the two that follow.
        board_mask: u32.
        valid_until_round: u32.

    Returns:
        u1[n, r, L] with L = :func:`enqueue_row_bytes` of the largest block.

    Raises:
        WireError: a block is empty, too large or wider than ``bits_b8``, or a field does not fit
            its 32 or 64 bits.
    """
    n, r, width = bits_b8.shape
    sizes = np.asarray(num_syndromes, np.int64)
    if sizes.shape != (r,) or sizes.min() < 1 or sizes.max() > min(8 * width, MAX_SYNDROMES):
        raise WireError(
            "blocks do not fit the bits",
            got=f"sizes {sizes.tolist()}",
            allowed=f"{r} values within 1..{min(8 * width, MAX_SYNDROMES)}",
        )
    tail = ENVELOPE_BYTES if envelope == "hil" else 0
    rows = np.zeros((n, r, enqueue_row_bytes(int(sizes.max()), envelope)), np.uint8)
    arg_len = ENQUEUE_FIXED_BYTES + (sizes + 7) // 8 + tail
    _header(rows, ENQUEUE_SYNDROMES, arg_len, counters, ptp_timestamps)
    rows[..., 24:32] = _little("<q", decoder_id)
    _put(rows, 32, counters, "<u8")
    _put(rows, 48, sizes, "<i8")
    fields = (epoch, board_mask, valid_until_round)
    for size in np.unique(sizes).tolist():
        chosen = np.flatnonzero(sizes == size)
        filled = (size + 7) // 8
        part = rows[:, chosen]
        part[..., 56 : 56 + filled] = bits_b8[:, chosen, :filled]
        if tail:
            here = tuple(_columns(field, (n, r), chosen) for field in fields)
            _envelope(part, 56 + filled, here)
        rows[:, chosen] = part
    return rows


def build_get_batch(
    counters: U8,
    ptp_timestamps: U8,
    *,
    return_size: int,
    reset: int = 1,
    decoder_id: int = 0,
    envelope: EnvelopeKind = "hil",
    epoch: Integers = 0,
    board_mask: Integers = 0,
    valid_until_round: Integers = 0,
) -> U1:
    """Messages ``get_corrections``, one per shot.

    Args:
        counters: u8[n] application sequence numbers; request_id is their low 32 bits.
        ptp_timestamps: u8[n], 0 = unused.
        return_size: number of observables.
        reset: 1 clears the corrections after a successful answer.
        decoder_id: the same for all.
        envelope: ``hil`` or ``nvidia`` (none).
        epoch: u32, one or [n]; so are the two that follow.
        board_mask: u32.
        valid_until_round: u32.

    Returns:
        u1[n, L] with L = :func:`get_row_bytes`.

    Raises:
        WireError: a field does not fit its 32 or 64 bits.
    """
    n = len(counters)
    tail = ENVELOPE_BYTES if envelope == "hil" else 0
    rows = np.zeros((n, get_row_bytes(envelope)), np.uint8)
    _header(rows, GET_CORRECTIONS, GET_FIXED_BYTES + tail, counters, ptp_timestamps)
    rows[:, 24:41] = _little("<qqB", decoder_id, return_size, reset)
    if tail:
        _envelope(rows, HEADER_BYTES + GET_FIXED_BYTES, (epoch, board_mask, valid_until_round))
    return rows


def build_predecode_batch(detectors: U1, request_ids: U8, ptp_timestamps: U8) -> U1:
    """Messages ``predecode``, one per shot.

    Args:
        detectors: u1[n, N], 0 or 1.
        request_ids: u8[n]; their low 32 bits are sent.
        ptp_timestamps: u8[n], 0 = unused.

    Returns:
        u1[n, L] with L = :func:`predecode_row_bytes`.

    Raises:
        WireError: no or too many detectors, or a value that is neither 0 nor 1.
    """
    n, count = detectors.shape
    if not 0 < count <= MAX_SYNDROMES or (n and int(detectors.max()) > 1):
        raise WireError(
            "not the detectors of a predecode",
            got=f"{count} detectors, largest value {detectors.max(initial=0)}",
            allowed=f"1..{MAX_SYNDROMES} detectors, each 0 or 1",
        )
    rows = np.zeros((n, predecode_row_bytes(count)), np.uint8)
    _header(rows, PREDECODE, count, request_ids, ptp_timestamps)
    rows[:, HEADER_BYTES : HEADER_BYTES + count] = detectors
    return rows


def _header(rows: U1, function: int, arg_len: Integers, counters: U8, ptp: U8) -> None:
    rows[..., 0:8] = _little("<II", MAGIC_REQUEST, function)
    _put(rows, 8, arg_len, "<u4")
    _put(rows, 12, np.asarray(counters, np.uint64) & _ID_MASK, "<u4")
    _put(rows, 16, ptp, "<u8")


def _envelope(rows: U1, at: int, fields: tuple[Integers, ...]) -> None:
    for i, field in enumerate(fields):
        _put(rows, at + 4 * i, field, "<u4")
    end = at + ENVELOPE_BYTES - CRC_BYTES
    flat = rows[..., CRC_FROM:end].reshape(-1, end - CRC_FROM)
    _put(rows, end, crc32_rows(flat).reshape(rows.shape[:-1]), "<u4")


def _put(rows: U1, at: int, values: Integers, dtype: str) -> None:
    given = np.asarray(values)
    limits = np.iinfo(dtype)
    if given.size and (int(given.min()) < limits.min or int(given.max()) > limits.max):
        raise WireError(
            "a field does not fit its place",
            where=f"message byte {at}",
            got=f"{given.min()} .. {given.max()}",
            allowed=f"{limits.min} .. {limits.max}",
        )
    shape = rows.shape[:-1]
    wide = np.ascontiguousarray(np.broadcast_to(given, shape), dtype=dtype)
    rows[..., at : at + wide.itemsize] = wide.view(np.uint8).reshape(*shape, wide.itemsize)


def _columns(
    values: Integers, shape: tuple[int, int], chosen: npt.NDArray[np.int64]
) -> npt.NDArray[np.integer[Any]]:
    return np.broadcast_to(np.asarray(values), shape)[:, chosen]


def _little(form: str, *values: int) -> U1:
    return np.frombuffer(struct.pack(form, *values), np.uint8)
