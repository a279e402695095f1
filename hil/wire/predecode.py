"""RPC ``predecode``: a whole shot in one request, its correction in one reply. No envelope.

Arguments: one byte per detector, 0 or 1, in the order of the detectors. Result: i32
``total_corrections``, whose parity is the flip of the observable, then i32 ``converged``. Header
and byte order as in :mod:`hil.wire.rpc`. Only request id and the packets' ICRC protect it.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from hil.wire.rpc import (
    HEADER_BYTES,
    MAGIC_REQUEST,
    MAX_SYNDROMES,
    Response,
    RpcError,
    build_response,
    fnv1a32,
    parse_response,
    peek_request,
)

PREDECODE: Final = fnv1a32("predecode")
_RESULT: Final = struct.Struct("<ii")
_VALUES: Final = b"\x00\x01"


class Predecode(NamedTuple):
    """One shot. ``detectors``: one byte each, 0 or 1; ``ptp_timestamp``: 0 = unused."""

    request_id: int
    ptp_timestamp: int
    detectors: bytes


class Correction(NamedTuple):
    """Answer to a ``predecode``. ``converged``: 1 if the chain that was asked for gave it."""

    total_corrections: int
    converged: int

    @property
    def flip(self) -> int:
        """Whether the observable is to be flipped, 0 or 1."""
        return self.total_corrections & 1


def build_predecode(message: Predecode) -> bytes:
    """The request, exactly 24 + N bytes long; pad it with :func:`hil.wire.rpc.pad`.

    Raises:
        RpcError: no detector, too many of them, or a byte that is neither 0 nor 1.
        struct.error: an id or a stamp does not fit its place.
    """
    _check(message.detectors)
    head = (MAGIC_REQUEST, PREDECODE, len(message.detectors))
    stamp = (message.request_id, message.ptp_timestamp)
    return struct.pack("<IIIIQ", *head, *stamp) + message.detectors


def parse_predecode(data: bytes | memoryview) -> Predecode:
    """The request in a slot; bytes behind the arguments are ignored.

    Raises:
        RpcError: ``cause`` is length, magic, function or arguments.
    """
    header = peek_request(data)
    if header.function_id != PREDECODE:
        raise RpcError(
            "not a predecode",
            cause="function",
            got=f"0x{header.function_id:08x}",
            allowed=f"0x{PREDECODE:08x}",
        )
    if HEADER_BYTES + header.arg_len > len(data):
        raise RpcError(
            "message longer than the slot that holds it",
            cause="length",
            got=f"{HEADER_BYTES} + {header.arg_len} B",
            allowed=f"<= {len(data)} B",
        )
    detectors = bytes(data[HEADER_BYTES : HEADER_BYTES + header.arg_len])
    _check(detectors)
    return Predecode(header.request_id, header.ptp_timestamp, detectors)


def build_correction(request_id: int, ptp_timestamp: int, status: int, found: Correction) -> bytes:
    """The reply; a status other than 0 carries no result."""
    result = b"" if status else _RESULT.pack(*found)
    return build_response(Response(status, request_id, ptp_timestamp, result, None))


def parse_correction(data: bytes | memoryview) -> tuple[Response, Correction | None]:
    """The reply and, where its status is 0, what it says.

    Raises:
        RpcError: as :func:`hil.wire.rpc.parse_response`; or a status 0 without a whole result.
    """
    response = parse_response(data, "nvidia")
    if response.status:
        return response, None
    if len(response.result) != _RESULT.size:
        raise RpcError(
            "wrong length of the result of predecode",
            cause="length",
            got=f"{len(response.result)} B",
            allowed=f"{_RESULT.size} B",
        )
    return response, Correction(*_RESULT.unpack(response.result))


def _check(detectors: bytes) -> None:
    if not 0 < len(detectors) <= MAX_SYNDROMES:
        raise RpcError(
            "wrong number of detectors",
            cause="length",
            got=str(len(detectors)),
            allowed=f"1..{MAX_SYNDROMES}",
        )
    other = detectors.translate(None, _VALUES)
    if other:
        raise RpcError(
            "a detector is neither 0 nor 1",
            cause="arguments",
            got=f"{len(other)} bytes, the first is {other[0]}",
            allowed="0 or 1",
        )
