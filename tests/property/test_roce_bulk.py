"""Compiled batches against the code for single packets: same bytes, same fate of every frame."""

from __future__ import annotations

import zlib

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hil.link.compiled import Batches, crc32_batch, seal_batch
from hil.link.endpoint import Completion
from hil.link.receiver import Receiver
from hil.link.slots import BASE_VA, Slots
from hil.wire.icrc import IcrcPath
from hil.wire.roce import PSN_MASK, Target
from hil.wire.roce_batch import send_rows, write_imm_rows

QP, RKEY, STRIDE, SLOTS = 0x41, 0x1F01, 128, 16
CALL = 23
PATHS = [IcrcPath("127.0.0.2", "127.0.0.1", 4791, 4791, ident=k) for k in range(CALL)]
U1 = npt.NDArray[np.uint8]


def states(width: int) -> npt.NDArray[np.uint32]:
    return np.array([path.state(width) for path in PATHS], np.uint32)


def frames(n: int, length: int, slots: npt.NDArray[np.int64], psn: int) -> U1:
    payloads = np.random.default_rng(n * 1000 + length).integers(0, 256, (n, length), np.uint8)
    rows = write_imm_rows(payloads, slots, 0, Target(QP, RKEY, BASE_VA, STRIDE), None)
    seal_batch(rows, slots, psn, states(rows.shape[1]))
    return rows


@given(st.integers(0, 3000), st.integers(1, 200), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_crc_of_rows_is_that_of_zlib(seed: int, length: int, state: int) -> None:
    rows = np.random.default_rng(seed).integers(0, 256, (5, length), np.uint8)
    found = crc32_batch(rows, np.full(5, state, np.uint32))
    assert found.tolist() == [zlib.crc32(row.tobytes(), state) for row in rows]


@pytest.mark.parametrize("length", [0, 1, 64, 65, 127])
def test_a_sealed_batch_has_the_bytes_of_single_packets(length: int) -> None:
    payloads = np.random.default_rng(length).integers(0, 256, (20, length), np.uint8)
    slots = np.arange(20, dtype=np.int64) * 7 % SLOTS
    target, psn = Target(QP, RKEY, BASE_VA, STRIDE), PSN_MASK - 4
    one = np.array([PATHS[0].state(32 + length + -length % 4 + 4)] * 20, np.uint32)
    rows = write_imm_rows(payloads, slots, 0, target, None)
    seal_batch(rows, slots, psn, one)
    assert np.array_equal(rows, write_imm_rows(payloads, slots, psn, target, PATHS[0]))
    sends = send_rows(payloads, 0, QP, None)
    one[:] = PATHS[0].state(sends.shape[1])
    seal_batch(sends, None, psn, one)
    assert np.array_equal(sends, send_rows(payloads, psn, QP, PATHS[0]))


def memory() -> Slots:
    made = Slots(RKEY)
    made.register(SLOTS, STRIDE)
    return made


def batches(rows: U1, at: int = 0) -> Batches:
    """The rows from ``at`` on as receive calls of 23 leave them, with gaps between the calls."""
    n, width = rows.shape
    starts = range(at - at % CALL, n, CALL)
    flat = np.zeros((n + 3 * len(starts)) * width, np.uint8)
    offsets = np.array([(start + 3 * i) * width for i, start in enumerate(starts)])
    counts = np.array([min(CALL, n - start) for start in starts])
    for start, offset, count in zip(starts, offsets, counts, strict=True):
        flat[offset : offset + count * width] = rows[start : start + count].reshape(-1)
    return Batches(flat, offsets, counts, at % CALL, width, states(width))


def by_packet(receiver: Receiver, rows: U1) -> list[Completion]:
    done = []
    for k, row in enumerate(rows):
        one = receiver.accept(memoryview(bytearray(row.tobytes())), PATHS[k % CALL], 7)
        done += [one] if one is not None else []
    return done


def by_batch(receiver: Receiver, rows: U1) -> tuple[list[tuple[int, int]], int]:
    """Slots and PSNs that completed without being busy, and how many frames went fast."""
    done: list[tuple[int, int]] = []
    fast = k = 0
    while k < len(rows):
        psn = receiver.audit.expected or 0
        slots = receiver.accept_batches(batches(rows, k))
        done += [(int(slot), psn + i & PSN_MASK) for i, slot in enumerate(slots)]
        fast, k = fast + len(slots), k + len(slots)
        if k < len(rows):
            one = receiver.accept(memoryview(rows[k]), PATHS[k % CALL], 7)  # type: ignore[arg-type]
            done += [(one.slot, one.psn)] if one is not None and not one.busy else []
            k += 1
    return done, fast


@given(
    st.integers(1, 40),
    st.sampled_from([0, 1, 24, 61, 64, 128]),
    st.lists(st.tuples(st.integers(0, 39), st.integers(0, 200), st.integers(1, 255)), max_size=4),
    st.lists(st.integers(0, 39), max_size=4),
    st.sampled_from([0, 77, PSN_MASK - 7]),
    st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_a_batch_has_the_fate_of_its_packets(
    n: int,
    length: int,
    spoiled: list[tuple[int, int, int]],
    lost: list[int],
    psn: int,
    in_turn: bool,
) -> None:
    """Slots repeat after 16 frames (busy), bytes are spoiled with and without a new ICRC."""
    rng = np.random.default_rng(n)
    slots = np.arange(n) % SLOTS if in_turn else rng.integers(0, SLOTS, n)
    rows = frames(n, length, slots.astype(np.int64), psn)
    for k, (at, place, flip) in enumerate(spoiled):
        row = rows[at % n]
        row[place % len(row)] ^= flip
        if k % 2:
            sealed = bytearray(row.tobytes())
            PATHS[at % n % CALL].seal(sealed)
            row[:] = np.frombuffer(sealed, np.uint8)
    for at in lost:  # another frame stands in its place: a gap or a repetition
        rows[at % n] = rows[n - 1]
    ours, theirs = memory(), memory()
    single, batch = Receiver(QP, psn, ours), Receiver(QP, psn, theirs)
    one = [(c.slot, c.psn) for c in by_packet(single, rows) if not c.busy]
    many, _ = by_batch(batch, rows)
    assert many == one
    assert batch.counts == single.counts
    assert batch.audit.counts() == single.audit.counts()
    assert batch.audit.expected == single.audit.expected
    assert bytes(theirs.memory) == bytes(ours.memory)
    assert theirs.owned == ours.owned


def test_plain_frames_go_fast_and_the_first_other_one_ends_it() -> None:
    slots = np.arange(SLOTS, dtype=np.int64)
    slots_of_receiver = memory()
    receiver = Receiver(QP, 5, slots_of_receiver)
    rows = frames(SLOTS, 64, slots, 5)
    _, fast = by_batch(receiver, rows)
    assert fast == SLOTS
    slots_of_receiver.release_many(slots)
    again = frames(SLOTS, 64, slots, 5 + SLOTS)
    again[7, 40] ^= 1
    assert len(receiver.accept_batches(batches(again))) == 7
    wrong_identification = frames(SLOTS, 64, slots, 4 + SLOTS)[8:]
    assert len(receiver.accept_batches(batches(wrong_identification))) == 0
