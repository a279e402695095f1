"""The sequence audit against a plain model, its two paths against each other, and wraps."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hil.errors import UsageError
from hil.link.sequence import Arrival, SequenceAudit

WIDTHS = [6, 12, 16, 20, 24, 32, 64]
PRESETS = [(bits, min(64, 1 << (bits - 2))) for bits in WIDTHS]


def model(positions: list[int], memory: int) -> tuple[dict[str, int], list[int]]:
    """Counts and codes from unwrapped positions, with sets instead of modular arithmetic."""
    seen: set[int] = set()
    missing: set[int] = set()
    expected = gaps = duplicate = reordered = stale = 0
    codes = []
    for position in positions:
        if position >= expected:
            missing |= set(range(expected, position))
            gaps += position > expected
            codes.append(Arrival.GAP if position > expected else Arrival.IN_ORDER)
            expected = position + 1
            seen.add(position)
        elif position < 0 or position < expected - memory:
            stale += 1
            codes.append(Arrival.STALE)
        elif position in missing:
            missing.remove(position)
            seen.add(position)
            reordered += 1
            codes.append(Arrival.REORDERED)
        else:
            duplicate += 1
            codes.append(Arrival.DUPLICATE)
    counts = {
        "received": len(positions),
        "gaps": gaps,
        "lost": len(missing),
        "duplicate": duplicate,
        "reordered": reordered,
        "stale": stale,
    }
    return counts, codes


@st.composite
def walks(draw: st.DrawFn) -> tuple[int, int, int, list[int]]:
    """Width, memory, start and unwrapped positions that stay within half of the range."""
    bits = draw(st.sampled_from(WIDTHS))
    memory = draw(st.integers(1, min(40, 1 << (bits - 2))))
    reach = min(60, (1 << (bits - 1)) - 1)
    start = draw(st.integers(0, (1 << bits) - 1) | st.just((1 << bits) - 3))
    expected, positions = 0, []
    for distance in draw(st.lists(st.just(0) | st.integers(-reach, reach), max_size=60)):
        positions.append(expected + distance)
        expected = max(expected, positions[-1] + 1)
    return bits, memory, start, positions


@settings(max_examples=400, deadline=None)
@given(walks(), st.lists(st.integers(0, 60), max_size=3), st.booleans())
def test_both_paths_agree_with_the_model(
    walk: tuple[int, int, int, list[int]], cuts: list[int], scalar_first: bool
) -> None:
    bits, memory, start, positions = walk
    counts, codes = model(positions, memory)
    numbers = [(start + p) % (1 << bits) for p in positions]
    scalar, vector = (SequenceAudit(bits, start, memory) for _ in range(2))
    assert [scalar.observe(n) for n in numbers] == codes
    got: list[int] = []
    edges = sorted({0, *cuts, len(numbers)})
    for i, (a, b) in enumerate(itertools.pairwise(edges)):
        if scalar_first and i == 0:  # the two paths may be mixed on one audit
            got += [vector.observe(n) for n in numbers[a:b]]
        else:
            got += vector.update(np.array(numbers[a:b], np.uint64)).tolist()
    assert got == codes[: edges[-1]]
    assert scalar.counts() == counts
    if edges[-1] == len(numbers):
        assert vector.counts() == counts
        assert vector.expected == scalar.expected


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from([4, 6, 24, 64]),
    st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=30),
    st.none() | st.integers(0, 15),
)
def test_both_paths_agree_on_noise(bits: int, numbers: list[int], start: int | None) -> None:
    """Arbitrary jumps, also beyond half of the range, where only the scalar rule is defined."""
    scalar, vector = (SequenceAudit(bits, start, 4) for _ in range(2))
    codes = [scalar.observe(n) for n in numbers]
    assert vector.update(np.array(numbers, np.uint64)).tolist() == codes
    assert (vector.counts(), vector.expected) == (scalar.counts(), scalar.expected)
    more = [int(scalar.expected or 0) + d for d in (0, 3, 1, 1, 2, 4)]
    codes = [scalar.observe(n) for n in more]
    assert vector.update(np.array([n % 2**bits for n in more], np.uint64)).tolist() == codes


@pytest.mark.parametrize(("bits", "memory"), PRESETS)
@pytest.mark.parametrize("vectorised", [False, True])
def test_a_clean_run_across_the_wrap_raises_no_alarm(
    bits: int, memory: int, vectorised: bool
) -> None:
    top = 1 << bits
    start = top - 11
    numbers = np.array([(start + i) % top for i in range(1000)], np.uint64)
    audit = SequenceAudit(bits, start, memory)
    codes = audit.update(numbers) if vectorised else [audit.observe(int(n)) for n in numbers]
    assert not np.any(codes)
    assert audit.counts() == {
        **dict.fromkeys(("gaps", "lost", "duplicate", "reordered", "stale"), 0),
        "received": 1000,
    }


@pytest.mark.parametrize(("bits", "memory"), PRESETS)
@pytest.mark.parametrize("vectorised", [False, True])
@pytest.mark.parametrize("gone", [10, 11])  # the last number before the wrap, and number 0
def test_one_loss_at_the_wrap_is_one_gap_of_one(
    bits: int, memory: int, vectorised: bool, gone: int
) -> None:
    top = 1 << bits
    start = top - 11
    numbers = np.array([(start + i) % top for i in range(1000) if i != gone], np.uint64)
    audit = SequenceAudit(bits, start, memory)
    codes = audit.update(numbers) if vectorised else [audit.observe(int(n)) for n in numbers]
    assert np.flatnonzero(codes).tolist() == [gone]
    assert (audit.gaps, audit.lost) == (1, 1)
    assert audit.duplicate + audit.reordered + audit.stale == 0


def test_a_late_number_fills_its_gap_once() -> None:
    audit = SequenceAudit(24, 0)
    assert [audit.observe(n) for n in (0, 3, 1, 1, 2, 4)] == [0, 1, 2, 3, 2, 0]
    assert (audit.lost, audit.reordered, audit.duplicate, audit.gaps) == (0, 2, 1, 1)


def test_a_number_older_than_the_memory_is_stale_and_stays_lost() -> None:
    audit = SequenceAudit(24, 0, memory=8)
    audit.update(np.array([0, *range(2, 20)]))
    assert audit.observe(1) == Arrival.STALE
    assert audit.observe(2**24 - 5) == Arrival.STALE  # before the start of the stream
    assert (audit.lost, audit.stale) == (1, 2)


def test_an_open_start_takes_the_first_number_as_given() -> None:
    audit = SequenceAudit(24, None)
    assert audit.expected is None
    assert audit.update(np.array([77, 78, 76])).tolist() == [0, 0, Arrival.STALE]
    assert audit.lost == 0


def test_close_counts_what_is_missing_at_the_end() -> None:
    audit = SequenceAudit(24, 0)
    audit.update(np.arange(5))
    assert audit.close(5) == 0
    assert audit.close(8) == 3
    assert audit.close(7) == 0
    assert (audit.lost, audit.gaps, audit.expected) == (3, 1, 8)
    assert audit.observe(6) == Arrival.REORDERED
    assert audit.lost == 2


def test_empty_updates_change_nothing() -> None:
    audit = SequenceAudit(24, None)
    assert audit.update(np.array([], np.int64)).tolist() == []
    assert (audit.expected, audit.received) == (None, 0)


@pytest.mark.parametrize(("bits", "memory"), [(1, 1), (65, 8), (24, 0), (6, 17)])
def test_impossible_audits_are_refused(bits: int, memory: int) -> None:
    with pytest.raises(UsageError, match="sequence audit"):
        SequenceAudit(bits, 0, memory)
