"""A sensor bridge's control plane as far as our client talks to it, with the dialects of its kin.

``rtl``: NVIDIA's IP. ``emulator``: HSB's software, which leaves the latched number out and answers
only what asks for it. ``cudaq``: NVIDIA's FPGA emulator, which repeats the command as it came and
acknowledges a write with 5 bytes. Facts: the reference on wire formats, section 4.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterable
from typing import Literal, Self

from hil.errors import WireError
from hil.wire.ecb import (
    ACKNOWLEDGE,
    REPLY,
    UNMAPPED,
    Command,
    EcbStatus,
    Reply,
    build_reply,
    parse_request,
)

Dialect = Literal["rtl", "emulator", "cudaq"]
WRITES = (Command.WR_DWORD, Command.WR_BLOCK)


class Board:
    """Registers behind a UDP socket on loopback; a context manager.

    Args:
        dialect: whose replies.
        drop: numbers of requests (from 0) that are neither carried out nor answered.
        mute: numbers of requests that are carried out, but the reply is lost.
        twice: numbers of requests that are answered twice.
        stuck: addresses that a write does not change.
    """

    def __init__(
        self,
        dialect: Dialect = "rtl",
        *,
        drop: Iterable[int] = (),
        mute: Iterable[int] = (),
        twice: Iterable[int] = (),
        stuck: Iterable[int] = (),
    ) -> None:
        self._dialect = dialect
        self._drop, self._mute, self._twice = frozenset(drop), frozenset(mute), frozenset(twice)
        self._stuck = frozenset(stuck)
        self.registers: dict[int, int] = {0x80: 0x2606, 0x84: 0}
        self.unmapped: set[int] = {0xDEAC}
        self.written: list[tuple[int, int]] = []
        self.requests: list[bytes] = []
        self._latched = 0
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
            last.sendto(b"", ("127.0.0.1", self.port))
        self._thread.join(5.0)
        self._socket.close()

    def _serve(self) -> None:
        while True:
            data, sender = self._socket.recvfrom(2048)
            if not data:
                return
            number = len(self.requests)
            self.requests.append(data)
            if number in self._drop:
                continue
            reply = self.answer(data)
            if reply is None or number in self._mute:
                continue
            for _ in range(2 if number in self._twice else 1):
                self._socket.sendto(reply, sender)

    def answer(self, data: bytes) -> bytes | None:
        """Carry a request out."""
        try:
            command, flags, sequence, pairs = parse_request(data)
        except WireError:
            return None
        if self._dialect == "emulator" and not flags & ACKNOWLEDGE:
            return None
        if command not in set(Command):
            return self._said(Reply(command, flags, sequence, EcbStatus.COMMAND, pairs, 0))
        done = tuple(self._access(command, address, value) for address, value in pairs)
        bad = any(address in self.unmapped for address, _ in pairs)
        if not bad:
            self._latched = sequence
        status = EcbStatus.ADDRESS if bad and self._dialect != "cudaq" else EcbStatus.OK
        return self._said(Reply(command | REPLY, flags, sequence, status, done, 0))

    def _said(self, reply: Reply) -> bytes:
        """The reply in this board's dialect."""
        if self._dialect == "emulator":
            return build_reply(reply._replace(latched=None), bytes(4))
        if self._dialect == "cudaq":
            told = reply._replace(command=reply.command & ~REPLY, latched=self._latched)
            return build_reply(told)[: 5 if told.command in WRITES else None]
        return build_reply(reply._replace(latched=self._latched), b"\0\0")

    def _access(self, command: int, address: int, value: int) -> tuple[int, int]:
        if address in self.unmapped:
            return address, UNMAPPED
        if command in WRITES:
            self.written.append((address, value))
            if address not in self._stuck:
                self.registers[address] = value
            return address, 0
        return address, self.registers.get(address, 0)
