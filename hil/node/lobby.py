"""Where racks knock: a TCP socket that keeps half-open set-ups few, short and rare.

Everything that a stranger can make this process hold is bounded: ``Limits`` says how many
connections may be half open (the oldest goes when one more comes), how long each may take, how many
may begin in a second (more are closed at once), and ``setup.LINE_BYTES`` how much each may say.
Nothing of a connection is kept once it is closed.
"""

from __future__ import annotations

import contextlib
import socket
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from hil.errors import LinkError
from hil.node import setup
from hil.node.setup import LINE_BYTES, Hello, Nonces, SetupError, Welcome

_BACKLOG: Final = 64
_ACCEPTED_AT_ONCE: Final = 64


@dataclass(frozen=True, slots=True)
class Limits:
    """What strangers may cost.

    Attributes:
        half_open: connections whose set-up is under way.
        handshake_s: time for a set-up, from the first packet to a hello with its proof.
        setups_per_s: connections that are listened to in any one second.
    """

    half_open: int = 16
    handshake_s: float = 5.0
    setups_per_s: int = 32


@dataclass(eq=False, slots=True)
class _HalfOpen:
    connection: socket.socket
    end: str
    nonce: str
    until_s: float
    said: bytearray = field(default_factory=bytearray)


class Guest:
    """A rack whose hello has been read and whose proof holds; answered once, then in session."""

    def __init__(
        self, connection: socket.socket, end: str, hello: Hello, nonces: Nonces, token: bytes | None
    ) -> None:
        self._connection = connection
        self._nonces, self._token = nonces, token
        self._said = bytearray()
        self.end = end
        self.hello = hello

    def fileno(self) -> int:
        """Descriptor that becomes readable when the rack says something or is gone."""
        return self._connection.fileno()

    def welcome(self, answer: Welcome) -> None:
        """Take the rack in."""
        self._send(setup.signed(answer.model_dump(), "node", self._nonces, self._token))

    def refuse(self, why: str) -> None:
        """Send the rack away, with the reason."""
        self._send(setup.line({"refused": why}))
        self.close()

    def farewell(self, counters: dict[str, int]) -> None:
        """Tell what was counted, at the end."""
        self._send(setup.line({"counters": counters}))
        self.close()

    def heard(self) -> bytes | None:
        """The next line; ``b""`` if it is not complete yet, ``None`` if the rack is gone."""
        try:
            more = self._connection.recv(LINE_BYTES)
        except BlockingIOError:
            return b""
        except OSError:
            return None
        self._said += more
        line, ended, rest = bytes(self._said).partition(b"\n")
        if ended:
            self._said = bytearray(rest)
            return line
        return None if not more or len(self._said) >= LINE_BYTES else b""

    def close(self) -> None:
        """Hang up; twice is fine."""
        self._connection.close()

    def _send(self, data: bytes) -> None:
        with contextlib.suppress(OSError):  # a rack that is gone is found out by reading
            self._connection.settimeout(1.0)
            self._connection.sendall(data)
            self._connection.settimeout(0.0)


class Lobby:
    """The listening socket and all set-ups that are under way.

    Args:
        host: address to listen at (``setup.demand_permission`` comes before).
        port: TCP port, 0 for any.
        token: the shared token, ``None`` without one.
        limits: what strangers may cost.

    Raises:
        LinkError: the address is taken or not of this machine.
    """

    def __init__(
        self, host: str, port: int, token: bytes | None, limits: Limits | None = None
    ) -> None:
        self._token = token
        self._limits = limits or Limits()
        self._half_open: list[_HalfOpen] = []
        self._second, self._in_second = 0, 0
        self.count: Counter[str] = Counter()
        self._listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._listener.bind((host, port))
            self._listener.listen(_BACKLOG)
            self._listener.settimeout(0.0)
        except OSError as error:
            self._listener.close()
            raise LinkError(
                "cannot listen for racks",
                where=f"TCP {host}:{port}",
                got=str(error),
                fix="choose another --listen",
            ) from error

    @property
    def address(self) -> tuple[str, int]:
        """Host and port that racks connect to."""
        host, port = self._listener.getsockname()
        return host, port

    @property
    def half_open(self) -> int:
        """Set-ups under way."""
        return len(self._half_open)

    def filenos(self) -> list[int]:
        """Descriptors to wait for before ``serve``."""
        return [self._listener.fileno(), *(one.connection.fileno() for one in self._half_open)]

    def serve(self, now_s: float) -> list[Guest]:
        """Go on with everything that is there; never blocks, never raises on what arrives.

        Args:
            now_s: any clock that goes forward.

        Returns:
            Racks that said who they are and proved the token, in order.
        """
        guests = [guest for one in list(self._half_open) if (guest := self._listen_to(one, now_s))]
        for connection, end in self._knocking(now_s):
            self._let_in(connection, end, now_s)
        return guests

    def close(self) -> None:
        """Stop listening, hang up on everybody whose set-up is under way."""
        for one in self._half_open:
            one.connection.close()
        self._half_open.clear()
        self._listener.close()

    def _knocking(self, now_s: float) -> Iterator[tuple[socket.socket, str]]:
        """New connections, those above the rate closed at once."""
        if int(now_s) != self._second:
            self._second, self._in_second = int(now_s), 0
        for _ in range(_ACCEPTED_AT_ONCE):
            try:
                connection, (host, _) = self._listener.accept()
            except OSError:  # nobody, or gone again
                return
            self._in_second += 1
            if self._in_second > self._limits.setups_per_s:
                self.count["over_rate"] += 1
                connection.close()
                continue
            yield connection, host

    def _let_in(self, connection: socket.socket, end: str, now_s: float) -> None:
        if len(self._half_open) >= self._limits.half_open:
            self.count["displaced"] += 1
            self._half_open.pop(0).connection.close()
        connection.settimeout(0.0)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        nonce = setup.fresh_nonce()
        try:
            connection.send(setup.greeting(nonce, self._token))
        except OSError:
            connection.close()
            return
        until_s = now_s + self._limits.handshake_s
        self._half_open.append(_HalfOpen(connection, end, nonce, until_s))

    def _listen_to(self, one: _HalfOpen, now_s: float) -> Guest | None:
        try:
            more = one.connection.recv(LINE_BYTES)
        except BlockingIOError:
            if now_s >= one.until_s:
                self._drop(one, "too_slow")
            return None
        except OSError:
            more = b""
        one.said += more
        text, ended, _ = bytes(one.said).partition(b"\n")
        if not ended and more and len(one.said) < LINE_BYTES and now_s < one.until_s:
            return None
        if not ended:
            self._drop(one, "gone" if not more else "too_long")
            return None
        try:
            hello = setup.read_hello(text, one.nonce, self._token)
        except SetupError as error:
            with contextlib.suppress(OSError):
                one.connection.send(setup.line({"refused": error.message}))
            self._drop(one, "refused")
            return None
        self._half_open.remove(one)
        self.count["accepted"] += 1
        nonces = Nonces(one.nonce, hello.nonce)
        return Guest(one.connection, one.end, hello, nonces, self._token)

    def _drop(self, one: _HalfOpen, why: str) -> None:
        self.count[why] += 1
        one.connection.close()
        self._half_open.remove(one)
