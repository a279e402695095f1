"""Hostile frames through receiver, intake and session: nothing moves that must not move.

Every frame is compared with an independent oracle (``tools/fuzz.py``): cause of its drop, memory,
canaries, state of the session. 100,000 mutations and 5,000 examples here, 1e6 mutations in
``make soak``.
"""

from __future__ import annotations

import struct

import fuzz
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from hil.link import receiver
from hil.link.sequence import SequenceAudit
from hil.link.slots import BASE_VA, Slots
from hil.node.intake import Intake
from hil.node.session import Session
from hil.wire import rpc

SEED = 20_261_122
LINK = {f"link.{name}" for name in ("rx_ok", "rx_busy", "drop_length", "drop_icrc", "drop_opcode",
        "drop_pkey", "drop_qp", "drop_rkey", "drop_bounds", "drop_imm")}  # fmt: skip
MESSAGE = {"admitted", "repeated", "bad_magic", "bad_length", "bad_function", "bad_arguments",
           "bad_envelope_crc", "bad_decoder_id", "bad_request", "bad_slot"}  # fmt: skip


def assert_everything_was_hit(tally: fuzz.Tally) -> None:
    assert set(tally.fates) >= LINK | MESSAGE
    assert abs(tally.sealed - tally.frames / 2) < 5 * np.sqrt(tally.frames / 4)
    assert tally.intact_shots > 0.3 * tally.client_frames / fuzz.PER_SHOT


def test_100_thousand_mutations() -> None:
    tally = fuzz.campaign(100_000, SEED)
    assert tally.frames >= 100_000
    assert_everything_was_hit(tally)


TRAFFIC = fuzz.Traffic.of(2, np.random.default_rng(SEED), fuzz.Door().stride)
NOISE = np.random.default_rng(SEED).bytes(4096 + 256)


@settings(
    max_examples=5000,
    deadline=None,
    database=None,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)
@given(st.integers(0, len(TRAFFIC.frames)), st.integers(0, 2**63 - 1), st.booleans())
def test_a_mutation_among_valid_frames(sent: int, word: int, seal: bool) -> None:
    watch = fuzz.Watch()
    for frame in TRAFFIC.frames[:sent]:
        watch.feed(frame)
    kind, base = fuzz.KINDS[word % 7], TRAFFIC.frames[word // 7 % len(TRAFFIC.frames)]
    at = word // 56 % 4096
    watch.feed(fuzz.mutate(base, kind, word // 56, NOISE[at : at + 256], seal=seal))
    for frame in TRAFFIC.frames[sent:]:
        watch.feed(frame)
        watch.answer()
    watch.check()


def test_ignored_bits_are_judged_by_the_oracle_not_excused() -> None:
    """The reserved byte of the BTH is outside the ICRC: that frame is valid, its copy a repeat."""
    watch = fuzz.Watch()
    frame = bytearray(TRAFFIC.frames[0])
    frame[4] ^= 0xFF
    assert watch.feed(bytes(frame)) == "admitted"
    assert watch.feed(TRAFFIC.frames[0]) in ("repeated", "busy")
    watch.check()


# -- broken peers: each must be found --------------------------------------------------------------


def _without_bounds(self, va, length):
    return divmod(va - self.base_va, self.stride)[0], 0


def _imm_as_wanted(datagram, form):
    slot = (int.from_bytes(datagram[12:20], "big") - BASE_VA) // 128
    return (int.from_bytes(datagram[9:12], "big") & 0xFFFFF) << 12 | slot


def _header_before_crc(data, payload_bytes):
    *fields, _crc = struct.unpack_from("<IIII", data, 24 + payload_bytes - 16)
    return rpc.Envelope(*fields)


def _refused_frames_count_as_traffic(self, data, slot, t_rx_ps, now_ps, right=Session.message):
    self._last_frame_ps = now_ps
    return right(self, data, slot, t_rx_ps, now_ps)


def _observe_before_slot(self, data, slot, right=Intake.admit):
    found = right(self, data, slot)
    if self.count["bad_slot"]:
        SequenceAudit.observe(self.audit, (self.audit.expected or 0) + 1)
    return found


def _reply_to_all(self, data, error):
    return self.reply_to(1, 1, 2)


BROKEN = {
    "a reply to a damaged message": (Intake, "_refuse_unparsed", _reply_to_all),
    "bounds check removed": (Slots, "locate", _without_bounds),
    "immediate not compared": (receiver, "_immediate", _imm_as_wanted),
    "end-to-end CRC not checked": (rpc, "_open", _header_before_crc),
    "refused frames keep a gap open": (Session, "message", _refused_frames_count_as_traffic),
    "counter moved by a frame in a foreign slot": (Intake, "admit", _observe_before_slot),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_node_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(*BROKEN[name])
    with pytest.raises(fuzz.Violation):
        fuzz.campaign(60_000, SEED)


def test_a_write_outside_registered_memory_is_found() -> None:
    watch = fuzz.Watch()
    watch.feed(TRAFFIC.frames[0])
    watch.door.region[fuzz.CANARY - 1] ^= 1
    with pytest.raises(fuzz.Violation, match="canary"):
        watch.check()
