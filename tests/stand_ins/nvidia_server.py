"""A model of NVIDIA's decoding server (host dispatch), with the holes of the original.

Written from the documented behaviour of cudaqx at ef991e9, which was not run here: the counter is
parsed and never compared, an overflow or a failed decode still answers 0, BUSY and
SYNDROMES_DROPPED are never said, and bad magic or an unknown function gets no reply at all.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self

REQUEST, RESPONSE = 0x43555152, 0x43555153
ENQUEUE, GET, RESET = 0x7ED8BE82, 0x882D5BA1, 0x977A59CF
OK, INVALID_DECODER, BAD_REQUEST, INTERNAL_ERROR, NOT_READY = range(5)
MAX_BITS = 1 << 20


@dataclass
class _Decoder:
    """One decoder: a volume of bits, corrections that pile up, and a failure that latches."""

    volume: int
    observables: int
    decode: Callable[[list[int]], list[int]]
    bits: list[int] = field(default_factory=list)
    corrections: list[int] = field(default_factory=list)
    ready: bool = False
    failed: bool = False
    decodes: int = 0

    def reset(self) -> None:
        self.bits, self.corrections = [], [0] * self.observables
        self.ready = self.failed = False

    def enqueue(self, bits: list[int]) -> None:
        if self.failed:
            return  # and the caller is told 0
        self.ready = False
        if len(self.bits) + len(bits) > self.volume:
            self.failed = True
            return
        self.bits += bits
        if len(self.bits) < self.volume:
            return
        try:
            flips = self.decode(self.bits)
        except ValueError:
            self.failed = True
            return
        self.decodes += 1
        self.corrections = [a ^ b for a, b in zip(self.corrections, flips, strict=True)]
        self.bits, self.ready = [], True


class NvidiaServer:
    """The server's dispatch: bytes of a slot in, bytes of a reply out.

    Args:
        volume: V, bits of a shot.
        observables: R.
        decode: from V bits to R flips.
    """

    def __init__(
        self, volume: int, observables: int, decode: Callable[[list[int]], list[int]]
    ) -> None:
        self.decoders = {0: _Decoder(volume, observables, decode)}
        self.decoders[0].reset()
        self.silent = 0  # slots cleared without a reply

    def slot(self, data: bytes) -> bytes | None:
        """Serve one slot; ``None``: nothing is sent."""
        magic, function, arg_len, request_id, stamp = struct.unpack_from("<IIIIQ", data)
        handler = {ENQUEUE: self._enqueue, GET: self._get, RESET: self._reset}.get(function)
        if magic != REQUEST or handler is None:
            self.silent += 1
            return None
        status, result = handler(data[24 : 24 + arg_len])
        return struct.pack("<IiIIQ", RESPONSE, status, len(result), request_id, stamp) + result

    def _enqueue(self, arguments: bytes) -> tuple[int, bytes]:
        if len(arguments) < 32:
            return BAD_REQUEST, b""
        number, _counter, mapping, n = struct.unpack_from("<qqqq", arguments)
        decoder = self.decoders.get(number)
        if decoder is None:
            return INVALID_DECODER, b""
        if mapping != 0 or not 0 < n <= MAX_BITS or len(arguments) < 32 + (n + 7) // 8:
            decoder.failed = True
            return BAD_REQUEST, b""
        decoder.enqueue([arguments[32 + i // 8] >> i % 8 & 1 for i in range(n)])
        return OK, b""

    def _get(self, arguments: bytes) -> tuple[int, bytes]:
        if len(arguments) < 17:
            return BAD_REQUEST, b""
        number, size, reset = struct.unpack_from("<qqB", arguments)
        decoder = self.decoders.get(number)
        if decoder is None:
            return INVALID_DECODER, b""
        checks = (
            (size <= 0, BAD_REQUEST),
            (decoder.failed, INTERNAL_ERROR),
            (size != decoder.observables, BAD_REQUEST),
            (not decoder.ready, NOT_READY),
        )
        status = next((code for bad, code in checks if bad), OK)
        if status != OK:
            return status, b""
        packed = bytearray((size + 7) // 8)
        for i, bit in enumerate(decoder.corrections):
            packed[i // 8] |= bit << i % 8
        if reset:
            decoder.corrections, decoder.ready = [0] * size, False
        return OK, bytes(packed)

    def _reset(self, arguments: bytes) -> tuple[int, bytes]:
        decoder = self.decoders.get(int.from_bytes(arguments[:8], "little", signed=True))
        if decoder is None:
            return INVALID_DECODER, b""
        decoder.reset()
        return OK, b""


class UdpServer:
    """The server behind its plain-UDP transport: one datagram a slot, always the full slot back."""

    def __init__(self, server: NvidiaServer, host: str = "127.0.0.1", slot_size: int = 256) -> None:
        self.dropped = 0
        self.lengths: set[int] = set()
        self._server, self._slot_size = server, slot_size
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((host, 0))
        self._socket.settimeout(0.05)
        self.host, self.port = host, int(self._socket.getsockname()[1])
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while not self._stop.is_set():
            try:
                data, sender = self._socket.recvfrom(65535)
            except TimeoutError:
                continue
            self.lengths.add(len(data))
            if len(data) > self._slot_size:
                self.dropped += 1
                continue
            reply = self._server.slot(data.ljust(self._slot_size, b"\0"))
            if reply is not None:
                self._socket.sendto(reply.ljust(self._slot_size, b"\0"), sender)

    def close(self) -> None:
        """End the thread and the socket."""
        self._stop.set()
        self._thread.join(5)
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
