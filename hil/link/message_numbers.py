"""Which frame of a plan a datagram is: read from the RPC header that it carries.

Plans number messages, not packets: what a reliable connection sends again keeps its number, and
acknowledgements of the transport have none. Nothing is taken from the datagram but the 32-bit
request id, which both directions carry; it is extended to the number nearest to the last one.
"""

from __future__ import annotations

import struct
from typing import Final

from hil.link.faults import payload_at
from hil.wire.rpc import HEADER_BYTES, MAGIC_REQUEST, MAGIC_RESPONSE

_MAGICS: Final = (MAGIC_REQUEST, MAGIC_RESPONSE)
_RANGE: Final = 1 << 32


class RequestNumbers:
    """Up: the message counter, shot x messages_per_shot + place in the shot."""

    def __init__(self) -> None:
        self._last = 0

    def __call__(self, datagram: bytes) -> int | None:
        """Number of a datagram (BTH .. ICRC); ``None`` if no RPC message begins in it."""
        start = payload_at(datagram)
        if len(datagram) < start + HEADER_BYTES:
            return None
        magic, request_id = struct.unpack_from("<I8xI", datagram, start)
        if magic not in _MAGICS:
            return None
        ahead = (request_id - self._last + _RANGE // 2) % _RANGE - _RANGE // 2
        self._last += ahead
        return self._last


class AnswerNumbers:
    """Down: the shot whose answer it is; ``None`` for replies to single rounds.

    Args:
        messages_per_shot: rounds and the request, which comes last.
    """

    def __init__(self, messages_per_shot: int) -> None:
        self._requests = RequestNumbers()
        self._per_shot = messages_per_shot

    def __call__(self, datagram: bytes) -> int | None:
        """Number of a datagram (BTH .. ICRC)."""
        counter = self._requests(datagram)
        if counter is None:
            return None
        shot, place = divmod(counter, self._per_shot)
        return shot if place == self._per_shot - 1 else None
