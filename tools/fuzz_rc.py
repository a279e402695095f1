"""Hostile frames at an RC queue pair: mutations by the thousand, made and sealed by numpy.

A client's packets (writes with and without immediate, sends, messages of several packets) reach a
responder, its acknowledgements a requester; around each valid datagram stand mutations of it. A
rule written anew from ``docs/wire.md`` says what each one must become:

- dropped, a repetition, or beyond a gap: the pair is as before, but for what was counted;
- the expected packet, though changed: it may be carried out or refused for good. It goes to a pair
  of its own, which is looked at and thrown away.

Registered memory stands between canaries and is compared with what valid packets carried.
"""

from __future__ import annotations

import struct
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from hil.link.rc_pair import RcPair
from hil.link.rc_requester import RcAttributes
from hil.link.slots import BASE_VA, Slots
from hil.wire.icrc import IcrcPath
from hil.wire.roce import Target
from hil.wire.segments import send_packets, write_packets

U1 = npt.NDArray[np.uint8]
UP = IcrcPath("127.0.0.2", "127.0.0.1", 4791, 4791)
DOWN = IcrcPath("127.0.0.1", "127.0.0.2", 4791, 4791)
RKEY, NODE_QP, RACK_QP, MTU, STRIDE, SLOTS = 0x1F02, 0x42, 0x41, 256, 1024, 8
CANARY: Final = b"\xc5" * 4096
RULES = RcAttributes(path_mtu=MTU, queue_packets=64, window_packets=64)
PSN: Final = 2**24 - 40  # so that every round wraps
MESSAGES: Final = 60
PER_FRAME: Final = 400
"""Mutations around each valid datagram, half of them with a right ICRC."""


class Violation(AssertionError):  # noqa: N818 - a finding, not an error of this tool
    """A queue pair did not do with a frame what the rule says."""


class Node:
    """A responder with memory between canaries."""

    def __init__(self, psn: int, qp: int = NODE_QP) -> None:
        self.slots = Slots(RKEY)
        self.slots.register(SLOTS, STRIDE)
        self.region = bytearray(CANARY + bytes(SLOTS * STRIDE) + CANARY)
        self.slots.memory = memoryview(self.region)[len(CANARY) : -len(CANARY)]
        self.pair = RcPair(qp, psn, self.slots, RULES)
        self.pair.connect(Target(RACK_QP, 0, 0, 128), 0)


def state(pair: RcPair) -> tuple[object, ...]:
    """All of a pair that a refused datagram must leave alone."""
    requester, responder = pair.requester, pair.responder
    sending = ("_acked", "_cursor", "_reached", "_end", "_retries", "_rnr_until_ps", "error")
    receiving = ("_expected", "_message", "_msn", "error")
    return (
        *(getattr(requester, name) for name in sending),
        *(getattr(responder, name) for name in receiving),
        bytes(responder._slots.owned),
        responder._slots.next_send,
    )


def mutations(datagram: bytes, rng: np.random.Generator, path: IcrcPath) -> list[U1]:
    """Rows u1[n, L] of several lengths; every second row of each has its ICRC made right."""
    quarter = PER_FRAME // 4
    rows = np.tile(np.frombuffer(datagram, np.uint8), (3 * quarter, 1))
    every = np.arange(len(rows))
    for _ in range(2):  # one or two bits
        bits = rng.integers(0, 8 * rows.shape[1], len(rows))
        flip = rng.integers(0, 2, len(rows)) | (every < quarter)
        rows[every, bits >> 3] ^= (flip << (bits & 7)).astype(np.uint8)
    fields = every[quarter : 2 * quarter]  # a byte of the headers, any value
    rows[fields, rng.integers(0, min(36, rows.shape[1]), quarter)] = rng.integers(0, 256, quarter)
    words = every[2 * quarter :]  # four bytes of the headers, at their bounds
    at = rng.integers(0, max(1, min(32, rows.shape[1] - 4) // 4), quarter) * 4
    values = rng.choice(np.array([0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF], np.uint32), quarter)
    rows[words[:, None], at[:, None] + np.arange(4)] = (
        values.astype(">u4").view(np.uint8).reshape(-1, 4)
    )
    cut = int(rng.integers(0, len(datagram)))
    short, noise = rows[:quarter, :cut].copy(), rng.integers(0, 256, (quarter, cut), np.uint8)
    short[1::2] = noise[1::2]
    out = [np.ascontiguousarray(rows), short]
    for part in out:
        if part.shape[1] >= 16:
            sealed = np.ascontiguousarray(part[::2])
            path.seal_rows(sealed)
            part[::2] = sealed
    return out


def rule(data: bytes, qp: int, expected: int, path: IcrcPath) -> str:  # noqa: PLR0911 - checks
    """What becomes of a datagram at a pair without error: a counter, ``answer`` or ``mine``."""
    if len(data) < 16:
        return "drop_length"
    if not path.check(bytearray(data)):
        return "drop_icrc"
    opcode, flags = data[0], data[1]
    if (opcode > 0x0B and opcode != 0x11) or flags & 15:
        return "drop_opcode"
    if data[2:4] != b"\xff\xff":
        return "drop_pkey"
    if int.from_bytes(data[5:8], "big") != qp:
        return "drop_qp"
    if opcode == 0x11:
        if len(data) != 20 or flags & 0x30:
            return "drop_length"
        reserved = 0x40 <= data[12] < 0x60 or data[12] > 0x63
        return "drop_opcode" if reserved else "answer"
    head = 12 + 16 * (opcode in {0x06, 0x0A, 0x0B}) + 4 * (opcode in {0x03, 0x05, 0x09, 0x0B})
    if len(data) % 4 or len(data) - 4 - (flags >> 4 & 3) < head:
        return "drop_length"
    ahead = (int.from_bytes(data[9:12], "big") - expected + (1 << 23)) % (1 << 24) - (1 << 23)
    return "mine" if ahead == 0 else "rx_ahead" if ahead > 0 else "rx_duplicate"


def outcome(data: bytes) -> tuple[str, int, bytes]:
    """Of an expected packet at a fresh pair: counter, slot and payload that it may write."""
    opcode, end = data[0], len(data) - 4 - (data[1] >> 4 & 3)
    first, last, send = opcode in {0, 4, 5, 6, 10, 11}, opcode not in {0, 1, 6, 7}, opcode < 6
    if not first:
        return "drop_opcode", 0, b""
    payload = data[12 + 16 * (not send) + 4 * (opcode in {0x05, 0x0B}) : end]
    va, rkey, whole = (BASE_VA, RKEY, STRIDE) if send else struct.unpack("!QII", data[12:28])
    slot, offset = divmod(va - BASE_VA, STRIDE)
    if rkey != RKEY:
        return "drop_rkey", 0, b""
    if offset or not 0 <= slot < SLOTS or whole > STRIDE:
        return "drop_bounds", 0, b""
    right = len(payload) <= MTU if last else len(payload) == MTU
    fits = len(payload) == whole if last and not send else len(payload) <= whole
    return ("rx_ok", slot, payload) if right and fits else ("drop_length", 0, b"")


@dataclass
class Tally:
    """What a campaign did: mutations, and their fates."""

    frames: int = 0
    fates: Counter[str] = field(default_factory=Counter)


def campaign(frames: int, seed: int) -> Tally:
    """Feed ``frames`` mutations and compare.

    Raises:
        Violation: a pair and the rule disagree, or memory is not as valid packets made it.
    """
    tally = Tally()
    while tally.frames < frames:
        _round(tally, np.random.default_rng([seed, tally.frames]))
    return tally


def _round(tally: Tally, rng: np.random.Generator) -> None:
    node, model = Node(PSN), bytearray(SLOTS * STRIDE)
    rack = RcPair(RACK_QP, 0, Slots(0), RULES)
    rack.connect(Target(NODE_QP, RKEY, BASE_VA, STRIDE), PSN)
    for message in range(MESSAGES):
        payload = rng.bytes(int(rng.choice([0, 8, 61, MTU, 600, STRIDE])))
        slot = int(rng.integers(0, SLOTS))
        if message % 3 == 2:
            packets, slot = send_packets(NODE_QP, rack.psn, payload, MTU), node.slots.next_send
        else:
            target = Target(NODE_QP, RKEY, BASE_VA, STRIDE)
            imm = message % 3 == 0
            packets = write_packets(target, rack.psn, slot, payload, MTU, with_imm=imm)
        rack.post([bytearray(packet.pack() + bytes(4)) for packet in packets])
        for datagram in rack.outgoing(0):
            UP.seal(datagram)
            _attack(tally, bytes(datagram), rng, node.pair, UP)
            done = node.pair.accept(memoryview(datagram), UP, 0)
            if done is not None:
                node.slots.release(done.slot)
        model[slot * STRIDE : slot * STRIDE + len(payload)] = payload
        if bytes(node.region) != CANARY + model + CANARY:
            raise Violation(f"memory differs after message {message}")
        for answer in node.pair.outgoing(0):
            DOWN.seal(answer)
            _attack(tally, bytes(answer), rng, rack, DOWN)
            rack.accept(memoryview(answer), DOWN, 0)
    if not rack.requester.idle or rack.error or node.pair.error:
        raise Violation("the client's messages did not all arrive")


def _attack(
    tally: Tally, datagram: bytes, rng: np.random.Generator, pair: RcPair, path: IcrcPath
) -> None:
    """Mutations of one datagram at the pair that would take it next."""
    before, counts, fates = state(pair), Counter(pair.counts), Counter[str]()
    for rows in mutations(datagram, rng, path):
        for row in rows:
            data = row.tobytes()
            fate = rule(data, pair._qp, pair.responder.expected, path)
            if fate == "mine":
                fate = _alone(data, pair, path)
            elif fate == "answer":
                fate = _answered(data, pair)
            else:
                _feed(pair, data, path)
                fates[fate] += 1
            tally.fates[fate] += 1
        tally.frames += len(rows)
    pair._answers.clear()  # nothing that a mutation caused is sent
    pair.responder._silent = False
    if state(pair) != before:
        raise Violation(f"state changed by mutations of {datagram.hex()}")
    if Counter(pair.counts) - counts != fates:
        raise Violation(f"counted {Counter(pair.counts) - counts}, rule {fates}")


def _feed(pair: RcPair, data: bytes, path: IcrcPath) -> None:
    try:
        done = pair.accept(memoryview(bytearray(data)), path, 0)
    except Exception as error:
        raise Violation(f"{error!r} by {data.hex()}") from error
    if done is not None:
        raise Violation(f"completion by {data.hex()}")


def _alone(data: bytes, pair: RcPair, path: IcrcPath) -> str:
    """Carry out or refuse a changed packet at a node of its own; its fate."""
    fate, slot, payload = outcome(data)
    node = Node(pair.responder.expected, pair._qp)
    try:
        node.pair.accept(memoryview(bytearray(data)), path, 0)
    except Exception as error:
        raise Violation(f"{error!r} by {data.hex()}") from error
    model = bytearray(SLOTS * STRIDE)
    model[slot * STRIDE : slot * STRIDE + len(payload)] = payload
    if bytes(node.region) != CANARY + model + CANARY:
        raise Violation(f"memory is not as {fate} makes it, by {data.hex()}")
    if dict(+node.pair.counts) != {fate: 1} or bool(node.pair.error) != (fate != "rx_ok"):
        raise Violation(f"{dict(+node.pair.counts)}, rule {fate}, by {data.hex()}")
    return f"mine: {fate}"


def _answered(data: bytes, pair: RcPair) -> str:
    """An acknowledgement that is well formed: taken by a requester of its own."""
    copy = RcPair(pair._qp, 0, Slots(0), RULES)
    copy.connect(Target(1, 0, 0, 128), PSN)
    copy.post([bytearray(20) for _ in range(8)])
    copy.outgoing(0)
    path = DOWN if pair._qp == RACK_QP else UP
    _feed(copy, data, path)
    place = (int.from_bytes(data[9:12], "big") - PSN) % (1 << 24)
    inside, requester = place < 8, copy.requester
    if not inside and (requester.idle or requester.error or requester._cursor != PSN + 8):
        raise Violation(f"an answer to nothing changed the requester: {data.hex()}")
    if inside and requester._acked != PSN + place + (data[12] < 0x20) and not requester.error:
        raise Violation(f"an answer was not followed: {data.hex()}")
    return "answer: inside" if inside else "answer: outside"
