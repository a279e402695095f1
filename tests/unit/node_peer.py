"""The rack's part in tests of the session: its messages, and a peer that keeps what comes out."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable

import numpy as np

from gpu_decoder.protocol import Reason
from hil.node.config import NodeConfig
from hil.node.session import Session
from hil.node.shots import Action, Decode, Hold, Release, Reply, StampFrame, StampShot, Start
from hil.timebase import PS_PER_MS, PS_PER_US
from hil.wire.rpc import (
    EnqueueSyndromes,
    Envelope,
    EnvelopeKind,
    GetCorrections,
    Response,
    build_request,
    pad,
    parse_response,
    ptp_from_ns,
)

BLOCKS = ((4, 0), (1, 3, 6), (2, 5))
R = len(BLOCKS)
OBSERVABLES = 9
SLOTS = 64
EPOCH, BOARDS = 7, 0b11
T0_NS = 1_000_000_000
FIELDS = {
    "rack_address": "127.0.0.2",
    "node_address": "127.0.0.1",
    "ring_slots": SLOTS,
    "block_detectors": BLOCKS,
    "n_observables": OBSERVABLES,
    "epoch": EPOCH,
    "board_mask": BOARDS,
    "dem_text": "not read here",
    "primary": "pymatching_corr",
    "mode": "measure",
    "deadline_ps": 4 * PS_PER_MS,
}
DECIDE = {
    "mode": "decide",
    "fallback": "pymatching",
    "primary_deadline_ps": 2 * PS_PER_MS,
    "primary_pred_ps": 100 * PS_PER_US,
    "fallback_pred": ((0, 50 * PS_PER_US),),
}
T0_PS = T0_NS * 1000


def config(**changes: object) -> NodeConfig:
    return NodeConfig.create(**{**FIELDS, **changes})


def enqueue(shot: int, block: int, bits: Iterable[int] | None = None, **changes: object) -> bytes:
    size = len(BLOCKS[block])
    packed = np.packbits(list(bits or [0] * size), bitorder="little").tobytes()
    counter = shot * (R + 1) + block
    fields = {
        "request_id": counter & 0xFFFFFFFF,
        "ptp_timestamp": ptp_from_ns(T0_NS),
        "decoder_id": 0,
        "counter": counter,
        "num_syndromes": size,
        "bits": packed,
        "envelope": Envelope(EPOCH, BOARDS, 77),
    }
    return pad(build_request(EnqueueSyndromes(**{**fields, **changes})))


def get(shot: int, **changes: object) -> bytes:
    fields = {
        "request_id": (shot * (R + 1) + R) & 0xFFFFFFFF,
        "ptp_timestamp": ptp_from_ns(T0_NS),
        "decoder_id": 0,
        "return_size": OBSERVABLES,
        "reset": 1,
        "envelope": Envelope(EPOCH, BOARDS, 78),
    }
    return pad(build_request(GetCorrections(**{**fields, **changes})))


def resealed(data: bytes) -> bytes:
    """The message with the end-to-end CRC that its bytes need."""
    end = 24 + int.from_bytes(data[8:12], "little")
    return data[: end - 4] + struct.pack("<I", zlib.crc32(data[4 : end - 4])) + data[end:]


def slot_of(data: bytes) -> int:
    """The slot that the rack writes to (its request id wraps at a multiple of the ring)."""
    return int.from_bytes(data[12:16], "little") % SLOTS


def decoded(now_ps: int, prediction: bytes) -> Decode:
    """What a worker gives back; without a prediction it has failed."""
    failed = Reason.NONE if prediction else Reason.OUTPUT_INVALID
    return Decode(now_ps - 5, now_ps, prediction, failed)


class Peer:
    """Feeds a session and keeps what comes out."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.now_ps = T0_PS
        self.replies: list[Response] = []
        self.starts: list[Start] = []
        self.holds: list[Hold] = []
        self.rows: dict[int, dict[str, object]] = {}
        self.frames: list[StampFrame] = []
        self.owned: set[int] = set()

    def take(self, actions: list[Action], envelope: EnvelopeKind = "hil") -> list[Response]:
        new: list[Response] = []
        for action in actions:
            match action:
                case Reply():
                    new.append(parse_response(action.data, envelope))
                    if action.shot >= 0:
                        done = self.session.reply_sent(action.shot, self.now_ps)
                        new += self.take(done, envelope)
                case Start():
                    self.starts.append(action)
                case Hold():
                    self.holds.append(action)
                case Release():
                    self.owned.difference_update(action.slots)
                case StampShot():
                    assert action.shot not in self.rows
                    self.rows[action.shot] = action.row
                case StampFrame():
                    self.frames.append(action)
        return new

    def send(self, data: bytes) -> list[Response]:
        slot = slot_of(data)
        self.owned.add(slot)
        self.now_ps += 1000
        args = (memoryview(data), slot, self.now_ps - 10, self.now_ps)
        return self.take(self.session.message(*args))

    def refuse(self, data: bytes) -> list[Response]:
        return self.take(self.session.refused(data[:24], slot_of(data), self.now_ps))

    def whole(self, shot: int, *, blocks: Iterable[int] = range(R)) -> list[Response]:
        return [reply for block in blocks for reply in self.send(enqueue(shot, block))]

    def primary(self, shot: int, prediction: bytes = b"\x05\x01") -> list[Response]:
        result = decoded(self.now_ps, prediction)
        return self.take(self.session.primary_done(shot, result, self.now_ps))

    def fallback(self, shot: int, prediction: bytes = b"\x02\x00") -> list[Response]:
        result = decoded(self.now_ps, prediction)
        return self.take(self.session.fallback_done(shot, result, self.now_ps))

    def until(self, now_ps: int) -> list[Response]:
        self.now_ps = now_ps
        return self.take(self.session.tick(now_ps))


def statuses(replies: list[Response]) -> list[int]:
    return [reply.status for reply in replies]
