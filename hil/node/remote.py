"""The rack's handles of nodes that it did not start: ours by session set-up, or foreign ones.

Both look like ``NodeProcess`` to the client: an address to send to, a descriptor that becomes
readable when the node is gone, an orderly end.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Final, Protocol, TypeAlias

from hil.errors import NodeError
from hil.link.endpoint import PeerAddress
from hil.node import setup
from hil.node.config import NodeConfig
from hil.node.setup import LINE_BYTES, Nonces, SetupError

_RETRY_S: Final = 0.2
_END_S: Final = 10.0


class NodeHandle(Protocol):
    """What the client must know of its node, whoever started it.

    Attributes:
        peer: where frames go.
        fingerprints: of the decoders that answer; empty where nobody told.
        worker_pids: decode workers on this machine.
        name: how errors name it.
    """

    peer: PeerAddress
    fingerprints: dict[str, dict[str, str]]
    worker_pids: list[int]

    @property
    def name(self) -> str:
        """How errors name it."""
        ...

    @property
    def pid(self) -> int:
        """Process id on this machine, 0 elsewhere."""
        ...

    def fileno(self) -> int:
        """Becomes readable when the node is gone."""
        ...

    def is_alive(self) -> bool:
        """Is it there, as far as one can tell?"""
        ...

    def epitaph(self) -> str:
        """What is known of its end."""
        ...

    def end(self, next_counter: int | None) -> dict[str, int]:
        """End in good order; the node's counters, empty if it cannot tell them."""
        ...

    def close(self) -> None:
        """Let go of it; twice is fine."""
        ...


Attach: TypeAlias = Callable[[PeerAddress], NodeHandle]
"""Finds the node once it is known where replies go."""


class ForeignNode:
    """A receiver that knows no session set-up: its address was told by people.

    Nobody can tell whether it lives; a request without a reply is declared by the rack.
    """

    def __init__(self, peer: PeerAddress) -> None:
        self.peer = peer
        self.fingerprints: dict[str, dict[str, str]] = {}
        self.worker_pids: list[int] = []
        self.name = f"{peer.host}:{peer.port} qp {peer.qp:#x}"
        self.pid = 0
        self._silent, self._other = os.pipe()

    def fileno(self) -> int:
        """A descriptor that never becomes readable."""
        return self._silent

    def is_alive(self) -> bool:
        """Taken for granted."""
        return True

    def epitaph(self) -> str:
        """Nothing is known."""
        return "a foreign node tells nothing"

    def end(self, next_counter: int | None) -> dict[str, int]:
        """It counts nothing that it could tell."""
        del next_counter
        return {}

    def close(self) -> None:
        """Close the descriptor; twice is fine."""
        with contextlib.suppress(OSError):
            os.close(self._silent)
            os.close(self._other)


@dataclass(frozen=True)
class Door:
    """How to reach the set-up port of a standalone node.

    Attributes:
        host, port: of its set-up port.
        token: the shared token, ``None`` without one.
        patience_s: how long to knock while nobody listens yet.
        start_timeout_s: how long the node may take to build its decoders.
    """

    host: str
    port: int
    token: bytes | None = None
    patience_s: float = 10.0
    start_timeout_s: float = 120.0

    def attach(self, config: NodeConfig, receiver: PeerAddress) -> RemoteNode:
        """Set up a session for the exchange ``config``; replies go to ``receiver``.

        Raises:
            SetupError: nobody listens, the node refused, or does not have our token.
        """
        until_s = time.monotonic() + self.patience_s
        while True:
            try:
                return self._knock(config, receiver)
            except (ConnectionError, EOFError, TimeoutError) as error:
                if time.monotonic() > until_s:
                    raise SetupError(
                        "no node answers",
                        where=self._name,
                        got=str(error) or "connection closed",
                        allowed="a listening `hil node serve`",
                        fix="start it first, and compare host and port",
                    ) from error
                time.sleep(_RETRY_S)
            except OSError as error:
                raise SetupError("no way to the node", where=self._name, got=str(error)) from error

    @property
    def _name(self) -> str:
        return f"TCP {self.host}:{self.port}"

    def _knock(self, config: NodeConfig, receiver: PeerAddress) -> RemoteNode:
        here = (receiver.host, 0)  # the node sends nowhere else than to who set the session up
        connection = socket.create_connection((self.host, self.port), 5.0, source_address=here)
        try:
            return self._introduce(connection, config, receiver)
        except BaseException:
            connection.close()
            raise

    def _introduce(
        self, connection: socket.socket, config: NodeConfig, receiver: PeerAddress
    ) -> RemoteNode:
        greeting = setup.read_greeting(_line(connection, 5.0))
        if greeting.token != (self.token is not None):
            raise SetupError(
                "one side has a token, the other has none",
                where=self._name,
                got="the node wants one" if greeting.token else "the node has none",
                fix=f"set {setup.TOKEN_VARIABLE} to the same value at both ends, or at none",
            )
        nonces = Nonces(greeting.nonce, setup.fresh_nonce())
        body = {
            "nonce": nonces.rack,
            "facts": setup.facts(config),
            "peer": asdict(receiver),
            "gap_timeout_ps": min(config.gap_timeout_ps, setup.MOST_GAP_PS),
        }
        connection.sendall(setup.signed(body, "rack", nonces, self.token))
        welcome = setup.read_welcome(_line(connection, self.start_timeout_s), nonces, self.token)
        peer = PeerAddress(**welcome.peer.model_dump())
        return RemoteNode(connection, peer, welcome.fingerprints, self._name)


class RemoteNode:
    """A standalone node in session with this rack (made by ``Door.attach``)."""

    def __init__(
        self,
        connection: socket.socket,
        peer: PeerAddress,
        fingerprints: dict[str, dict[str, str]],
        name: str,
    ) -> None:
        self._connection = connection
        self.peer = peer
        self.fingerprints = fingerprints
        self.worker_pids: list[int] = []
        self.name = name
        self.pid = 0

    def fileno(self) -> int:
        """Descriptor of the set-up connection: the node says nothing before the end."""
        return self._connection.fileno()

    def is_alive(self) -> bool:
        """Is the connection still open and silent?"""
        readable, _, _ = select.select([self._connection], (), (), 0.0)
        return not readable

    def epitaph(self) -> str:
        """What the node said last."""
        try:
            said = self._connection.recv(LINE_BYTES)
        except OSError as error:
            return str(error)
        return repr(said[:200]) if said else "the node closed the session"

    def end(self, next_counter: int | None) -> dict[str, int]:
        """Tell the node that everything is sent; its counters, empty if it is gone."""
        try:
            self._connection.settimeout(_END_S)
            self._connection.sendall(setup.line({"end": next_counter}))
            return setup.read_counters(_line(self._connection, _END_S))
        except (OSError, EOFError, NodeError):
            return {}

    def close(self) -> None:
        """Hang up; twice is fine."""
        self._connection.close()


def _line(connection: socket.socket, timeout_s: float) -> bytes:
    """The next line.

    Raises:
        EOFError: the other side closed.
        SetupError: it is too long.
        OSError: it does not come in time, or the connection broke.
    """
    until_s = time.monotonic() + timeout_s
    said = bytearray()
    while b"\n" not in said:
        if len(said) >= LINE_BYTES:
            raise SetupError("the other side talks too much", got=f"{len(said)} bytes and no line")
        connection.settimeout(max(0.01, until_s - time.monotonic()))
        more = connection.recv(LINE_BYTES)
        if not more:
            raise EOFError("connection closed")
        said += more
    return bytes(said.partition(b"\n")[0])
