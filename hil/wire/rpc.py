"""RPC messages of CUDA-Q Realtime: ``enqueue_syndromes``, ``get_corrections``, ``reset_decoder``.

All integers little-endian, packed. A 24-byte header is followed by ``arg_len`` (request) or
``result_len`` (response) bytes, then unused bytes up to the slot stride. Bits are packed LSB first.
The envelope ``hil`` is the last 16 bytes of the arguments or results: u32 epoch, u32 board_mask,
u32 valid_until_round, u32 CRC-32. The CRC covers message bytes 4 .. (function or status, length,
request_id, timestamp, all arguments before the CRC itself). The envelope ``nvidia`` is its absence
(``docs/wire.md``).
"""

from __future__ import annotations

import struct
import zlib
from enum import IntEnum
from typing import Final, Literal, NamedTuple, TypeAlias

from hil.errors import WireError

MAGIC_REQUEST: Final = 0x43555152
MAGIC_RESPONSE: Final = 0x43555153
HEADER_BYTES: Final = 24
ENVELOPE_BYTES: Final = 16
CRC_BYTES: Final = 4
CRC_FROM: Final = 4
ENQUEUE_FIXED_BYTES: Final = 32
GET_FIXED_BYTES: Final = 17
RESET_FIXED_BYTES: Final = 8
MAX_SYNDROMES: Final = 1 << 20
FRAME_UNIT: Final = 64
"""Rows of one batch are padded to a multiple of this (the player streams beats of 64 bytes)."""

EnvelopeKind: TypeAlias = Literal["hil", "nvidia"]


def fnv1a32(name: str) -> int:
    """Function id of a name: 32-bit FNV-1a over its UTF-8 bytes."""
    value = 0x811C9DC5
    for byte in name.encode():
        value = (value ^ byte) * 0x01000193 & 0xFFFFFFFF
    return value


ENQUEUE_SYNDROMES: Final = fnv1a32("enqueue_syndromes")
GET_CORRECTIONS: Final = fnv1a32("get_corrections")
RESET_DECODER: Final = fnv1a32("reset_decoder")
SET_EPOCH: Final = fnv1a32("set_epoch")


class Status(IntEnum):
    """Status of a response; 16 and above are ours, positive as every handler error."""

    OK = 0
    INVALID_DECODER = 1
    BAD_REQUEST = 2
    INTERNAL_ERROR = 3
    NOT_READY = 4
    BUSY = 5
    SYNDROMES_DROPPED = 6
    DEADLINE_MISSED = 16


Cause: TypeAlias = Literal["length", "magic", "function", "arguments", "envelope_crc", "status"]


class RpcError(WireError):
    """A message was refused.

    Args:
        what: as in every error of this project.
        cause: a short name to count by.
        got: the offending value.
        allowed: what would have been accepted.
    """

    def __init__(self, what: str, *, cause: Cause, got: str = "", allowed: str = "") -> None:
        super().__init__(what, got=got, allowed=allowed)
        self.cause: Cause = cause

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle by keyword, with the cause."""
        return _rebuild, (self.what, self.cause, self.got, self.allowed)


def _rebuild(what: str, cause: Cause, got: str, allowed: str) -> RpcError:
    return RpcError(what, cause=cause, got=got, allowed=allowed)


class RequestHeader(NamedTuple):
    """First 24 bytes of a request, after the magic. ``ptp_timestamp``: 0 = unused."""

    function_id: int
    arg_len: int
    request_id: int
    ptp_timestamp: int


class ResponseHeader(NamedTuple):
    """First 24 bytes of a response, after the magic."""

    status: int
    result_len: int
    request_id: int
    ptp_timestamp: int


class Envelope(NamedTuple):
    """Envelope ``hil`` without its CRC, which is made when built and checked when parsed."""

    epoch: int
    board_mask: int
    valid_until_round: int


class EnqueueSyndromes(NamedTuple):
    """One block of bits. ``bits``: ceil(num_syndromes / 8) bytes, LSB first, unused bits 0."""

    request_id: int
    ptp_timestamp: int
    decoder_id: int
    counter: int
    num_syndromes: int
    bits: bytes
    envelope: Envelope | None
    mapping_id: int = 0


class GetCorrections(NamedTuple):
    """Ask for ``return_size`` correction bits; ``reset`` clears them after a successful answer."""

    request_id: int
    ptp_timestamp: int
    decoder_id: int
    return_size: int
    reset: int
    envelope: Envelope | None


class ResetDecoder(NamedTuple):
    """Clear bits, corrections and failure of a decoder."""

    request_id: int
    ptp_timestamp: int
    decoder_id: int
    envelope: Envelope | None


class Response(NamedTuple):
    """Answer to any request; ``result`` is without the envelope."""

    status: int
    request_id: int
    ptp_timestamp: int
    result: bytes
    envelope: Envelope | None


Request: TypeAlias = EnqueueSyndromes | GetCorrections | ResetDecoder


def ptp_from_ns(nanoseconds: int) -> int:
    """FPGA timestamp ``(sec << 32) | nsec`` of a count of nanoseconds."""
    return nanoseconds // 1_000_000_000 << 32 | nanoseconds % 1_000_000_000


def ptp_to_ns(stamp: int) -> int:
    """Nanoseconds of an FPGA timestamp."""
    return (stamp >> 32) * 1_000_000_000 + (stamp & 0xFFFFFFFF)


def build_request(message: Request) -> bytes:
    """Request as bytes, exactly 24 + arg_len long; pad it with :func:`pad`.

    Raises:
        WireError: a field does not fit its place.
    """
    try:
        return _request(message)
    except struct.error as error:
        raise WireError("a field does not fit its place", got=repr(message)) from error


def _request(message: Request) -> bytes:
    if isinstance(message, EnqueueSyndromes):
        function, fixed = (
            ENQUEUE_SYNDROMES,
            struct.pack(
                "<qqqq",
                *(message.decoder_id, message.counter, message.mapping_id, message.num_syndromes),
            ),
        )
        fixed += message.bits
    elif isinstance(message, GetCorrections):
        function = GET_CORRECTIONS
        fixed = struct.pack("<qqB", message.decoder_id, message.return_size, message.reset)
    else:
        function, fixed = RESET_DECODER, struct.pack("<q", message.decoder_id)
    tail = ENVELOPE_BYTES if message.envelope else 0
    head = struct.pack(
        "<IIIIQ",
        *(MAGIC_REQUEST, function, len(fixed) + tail, message.request_id, message.ptp_timestamp),
    )
    return _enveloped(head + fixed, message.envelope)


def build_response(message: Response) -> bytes:
    """Response as bytes, exactly 24 + result_len long; pad it with :func:`pad`.

    Raises:
        WireError: a field does not fit its place.
    """
    try:
        return _response(message)
    except struct.error as error:
        raise WireError("a field does not fit its place", got=repr(message)) from error


def _response(message: Response) -> bytes:
    tail = ENVELOPE_BYTES if message.envelope else 0
    head = struct.pack(
        "<IiIIQ",
        *(MAGIC_RESPONSE, message.status, len(message.result) + tail),
        *(message.request_id, message.ptp_timestamp),
    )
    return _enveloped(head + message.result, message.envelope)


def pad(message: bytes, unit: int = FRAME_UNIT) -> bytes:
    """The message with zero bytes behind it up to a multiple of ``unit``."""
    return message + bytes(-len(message) % unit)


def peek_request(data: bytes | memoryview) -> RequestHeader:
    """Header of a request; magic and length are checked, nothing else.

    Raises:
        RpcError: cause ``length`` or ``magic``.
    """
    return RequestHeader(*_header(data, "<IIIIQ", MAGIC_REQUEST))


def peek_response(data: bytes | memoryview) -> ResponseHeader:
    """Header of a response; magic and length are checked, nothing else.

    Raises:
        RpcError: cause ``length`` or ``magic``.
    """
    return ResponseHeader(*_header(data, "<IiIIQ", MAGIC_RESPONSE))


def is_intact(data: bytes | memoryview) -> bool:
    """Whether a request has the envelope ``hil`` and its end-to-end CRC is right."""
    try:
        arg_len = peek_request(data).arg_len
        _body(data, arg_len)
        _open(data, arg_len)
    except RpcError:
        return False
    return True


def parse_request(data: bytes | memoryview, envelope: EnvelopeKind = "hil") -> Request:
    """Request from a slot; bytes behind the arguments are ignored.

    With the envelope ``hil`` the CRC is checked before anything behind the header is believed, and
    the argument length must be exact; with ``nvidia`` excess argument bytes of an enqueue are
    tolerated, as the reference server does.

    Raises:
        RpcError: ``cause`` is length, magic, function, arguments or envelope_crc.
    """
    header = peek_request(data)
    if header.function_id not in _FUNCTIONS:
        raise RpcError(
            "unknown function id",
            cause="function",
            got=f"0x{header.function_id:08x}",
            allowed="enqueue_syndromes, get_corrections, reset_decoder",
        )
    body = _body(data, header.arg_len)
    found = None
    if envelope == "hil":
        found = _open(data, header.arg_len)
        body = body[:-ENVELOPE_BYTES]
    common = (header.request_id, header.ptp_timestamp)
    if header.function_id == GET_CORRECTIONS:
        _need(len(body) == GET_FIXED_BYTES, "get_corrections", len(body), GET_FIXED_BYTES)
        decoder, size, reset = struct.unpack("<qqB", body)
        return GetCorrections(*common, decoder, size, reset, found)
    if header.function_id == RESET_DECODER:
        _need(len(body) == RESET_FIXED_BYTES, "reset_decoder", len(body), RESET_FIXED_BYTES)
        (decoder,) = struct.unpack("<q", body)
        return ResetDecoder(*common, decoder, found)
    return _enqueue(body, common, found)


def _enqueue(
    body: memoryview, common: tuple[int, int], envelope: Envelope | None
) -> EnqueueSyndromes:
    need = ENQUEUE_FIXED_BYTES
    _need(len(body) >= need, "enqueue_syndromes", len(body), need)
    decoder, counter, mapping, n = struct.unpack_from("<qqqq", body)
    if mapping != 0 or not 0 < n <= MAX_SYNDROMES:
        raise RpcError(
            "enqueue_syndromes arguments out of range",
            cause="arguments",
            got=f"mapping id {mapping}, {n} syndromes",
            allowed=f"mapping id 0, 1..{MAX_SYNDROMES} syndromes",
        )
    end = need + (n + 7) // 8
    fits = len(body) == end if envelope else len(body) >= end
    _need(fits, "enqueue_syndromes", len(body), end)
    return EnqueueSyndromes(*common, decoder, counter, n, bytes(body[need:end]), envelope)


def parse_response(data: bytes | memoryview, envelope: EnvelopeKind = "hil") -> Response:
    """Response from a slot; bytes behind the results are ignored.

    Raises:
        RpcError: ``cause`` is length, magic, status or envelope_crc. Negative status values
            (protocol errors of other servers) are passed on; unknown positive ones are refused.
    """
    header = peek_response(data)
    body = _body(data, header.result_len)
    if header.status > 0 and header.status not in _STATUSES:
        raise RpcError("unknown status", cause="status", got=str(header.status))
    common = (header.status, header.request_id, header.ptp_timestamp)
    if envelope == "nvidia":
        return Response(*common, bytes(body), None)
    found = _open(data, header.result_len)
    return Response(*common, bytes(body[:-ENVELOPE_BYTES]), found)


_STATUSES: Final = frozenset(int(s) for s in Status)
_FUNCTIONS: Final = frozenset((ENQUEUE_SYNDROMES, GET_CORRECTIONS, RESET_DECODER))


def _enveloped(message: bytes, envelope: Envelope | None) -> bytes:
    if envelope is None:
        return message
    message += struct.pack("<III", *envelope)
    return message + struct.pack("<I", zlib.crc32(memoryview(message)[CRC_FROM:]))


def _open(data: bytes | memoryview, payload_bytes: int) -> Envelope:
    _need(payload_bytes >= ENVELOPE_BYTES, "envelope", payload_bytes, ENVELOPE_BYTES)
    end = HEADER_BYTES + payload_bytes
    *fields, crc = struct.unpack_from("<IIII", data, end - ENVELOPE_BYTES)
    right = zlib.crc32(memoryview(data)[CRC_FROM : end - CRC_BYTES])
    if crc != right:
        raise RpcError(
            "end-to-end CRC-32 is wrong",
            cause="envelope_crc",
            got=f"0x{crc:08x}",
            allowed=f"0x{right:08x}",
        )
    return Envelope(*fields)


def _header(data: bytes | memoryview, form: str, magic: int) -> tuple[int, int, int, int]:
    if len(data) < HEADER_BYTES:
        raise RpcError(
            "message shorter than its header",
            cause="length",
            got=f"{len(data)} B",
            allowed=f">= {HEADER_BYTES} B",
        )
    found, a, b, c, d = struct.unpack_from(form, data)
    if found != magic:
        raise RpcError("wrong magic", cause="magic", got=f"0x{found:08x}", allowed=f"0x{magic:08x}")
    return a, b, c, d


def _body(data: bytes | memoryview, payload_bytes: int) -> memoryview:
    if HEADER_BYTES + payload_bytes > len(data):
        raise RpcError(
            "message longer than the slot that holds it",
            cause="length",
            got=f"{HEADER_BYTES} + {payload_bytes} B",
            allowed=f"<= {len(data)} B",
        )
    return memoryview(data)[HEADER_BYTES : HEADER_BYTES + payload_bytes]


def _need(condition: bool, what: str, got: int, allowed: int) -> None:
    if not condition:
        raise RpcError(
            f"wrong length of {what}", cause="length", got=f"{got} B", allowed=f"{allowed} B"
        )
