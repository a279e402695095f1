"""Client of a sensor bridge's registers: data plane, player, logic analyser.

One request is outstanding at a time; it is repeated when no reply comes (every access here may be
repeated without harm), and a reply to another request is ignored. Registers and the order of
writes: ``docs/lab.md``. Run against a stand-in only: no board was at hand.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from hil.errors import LinkError
from hil.link.soft_roce import require_loopback
from hil.wire.ecb import (
    FIRST_SEQUENCE,
    MAX_PAIRS,
    PORT,
    EcbStatus,
    Pair,
    Reply,
    build_read,
    build_write,
    parse_reply,
)
from hil.wire.hsb_player import (
    BEAT_BYTES,
    ILA_BANK_STRIDE,
    ILA_BANKS,
    ILA_SAMPLES,
    Samples,
    parse_samples,
    player_words,
)
from hil.wire.roce import MAX_QP, MAX_SLOTS, ROCE_PORT, STRIDE_UNIT, payload_limit

VERSION: Final = 0x80
LEAST_VERSION: Final = 0x2602
HIF: Final = 0x0200_0300
HIF_STEP: Final = 0x10000
VP: Final = 0x1000
VP_STEP: Final = 0x40
TX_THRESHOLD: Final = 0x0120_0000
PLAYER: Final = 0x5000_0000
PLAYER_RAM: Final = 0x5010_0000
ILA: Final = 0x4000_0000
ILA_RAM: Final = 0x4010_0000
NO_METADATA: Final = 1 << 16
RUN, SINGLE_PASS, STAMPS = 1, 4, 8
_TOP_VA: Final = 1 << 39
_CLEAR_S: Final = 1e-3  # 25.4 us in the device
_READ_BYTES: Final = 2048
T = TypeVar("T")


@dataclass(frozen=True)
class DataPlane:
    """Where a board sends its windows.

    Attributes:
        host_mac: six bytes.
        host: IPv4 address of the receiver.
        qp, rkey, base_va, stride, n_slots: the receiver's (``hil.link.endpoint.PeerAddress``).
        window_bytes: bytes of a window.
        port: UDP port that the receiver hears.
        source_port: UDP port that the board sends from.
        mtu_bytes: path MTU, fixes the payload of a packet.
        metadata: a packet with window CRC and times follows each window.
        sensor, data_plane: which of the board's.
    """

    host_mac: bytes
    host: str
    qp: int
    rkey: int
    base_va: int
    stride: int
    n_slots: int
    window_bytes: int
    port: int = ROCE_PORT
    source_port: int = 0x3000
    mtu_bytes: int = 1500
    metadata: bool = False
    sensor: int = 0
    data_plane: int = 0

    def writes(self) -> list[Pair]:
        """Register writes in the order that the board wants, the mask off first and on last.

        Raises:
            LinkError: numbers that the board cannot hold or that would overlap in memory.
        """
        self._check()
        hif, vp = HIF + HIF_STEP * self.data_plane, VP + VP_STEP * self.sensor
        mac = int.from_bytes(self.host_mac, "big")
        address = int.from_bytes(socket.inet_aton(self.host), "big")
        return [
            (hif + 0xC, 0),
            (hif + 0x4, payload_limit(self.mtu_bytes) // STRIDE_UNIT),
            (hif + 0x8, self.source_port),
            (vp + 0x18, self.window_bytes),
            (vp + 0x20, mac & 0xFFFFFFFF),
            (vp + 0x24, mac >> 32),
            (vp + 0x28, address),
            (vp + 0x2C, self.port | (0 if self.metadata else NO_METADATA)),
            (vp + 0x00, self.qp),
            (vp + 0x04, self.rkey),
            (vp + 0x08, self.base_va & 0xFFFFFFFF),
            (vp + 0x0C, self.base_va >> 32),
            (vp + 0x10, self.stride // STRIDE_UNIT),
            (vp + 0x14, self.n_slots - 1),
            (hif + 0xC, 1 << self.sensor),
        ]

    def _check(self) -> None:
        rounded = -(-self.window_bytes // STRIDE_UNIT) * STRIDE_UNIT
        least = rounded + (STRIDE_UNIT if rounded > STRIDE_UNIT else 0)
        end = self.base_va + self.n_slots * self.stride
        wrong = (
            (len(self.host_mac) != 6, "host_mac", str(len(self.host_mac)), "6 bytes"),
            (not 1 <= self.qp <= MAX_QP, "qp", hex(self.qp), "24 bits, not 0"),
            (not 0 <= self.rkey < 1 << 32, "rkey", hex(self.rkey), "32 bits"),
            (not 1 <= self.n_slots <= MAX_SLOTS, "n_slots", str(self.n_slots), f"1..{MAX_SLOTS}"),
            (self.window_bytes < 1, "window_bytes", str(self.window_bytes), ">= 1"),
            (self.stride % STRIDE_UNIT or self.stride < least, "stride", str(self.stride),
             f"a multiple of {STRIDE_UNIT}, at least {least}"),
            (self.base_va % STRIDE_UNIT or self.base_va < 0, "base_va", hex(self.base_va),
             f"a multiple of {STRIDE_UNIT}"),
            (end >= _TOP_VA, "base_va", hex(end), f"the ring below {_TOP_VA:#x}"),
            (self.base_va >> 33 != (end - 1) >> 33, "base_va", hex(self.base_va),
             "a ring inside one aligned region of 8 GiB"),
            (not 0 <= self.sensor < 32, "sensor", str(self.sensor), "0..31"),
        )  # fmt: skip
        for refused, name, got, allowed in wrong:
            if refused:
                raise LinkError("the board cannot hold this", where=name, got=got, allowed=allowed)


class ControlPlane:
    """Registers of one board. Use as a context manager.

    Args:
        host: address of the board.
        port: UDP port of its control plane.
        timeout_s: wait for a reply.
        retries: repetitions of a request without a reply.
        allow_remote: permission to leave this machine, as every real board needs.

    Raises:
        LinkError: the address is not permitted.
    """

    def __init__(
        self,
        host: str,
        port: int = PORT,
        *,
        timeout_s: float = 0.5,
        retries: int = 3,
        allow_remote: bool = False,
    ) -> None:
        if not allow_remote:
            require_loopback(host)
        self._name = f"control plane {host}:{port}"
        self._timeout_s, self._retries = timeout_s, retries
        self._sequence = FIRST_SEQUENCE
        self.count = {"requests": 0, "repeated": 0, "ignored": 0}
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            self._socket.connect((host, port))
            self._socket.settimeout(0.0)
        except OSError as error:
            self._socket.close()
            raise LinkError("no way to the board", where=self._name, got=str(error)) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._socket.close()

    # -- registers ----------------------------------------------------------------------------

    def write(self, pairs: Sequence[Pair]) -> None:
        """Write registers in order, as many packets as it takes.

        Raises:
            LinkError: no reply, or a status other than 0.
            WireError: a damaged reply.
        """
        for part in _parts(pairs):
            self._ask(build_write(part, self._next()))

    def read(self, addresses: Sequence[int]) -> list[int]:
        """Values of registers, in order.

        Raises:
            LinkError: no reply, or a status other than 0.
            WireError: a damaged reply.
        """
        values: list[int] = []
        for part in _parts(addresses):
            reply = self._ask(build_read(part, self._next()))
            values += [value for _, value in reply.pairs]
        return values

    def version(self) -> int:
        """IP version of the board.

        Raises:
            LinkError: older than what is known to work.
        """
        version = self.read([VERSION])[0] & 0xFFFF
        if version < LEAST_VERSION:
            raise LinkError(
                "the board is too old", where=self._name, got=hex(version),
                allowed=f">= {LEAST_VERSION:#x}",
            )  # fmt: skip
        return version

    # -- data plane, player, analyser ---------------------------------------------------------

    def set_up(self, plane: DataPlane) -> None:
        """Point the board at a receiver; one write a packet, so that the order is kept."""
        for pair in plane.writes():
            self.write([pair])
        self.write([(TX_THRESHOLD, 5)])  # short responses stream at once

    def load(self, frames: NDArray[np.uint8]) -> None:
        """Put windows uint8 [n, L] into the player and read them back.

        Raises:
            LinkError: the memory holds something else.
            WireError: they do not fit.
        """
        words = [(PLAYER_RAM + offset, value) for offset, value in player_words(frames)]
        self.write([(PLAYER + 0x4, 0)])
        self.write(words)
        found = self.read([address for address, _ in words])
        bad = [a for (a, v), got in zip(words, found, strict=True) if v != got]
        if bad:
            raise LinkError(
                "the player holds something else than was written",
                where=self._name, got=f"{len(bad)} words, the first at {bad[0]:#x}",
            )  # fmt: skip
        self.write([(PLAYER + 0xC, frames.shape[1]), (PLAYER + 0x10, frames.shape[0])])

    def play(self, period_clocks: int, window_bytes: int, *, loop: bool = False) -> None:
        """Start the player, one window every ``period_clocks`` of the host clock, time stamps on.

        Bit 1 is never set: it would replace the data by a pattern.

        Raises:
            LinkError: a period that the player cannot make.
        """
        timer = period_clocks - 1 - window_bytes // BEAT_BYTES
        if not 0 <= timer < 1 << 32:
            raise LinkError(
                "the player cannot be so fast", got=f"{period_clocks} clocks",
                allowed=f"> {window_bytes // BEAT_BYTES} clocks, a beat each",
            )  # fmt: skip
        bits = RUN | STAMPS | (0 if loop else SINGLE_PASS)
        self.write([(PLAYER + 0x4, 0)])
        self.write([(PLAYER + 0x8, timer)])
        self.write([(PLAYER + 0x4, bits)])

    def stop(self) -> None:
        """Stop the player."""
        self.write([(PLAYER + 0x4, 0)])

    def arm(self) -> None:
        """Clear the analyser and let it record."""
        self.write([(ILA, 2)])
        time.sleep(_CLEAR_S)
        for control in (0, 1):
            self.write([(ILA, control)])

    def recorded(self) -> Samples:
        """Stop the analyser and read what it holds (its count is lost once it is idle)."""
        count = min(self.read([ILA + 0x84])[0], ILA_SAMPLES)
        self.write([(ILA, 0)])
        addresses = [
            ILA_RAM + bank * ILA_BANK_STRIDE + 4 * sample
            for bank in range(ILA_BANKS)
            for sample in range(count)
        ]
        words = np.array(self.read(addresses) if addresses else [], dtype=np.uint32)
        return parse_samples(words.reshape(ILA_BANKS, count))

    # -- one request --------------------------------------------------------------------------

    def _next(self) -> int:
        sequence = self._sequence
        self._sequence = (sequence + 1) & 0xFFFF
        return sequence

    def _ask(self, request: bytes) -> Reply:
        self.count["requests"] += 1
        for attempt in range(1 + self._retries):
            self.count["repeated"] += attempt > 0
            reply = self._attempt(request)
            if reply is None:
                continue
            if reply.status != EcbStatus.OK:
                known = reply.status in set(EcbStatus)
                name = EcbStatus(reply.status).name if known else "unknown"
                raise LinkError(
                    "the board refused a register access",
                    where=self._name,
                    got=f"status {reply.status} {name}, request {request[:14].hex()}",
                )
            return reply
        raise LinkError(
            "the board does not answer",
            where=self._name,
            got=f"{1 + self._retries} requests of {self._timeout_s} s",
            fix="check address, port and cable",
        )

    def _attempt(self, request: bytes) -> Reply | None:
        """Send once; the reply, or ``None`` if none comes in time."""
        try:
            self._socket.send(request)
        except OSError:  # nobody there (yet): as good as lost
            time.sleep(self._timeout_s)
            return None
        until_s = time.monotonic() + self._timeout_s
        while (left_s := until_s - time.monotonic()) > 0:
            if not select.select([self._socket], (), (), left_s)[0]:
                return None
            try:
                reply = parse_reply(self._socket.recv(_READ_BYTES), request)
            except ConnectionError:
                continue
            if reply is not None:
                return reply
            self.count["ignored"] += 1
        return None


def _parts(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """As many at a time as fit a packet."""
    return (items[k : k + MAX_PAIRS] for k in range(0, len(items), MAX_PAIRS))
