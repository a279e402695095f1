"""Hostile frames through the node's door: receiver, intake and session, as the server joins them.

``Door`` is a running node without socket and workers: the real ``Server`` code around a virtual
endpoint, registered memory between canaries. ``Oracle`` says what must become of a frame, written
anew from ``docs/wire.md`` and ``docs/node.md``; it shares no code with the receiver. ``campaign``
feeds mutations by the thousand and compares, frame by frame: cause of every drop, memory, session.
"""

from __future__ import annotations

import functools
import itertools
import socket
import struct
import zlib
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from hil.link.virtual import virtual_pair
from hil.node.config import Delays, NodeConfig
from hil.node.server import Server, slot_bytes
from hil.node.session import Session
from hil.node.shots import Decode, Start
from hil.wire.rpc_batch import build_enqueue_batch, build_get_batch, ptp_from_ns_array

U1 = npt.NDArray[np.uint8]

BLOCKS: Final = ((0, 4), (1, 3, 6), (2, 5))
PER_SHOT: Final = len(BLOCKS) + 1
SLOTS: Final = 64
EPOCH, BOARDS = 7, 0b11
CANARY: Final = 4096
RACK, NODE, PORT = "127.0.0.2", "127.0.0.1", 4791
QP, RKEY, BASE = 0x42, 0x1F02, 0x1000_0000
MAX_JUMP: Final = 1 << 22
_SENDS: Final = {0x20: 12, 0x21: 12, 0x22: 12, 0x23: 16, 0x24: 12, 0x25: 16}
_PAYLOAD_AT: Final = {**_SENDS, 0x26: 28, 0x27: 12, 0x28: 12, 0x29: 16, 0x2A: 28, 0x2B: 32}
_FIRST, _LAST = (
    {0x20, 0x24, 0x25, 0x26, 0x2A, 0x2B},
    {0x22, 0x23, 0x24, 0x25, 0x28, 0x29, 0x2A, 0x2B},
)
_COMPLETES: Final = {0x22, 0x23, 0x24, 0x25, 0x29, 0x2B}
CRC_AT: Final = 4


def config() -> NodeConfig:
    """A small node: three blocks per shot, 64 slots."""
    return NodeConfig.create(
        rack_address=RACK, node_address=NODE, ring_slots=SLOTS, block_detectors=BLOCKS,
        n_observables=9, epoch=EPOCH, board_mask=BOARDS, dem_text="not read here",
        primary="pymatching_corr", mode="measure", deadline_ps=10**12,
    )  # fmt: skip


class _Stamps:
    def frame(self, *_: object) -> None:
        """Stamps are not looked at here."""

    shot = frame


class _Worker:
    """Takes a job and answers when told to (``Door.answer``)."""

    def __init__(self) -> None:
        self.busy = False
        self.shot = -1

    def start(self, job: Start) -> None:
        """Take the job."""
        self.busy, self.shot = True, job.shot


class Door:
    """A node without socket and workers.

    Attributes:
        endpoint: the node's end; ``inject`` bytes into it.
        session: its session.
        region: registered memory with a canary of ``CANARY`` bytes at both ends.
    """

    def __init__(self, settings: NodeConfig | None = None) -> None:
        settings = settings or config()
        rack, self.endpoint = virtual_pair(hosts=(RACK, NODE), port=PORT, qps=(0x41, QP),
                                           rkeys=(0x1F01, RKEY))  # fmt: skip
        rack.register(4, 128)
        server = object.__new__(Server)
        server._config, server._delays, server._hold = settings, Delays(), []
        server._order, server._stamps = itertools.count(), _Stamps()  # type: ignore[assignment]
        server._endpoint = self.endpoint  # type: ignore[assignment]
        size = len(self.endpoint.register(SLOTS, slot_bytes(settings)))
        self.region = bytearray(b"\xc5" * CANARY + bytes(size) + b"\xc5" * CANARY)
        inside = memoryview(self.region)[CANARY : CANARY + size]
        self.endpoint._slots.memory = server._memory = inside
        self.endpoint.connect(rack.address())
        rack.connect(self.endpoint.address())
        self.stride = server._stride = self.endpoint.address().stride
        self._worker = _Worker()
        server._workers = {self._worker: False}  # type: ignore[dict-item]
        server._session = self.session = Session(settings, (1, 0))
        self._server = server

    def feed(self, datagram: bytes) -> bool:
        """Let one datagram arrive; whether it reached the session."""
        self.endpoint.inject(datagram)
        completions = self.endpoint.poll(1)
        for completion in completions:
            self._server._take_frame(completion)
        return bool(completions)

    def answer(self) -> None:
        """The worker finishes what it has."""
        while self._worker.busy:
            self._worker.busy = False
            done = Decode(1, 2, b"\0\0")
            self._server._do(self.session.primary_done(self._worker.shot, done, 3))

    def sent(self) -> int:
        """Replies sent so far."""
        return self.endpoint.counters()["tx"]

    def owned(self) -> bytes:
        """One byte per slot: 1 = owned by the session."""
        return bytes(self.endpoint._slots.owned)

    def state(self) -> tuple[object, ...]:
        """All that a frame may change in the session, but for the counts of what was refused."""
        session = self.session
        audit = session._intake.audit
        shots = tuple(
            (s.number, s.received, s.outcome, s.asked, s.reply_made, s.busy_workers, len(s.slots),
             s.bits.tobytes())
            for s in session._shots.values()
        )  # fmt: skip
        return (
            session._newest, session._last_frame_ps, tuple(session._collecting),
            len(session._asked), audit.expected, audit.lost, audit.gaps, audit.reordered, shots,
        )  # fmt: skip

    def counts(self) -> Counter[str]:
        """Counts of link and session."""
        link = {f"link.{k}": v for k, v in self.endpoint.counters().items()}
        return Counter({**link, **self.session.counters()})


# -- what must become of a frame ------------------------------------------------------------------


@functools.cache
def _icrc_head(length: int) -> int:
    udp = 8 + length
    head = b"\xff" * 8 + struct.pack("!BBHHHBBH", 0x45, 0xFF, 20 + udp, 0, 0x4000, 0xFF, 17, 0xFFFF)
    head += socket.inet_aton(RACK) + socket.inet_aton(NODE)
    return zlib.crc32(head + struct.pack("!HHHH", PORT, PORT, udp, 0xFFFF))


def icrc(datagram: bytes) -> int:
    """ICRC of BTH .. ICRC from rack to node, from the definition; the last 4 bytes do not count."""
    return zlib.crc32(datagram[:4] + b"\xff" + datagram[5:-4], _icrc_head(len(datagram)))


def fnv1a(name: str) -> int:
    """Function id of an RPC."""
    value = 0x811C9DC5
    for byte in name.encode():
        value = ((value ^ byte) * 0x01000193) & 0xFFFFFFFF
    return value


ENQUEUE, GET, RESET = (fnv1a(n) for n in ("enqueue_syndromes", "get_corrections", "reset_decoder"))


@dataclass(frozen=True)
class Part:
    """A message of FIRST, MIDDLE .. that goes on at ``psn``."""

    send: bool
    slot: int
    psn: int
    whole: int
    data: bytes
    busy: bool


@dataclass
class Oracle:
    """Fate of every frame, by the documents alone.

    Attributes:
        seen: counters admitted so far.
        expected: counter that would be in order.
        send_slot: slot of the next SEND.
        psn: PSN that would be in order.
        part: the message under way. WRITE ONLYs that go on inside a slot are left out: no mutation
            of one frame makes two that fit.
        stored: (slot, offset, payload) of the frame judged last, ``None`` if nothing is written.
        message: the whole message that the frame judged last completed.
    """

    stride: int
    seen: set[int] = field(default_factory=set)
    expected: int = 0
    send_slot: int = 0
    psn: int = 0
    part: Part | None = None
    stored: tuple[int, int, bytes] | None = None
    message: bytes = b""

    def judge(self, data: bytes, owned: bytes) -> tuple[str, str, bool]:
        """Name at the link, name at the session ("" = never got there), may the session change?"""
        self.stored = None
        cause = self._header_fault(data)
        if cause:
            return cause, "", False
        opcode, psn = data[0], int.from_bytes(data[9:12], "big")
        ahead = (psn - self.psn) % (1 << 24)
        if ahead < 1 << 23:
            self.psn = (psn + 1) % (1 << 24)
            self.part = None if ahead else self.part
        before, payload = self.part, b""
        cause, slot, payload = self._link(data) if opcode in _FIRST else self._goes_on(data, psn)
        if cause:
            return cause, "", False
        begun = b"" if opcode in _FIRST or before is None else before.data
        busy = bool(owned[slot]) if opcode in _FIRST or before is None else before.busy
        self.message = begun + payload
        self.stored = None if busy else (slot, len(begun), payload)
        name = "rx_busy" if busy else "rx_ok"
        self.part = None
        if opcode not in _LAST:
            whole = self.stride if opcode in _SENDS else int.from_bytes(data[24:28], "big")
            whole = before.whole if before and opcode not in _FIRST else whole
            self.part = Part(opcode in _SENDS, slot, self.psn, whole, self.message, busy)
        if opcode not in _COMPLETES:
            return name, "", False
        if not busy and opcode in _SENDS:
            self.send_slot = (slot + 1) % SLOTS
        judge = self._header if busy else self._message
        fate, changes = judge(self.message, slot)
        return name, fate, changes

    def _header_fault(self, data: bytes) -> str:
        if len(data) < 16:
            return "drop_length"
        if struct.unpack("<I", data[-4:])[0] != icrc(data):
            return "drop_icrc"
        if data[0] not in _PAYLOAD_AT or data[1] & 0x0F:
            return "drop_opcode"
        if data[2:4] != b"\xff\xff":
            return "drop_pkey"
        return "drop_qp" if int.from_bytes(data[5:8], "big") != QP else ""

    def _payload(self, data: bytes) -> bytes | None:
        at, end = _PAYLOAD_AT[data[0]], len(data) - 4 - (data[1] >> 4 & 3)
        return None if end < at or len(data) % 4 else data[at:end]

    def _goes_on(self, data: bytes, psn: int) -> tuple[str, int, bytes]:
        payload, part, send = self._payload(data), self.part, data[0] in _SENDS
        if payload is None:
            return "drop_length", 0, b""
        if part is None or (part.send, part.psn) != (send, psn):
            return "drop_bounds", 0, b""
        end = len(part.data) + len(payload)
        if end > part.whole or (data[0] in _LAST and not send and end != part.whole):
            self.part = None
            return "drop_bounds" if send else "drop_length", 0, b""
        if data[0] == 0x29 and data[12:16] != struct.pack("!I", (psn & 0xFFFFF) << 12 | part.slot):
            return "drop_imm", 0, b""
        return "", part.slot, payload

    def _link(self, data: bytes) -> tuple[str, int, bytes]:  # noqa: PLR0911 - a list of checks
        none, payload = b"", self._payload(data)
        if payload is None:
            return "drop_length", 0, none
        if len(payload) > self.stride and data[0] in _SENDS:
            return "drop_bounds", 0, none
        if data[0] in _SENDS:
            return "", self.send_slot, payload
        va, rkey, announced = struct.unpack("!QII", data[12:28])
        if announced != len(payload) if data[0] in _LAST else announced <= len(payload):
            return "drop_length", 0, none
        if rkey != RKEY:
            return "drop_rkey", 0, none
        slot, offset = divmod(va - BASE, self.stride)
        if offset or not 0 <= slot < SLOTS or announced > self.stride:
            return "drop_bounds", 0, none
        psn, imm = int.from_bytes(data[9:12], "big"), int.from_bytes(data[28:32], "big")
        if data[0] == 0x2B and imm != ((psn & 0xFFFFF) << 12 | slot):
            return "drop_imm", 0, none
        return "", slot, payload

    def _message(self, p: bytes, slot: int) -> tuple[str, bool]:
        fate = _malformed(p)
        if fate:
            return fate, False
        function, arg_len, rid = struct.unpack("<III", p[4:16])
        body = p[24 : 24 + arg_len - 16]
        if struct.unpack("<q", body[:8])[0] != 0:
            return "bad_decoder_id", False
        if function == RESET:
            return "reset", True
        counter = struct.unpack("<q", body[8:16])[0] if function == ENQUEUE else self._near(rid)
        right_kind = (counter % PER_SHOT == PER_SHOT - 1) == (function == GET)
        known = counter >= 0 and counter & 0xFFFFFFFF == rid and counter <= self.expected + MAX_JUMP
        if not (right_kind and known):
            return "bad_request", False
        if counter % SLOTS != slot:
            return "bad_slot", False
        return self._audit(counter)

    def _header(self, p: bytes, slot: int) -> tuple[str, bool]:
        """A frame whose slot is owned is judged by its header alone (docs/node.md)."""
        if len(p) < 24:
            return "bad_length", False
        magic, function, _, rid = struct.unpack("<IIII", p[:16])
        if magic != 0x43555152:
            return "bad_magic", False
        counter = self._near(rid)
        wanted = GET if counter % PER_SHOT == PER_SHOT - 1 else ENQUEUE
        near = 0 <= counter <= self.expected + 4 * PER_SHOT
        if function != wanted or not near or counter % SLOTS != slot:
            return "bad_request", False
        fate, changes = self._audit(counter)
        return ("busy" if changes else fate), changes

    def _near(self, rid: int) -> int:
        ahead = (rid - self.expected) & 0xFFFFFFFF
        return self.expected + (ahead - (1 << 32) if ahead >= 1 << 31 else ahead)

    def _audit(self, counter: int) -> tuple[str, bool]:
        if counter in self.seen:
            return "repeated", False
        if counter < self.expected - 1024 * PER_SHOT:
            return "repeated", False
        self.seen.add(counter)
        self.expected = max(self.expected, counter + 1)
        return "admitted", True


def _malformed(p: bytes) -> str:  # noqa: PLR0911 - a list of checks
    """Cause by which a message cannot be read; empty if it can."""
    if len(p) < 24:
        return "bad_length"
    magic, function, arg_len, _ = struct.unpack("<IIII", p[:16])
    if magic != 0x43555152:
        return "bad_magic"
    if function not in (ENQUEUE, GET, RESET):
        return "bad_function"
    if 24 + arg_len > len(p) or arg_len < 16:
        return "bad_length"
    end = 24 + arg_len
    if struct.unpack("<I", p[end - 4 : end])[0] != zlib.crc32(p[CRC_AT : end - 4]):
        return "bad_envelope_crc"
    body = arg_len - 16
    if function != ENQUEUE:
        return "" if body == (17 if function == GET else 8) else "bad_length"
    if body < 32:
        return "bad_length"
    mapping, n = struct.unpack("<qq", p[40:56])
    if mapping or not 0 < n <= 1 << 20:
        return "bad_arguments"
    return "" if body == 32 + (n + 7) // 8 else "bad_length"


# -- frames and their mutations -------------------------------------------------------------------


@dataclass(frozen=True)
class Traffic:
    """Valid frames of a client, in order: datagrams, and the bits of each shot."""

    frames: list[bytes]
    bits: U1

    @classmethod
    def of(cls, shots: int, rng: np.random.Generator, stride: int) -> Traffic:
        """``shots`` shots of random bits."""
        sizes = np.array([len(block) for block in BLOCKS])
        bits = rng.integers(0, 2, (shots, sizes.max(), len(BLOCKS)), dtype=np.uint8)
        used = np.arange(sizes.max())[:, None] < sizes
        packed = np.packbits(bits * used, axis=1, bitorder="little").transpose(0, 2, 1)
        counters = np.arange(shots * PER_SHOT, dtype=np.uint64).reshape(shots, PER_SHOT)
        stamps = ptp_from_ns_array(np.full((shots, len(BLOCKS)), 10**9))
        common = {"epoch": EPOCH, "board_mask": BOARDS, "valid_until_round": 9}
        blocks = np.ascontiguousarray(packed)
        enqueue = build_enqueue_batch(
            blocks, sizes, counters=counters[:, :-1], ptp_timestamps=stamps, **common
        )
        get = build_get_batch(counters[:, -1], stamps[:, -1], return_size=9, **common)
        payloads = [row.tobytes() for shot in range(shots) for row in (*enqueue[shot], get[shot])]
        frames = [sealed(_write(n, p, stride)) for n, p in enumerate(payloads)]
        flat = np.zeros((shots, sum(sizes)), np.uint8)
        for k, block in enumerate(BLOCKS):
            flat[:, list(block)] = bits[:, : len(block), k]
        return cls(frames, flat)


def _write(counter: int, payload: bytes, stride: int) -> bytes:
    slot = counter % SLOTS
    bth = struct.pack("!BBHII", 0x2B, 0, 0xFFFF, QP, counter)
    reth = struct.pack("!QII", BASE + slot * stride, RKEY, len(payload))
    imm = struct.pack("!I", (counter & 0xFFFFF) << 12 | slot)
    return bth + reth + imm + payload + bytes(4)


def sealed(datagram: bytes) -> bytes:
    """The same datagram with a right ICRC; as it is if too short to have one."""
    if len(datagram) < 16:
        return datagram
    return datagram[:-4] + struct.pack("<I", icrc(datagram))


FIELDS: Final = (
    (0, 1), (1, 1), (2, 2), (4, 1), (5, 3), (8, 1), (9, 3), (12, 8), (20, 4), (24, 4), (28, 4),
    (32, 4), (36, 4), (40, 4), (44, 4), (48, 8), (56, 8), (64, 8), (72, 8), (80, 8), (88, 1),
    (89, 4), (93, 4), (97, 4), (101, 4),
)  # fmt: skip
"""Offset and length of every field from BTH to the envelope of an enqueue."""

VALUES: Final = (b"\0" * 8, b"\xff" * 8, b"\x7f" + b"\xff" * 7, b"\x80" + b"\0" * 7,
                 b"\0" * 7 + b"\x01", b"\x01" + b"\0" * 7, b"\x24" * 8, b"\x2a" * 8)  # fmt: skip
"""Values that are tried in fields, beside random ones and neighbours of the right one."""

KINDS: Final = ("flip", "truncate", "extend", "field", "random", "slot", "send", "crc")


def mutate(frame: bytes, kind: str, word: int, noise: bytes, *, seal: bool) -> bytes:
    """One mutation of a frame.

    Args:
        frame: a valid datagram.
        kind: of :data:`KINDS`. ``slot``: to another slot, address and immediate agreeing; ``send``:
            the same message as a SEND; ``crc``: a field of the message, its CRC made right.
        word: 64 random bits that choose what is changed.
        noise: 256 random bytes.
        seal: make the ICRC right again.
    """
    data = bytearray(frame)
    if kind == "flip":
        for _ in range(1 + word % 3):
            word >>= 2
            bit = word % (8 * len(data))
            data[bit >> 3] ^= 1 << (bit & 7)
            word >>= 11
    elif kind == "truncate":
        del data[word % len(data) :]
    elif kind == "extend":
        data += noise[: 1 + word % 160]
    elif kind == "random":
        data = bytearray(noise[: word % 256])
    elif kind == "slot":
        struct.pack_into("!Q", data, 12, BASE + word % SLOTS * 128)  # the stride of this node
        data[30:32] = struct.pack("!H", (data[30] & 0xF0) << 8 | word % SLOTS)
    elif kind == "send":
        data = bytearray(b"\x24") + data[1:12] + data[32:]
    else:
        _set_field(data, word, noise, behind=32 if kind == "crc" else 0)
        if kind == "crc":
            _repair(data)
    return sealed(bytes(data)) if seal else bytes(data)


def _set_field(data: bytearray, word: int, noise: bytes, *, behind: int) -> None:
    fields = [f for f in FIELDS if behind <= f[0] and sum(f) <= len(data)]
    at, size = fields[word % len(fields)]
    choice = word >> 8 & 15
    if choice < len(VALUES):
        data[at : at + size] = VALUES[choice][:size]
    elif choice < 12:  # a neighbour of the right value, in either byte order
        end = at if choice & 1 else at + size - 1
        data[end] = (data[end] + (1 if choice & 2 else -1)) & 0xFF
    else:
        data[at : at + size] = noise[:size]


def _repair(data: bytearray) -> None:
    """Make the end-to-end CRC right, where the length field still points at one."""
    end = 32 + 24 + int.from_bytes(data[40:44], "little")
    if 32 + 24 + 16 <= end <= len(data) - 4:
        data[end - 4 : end] = struct.pack("<I", zlib.crc32(data[32 + CRC_AT : end - 4]))


# -- comparison -----------------------------------------------------------------------------------


class Violation(AssertionError):  # noqa: N818 - a finding, not an error of this tool
    """The node did not do with a frame what the oracle says."""


class Watch:
    """A door, its oracle and a model of its memory; ``feed`` compares after every frame."""

    def __init__(self, door: Door | None = None) -> None:
        self.door = door or Door()
        self.oracle = Oracle(self.door.stride)
        self.fates: Counter[str] = Counter()
        self._model = bytearray(self.door.region)
        self._state = self.door.state()
        self._frames = 0

    def feed(self, data: bytes) -> str:
        """One frame; its fate.

        Raises:
            Violation: exception, wrong cause, or a change of state that is not allowed.
        """
        self._frames += 1
        link, fate, changes = self.oracle.judge(data, self.door.owned())
        sent = self.door.sent()
        try:
            reached = self.door.feed(data)
        except Exception as error:
            raise Violation(f"{error!r} by {data.hex()}") from error
        if reached != bool(fate):
            raise Violation(f"session reached: {reached}, oracle: {link} {fate} by {data.hex()}")
        if self.oracle.stored is not None:
            slot, offset, payload = self.oracle.stored
            at = CANARY + slot * self.door.stride + offset
            self._model[at : at + len(payload)] = payload
        replied = self.door.sent() != sent
        if replied and fate.startswith("bad_") and not _trustworthy(self.oracle.message):
            raise Violation(f"reply to a damaged message, oracle: {fate} by {data.hex()}")
        if reached:
            state = self.door.state()
            if state != self._state and not changes:
                raise Violation(f"session changed, oracle: {fate} by {data.hex()}")
            self._state = state
        self.fates[f"link.{link}"] += 1
        self.fates[fate] += bool(fate)
        return fate or link

    def answer(self) -> None:
        """Let the worker finish."""
        self.door.answer()
        self._state = self.door.state()

    def check(self) -> None:
        """Compare all counts, memory and canaries.

        Raises:
            Violation: they differ.
        """
        if bytes(self.door.region) != bytes(self._model):
            raise Violation("memory differs from what valid frames carried, or a canary is dead")
        if self.door.state() != self._state:
            raise Violation("session changed by a frame that did not reach it")
        got = self.door.counts()
        dropped = {k: n for k, n in got.items() if k.startswith(("link.drop_", "link.rx_"))}
        if sum(dropped.values()) != self._frames:
            raise Violation(f"{self._frames} frames in, {dropped} accounted for")
        for name in dropped:
            if got[name] != self.fates[name]:
                raise Violation(f"{name}: counted {got[name]}, oracle {self.fates[name]}")
        self._check_session(got)

    def _check_session(self, got: Counter[str]) -> None:
        repeated = got["duplicate"] + got["stale"]
        admitted = self.fates["admitted"] + self.fates["busy"]
        pairs = {
            "repeated": (repeated, self.fates["repeated"]),
            "admitted": (got["received"] - repeated, admitted),
            **{n: (got[n], self.fates[n]) for n in ("reset", "busy", "bad_magic", "bad_length",
               "bad_function", "bad_arguments", "bad_envelope_crc", "bad_decoder_id", "bad_slot")},
        }  # fmt: skip
        wrong = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
        if wrong or got["bad_request"] < self.fates["bad_request"]:
            raise Violation(f"counted and expected differ: {wrong}")


def _trustworthy(message: bytes) -> bool:
    """Whether a message has a right end-to-end CRC."""
    end = 24 + int.from_bytes(message[8:12], "little")
    crc = int.from_bytes(message[end - 4 : end], "little")
    return 40 <= end <= len(message) and crc == zlib.crc32(message[CRC_AT : end - 4])


@dataclass
class Tally:
    """What a campaign did: frames by kind of mutation and by fate, and client shots that held."""

    frames: int = 0
    sealed: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    fates: Counter[str] = field(default_factory=Counter)
    client_frames: int = 0
    intact_shots: int = 0


SHOTS: Final = 20
PER_CLIENT_FRAME: Final = 50


def campaign(frames: int, seed: int, door: type[Door] = Door) -> Tally:
    """Feed ``frames`` mutations, half of them with the ICRC made right, among a client's frames.

    Every few thousand the node is new. In every fourth round field mutations also get a right
    end-to-end CRC: such frames are valid as far as anyone can tell, and the oracle follows them.

    Raises:
        Violation: the node and the oracle disagree.
    """
    tally = Tally()
    while tally.frames < frames:
        rng = np.random.default_rng([seed, tally.frames])
        _round(tally, rng, Watch(door()), poison=tally.frames // _ROUND % 4 == 3)
    return tally


_ROUND: Final = SHOTS * PER_SHOT * PER_CLIENT_FRAME


def _round(tally: Tally, rng: np.random.Generator, watch: Watch, *, poison: bool) -> None:
    traffic = Traffic.of(SHOTS, rng, watch.door.stride)
    kinds = rng.integers(0, len(KINDS) if poison else len(KINDS) - 1, _ROUND)
    words = rng.integers(0, 1 << 63, _ROUND)
    near = rng.integers(-8, 3, _ROUND)
    seals = rng.integers(0, 2, _ROUND)
    noise = rng.bytes(_ROUND + 256)
    slow = bool(rng.integers(0, 2))
    for n, frame in enumerate(traffic.frames):
        for i in range(n * PER_CLIENT_FRAME, (n + 1) * PER_CLIENT_FRAME):
            base = traffic.frames[min(max(0, n + int(near[i])), len(traffic.frames) - 1)]
            kind, seal = KINDS[kinds[i]], bool(seals[i])
            watch.feed(mutate(base, kind, int(words[i]), noise[i : i + 256], seal=seal))
            tally.kinds[kind] += 1
            tally.sealed += seal
        watch.feed(frame)
        if not slow or n % 32 == 31:
            watch.answer()
    watch.check()
    tally.frames += _ROUND
    tally.client_frames += len(traffic.frames)
    tally.fates += watch.fates
    if not poison:
        tally.intact_shots += _intact(watch, traffic)


def _intact(watch: Watch, traffic: Traffic) -> int:
    """Shots that the node assembled; every one has the client's bits.

    Raises:
        Violation: one has other bits.
    """
    whole = (1 << len(BLOCKS)) - 1
    shots = [s for s in watch.door.session._shots.values() if s.received == whole]
    for shot in shots:
        if not np.array_equal(shot.bits, traffic.bits[shot.number]):
            raise Violation(f"shot {shot.number} was assembled with foreign bits")
    return len(shots)
