"""RPC predecode: the documented bytes, round trips, hostile lengths and values, batch = scalar."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hil.errors import WireError
from hil.wire.predecode import (
    PREDECODE,
    Correction,
    Predecode,
    build_correction,
    build_predecode,
    parse_correction,
    parse_predecode,
)
from hil.wire.rpc import RpcError, Status, pad
from hil.wire.rpc_batch import build_predecode_batch, predecode_row_bytes, ptp_from_ns_array

u32, u64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
i32 = st.integers(-(2**31), 2**31 - 1)
bits = st.lists(st.integers(0, 1), min_size=1, max_size=200).map(bytes)

REQUEST = bytes.fromhex("5251554310e5d9ea0600000003000000fa00000001000000000100000101")
REPLY = bytes.fromhex("53515543000000000800000003000000fa000000010000000200000001000000")
STAMP = 1 << 32 | 250


def test_the_documented_bytes() -> None:
    assert PREDECODE == 0xEAD9E510
    message = Predecode(3, STAMP, bytes([0, 1, 0, 0, 1, 1]))
    assert build_predecode(message) == REQUEST
    assert parse_predecode(pad(REQUEST)) == message
    assert build_correction(3, STAMP, 0, Correction(2, 1)) == REPLY
    response, correction = parse_correction(pad(REPLY))
    assert (response.status, response.request_id, response.ptp_timestamp) == (0, 3, STAMP)
    assert correction == Correction(2, 1)
    assert correction.flip == 0, "the parity answers, not the count"


@settings(max_examples=100, deadline=None)
@given(st.builds(Predecode, u32, u64, bits), st.integers(0, 70))
def test_requests_survive_the_wire(message: Predecode, behind: int) -> None:
    raw = build_predecode(message) + b"\xa5" * behind
    assert parse_predecode(raw) == message
    assert parse_predecode(memoryview(raw)) == message


@settings(max_examples=100, deadline=None)
@given(u32, u64, st.sampled_from(list(Status)), i32, i32)
def test_replies_survive_the_wire(
    request_id: int, stamp: int, status: Status, total: int, converged: int
) -> None:
    raw = pad(build_correction(request_id, stamp, status, Correction(total, converged)))
    response, correction = parse_correction(raw)
    assert (response.status, response.request_id) == (status, request_id)
    assert correction == (None if status else Correction(total, converged))


@settings(max_examples=100, deadline=None)
@given(bits, st.data())
def test_a_byte_that_is_no_bit_is_refused(detectors: bytes, data: st.DataObject) -> None:
    raw = bytearray(build_predecode(Predecode(1, 1, detectors)))
    at = data.draw(st.integers(24, len(raw) - 1))
    raw[at] = data.draw(st.integers(2, 255))
    with pytest.raises(RpcError) as info:
        parse_predecode(raw)
    assert info.value.cause == "arguments"
    with pytest.raises(RpcError):
        build_predecode(Predecode(1, 1, bytes(raw[24:])))


@pytest.mark.parametrize(
    ("raw", "cause"),
    [
        (b"", "length"),
        (REQUEST[:23], "length"),
        (REQUEST[:-1], "length"),
        (b"\x00" + REQUEST[1:], "magic"),
        (REQUEST[:4] + b"\x11" + REQUEST[5:], "function"),
        (REQUEST[:8] + bytes(4) + REQUEST[12:], "length"),
        (REQUEST[:8] + b"\xff\xff\xff\xff" + REQUEST[12:], "length"),
        (
            REQUEST[:8] + struct.pack("<I", (1 << 20) + 1) + REQUEST[12:24] + bytes(1 << 21),
            "length",
        ),
    ],
)
def test_hostile_requests_are_refused_by_cause(raw: bytes, cause: str) -> None:
    with pytest.raises(RpcError) as info:
        parse_predecode(raw)
    assert info.value.cause == cause


@pytest.mark.parametrize("length", [0, 4, 7, 9])
def test_a_reply_of_another_length_is_refused(length: int) -> None:
    raw = REPLY[:8] + struct.pack("<I", length) + REPLY[12:] + bytes(8)
    with pytest.raises(RpcError) as info:
        parse_correction(raw)
    assert info.value.cause == "length"


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 5), st.integers(1, 300), st.integers(0, 2**32))
def test_batch_equals_scalar(n: int, count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    detectors = rng.integers(0, 2, (n, count), np.uint8)
    ids = rng.integers(0, 2**63, n, np.uint64)
    stamps = ptp_from_ns_array(rng.integers(1, 2**40, n))
    rows = build_predecode_batch(detectors, ids, stamps)
    assert rows.shape == (n, predecode_row_bytes(count))
    for row, shot, number, stamp in zip(rows, detectors, ids, stamps, strict=True):
        message = Predecode(int(number) & 0xFFFFFFFF, int(stamp), shot.tobytes())
        assert row.tobytes() == pad(build_predecode(message))


@pytest.mark.parametrize("detectors", [np.zeros((1, 0), np.uint8), np.full((2, 3), 2, np.uint8)])
def test_a_batch_takes_bits_only(detectors: np.ndarray) -> None:
    ids = np.zeros(len(detectors), np.uint64)
    with pytest.raises(WireError, match="detectors of a predecode"):
        build_predecode_batch(detectors, ids, ids)
