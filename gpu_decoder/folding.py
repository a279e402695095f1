"""Periodic detector error models: windows that are equal by translation in time.

stim folds the loop of a long memory into ``repeat N { ... shift_detectors }``. A window that lies
inside the loop looks the same wherever it starts, up to a shift of the detector numbers, so a model
with most of the loop cut out (the *short* model) contains every window that the full one has.
The cut is a whole number of windows long, so that windows of both models start at equal places of
the loop. Nothing of the cut part is ever written out: time and memory do not depend on N.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from gpu_decoder.protocol import I64Array

LARGEST_FLAT: Final = 2_000_000
"""Detectors of the largest model without a usable loop that is written out."""


@dataclass(frozen=True)
class FoldedModel:
    """A detector error model with the middle of its longest loop cut out.

    Attributes:
        dem: the short ``stim.DetectorErrorModel``.
        rounds: int64 [short D], last coordinate of each detector of the short model.
        n_rounds: rounds of the full model.
        n_detectors: D of the full model.
        cut_rounds: rounds that were cut out; 0 where nothing repeats.
        cut_detectors: detectors that were cut out.
        bulk: first round and end of the stretch of the short model that only the loop touches.
        step_rounds, step_detectors: what one step of the window grid inside the loop shifts by.
    """

    dem: Any
    rounds: I64Array
    n_rounds: int
    n_detectors: int
    cut_rounds: int
    cut_detectors: int
    bulk: tuple[int, int]
    step_rounds: int
    step_detectors: int

    def template(self, first_round: int, end_round: int) -> tuple[int, int]:
        """Where rounds ``first_round:end_round`` of the full model lie in the short one.

        Returns:
            First round in the short model, and what to add to its detector numbers.
        """
        low, high = self.bulk
        if not self.cut_rounds or end_round <= high:
            return first_round, 0
        if first_round - self.cut_rounds >= low:
            return first_round - self.cut_rounds, self.cut_detectors
        steps = -(-(end_round - high) // self.step_rounds)
        return first_round - steps * self.step_rounds, steps * self.step_detectors


def fold(dem_text: str, *, commit: int, length: int) -> FoldedModel:
    """Cut the longest loop of a model so that windows of ``length`` rounds find their templates.

    Args:
        dem_text: stim detector error model; the last coordinate of each detector is its round.
        commit: rounds between the starts of two windows.
        length: rounds of a window.

    Raises:
        ValueError: a detector has no round, or the model is very long and nothing in it repeats.
    """
    import stim

    dem = stim.DetectorErrorModel(dem_text)
    at = _longest_loop(dem)
    if at is not None:
        body, count = dem[at].body_copy(), int(dem[at].repeat_count)
        period = _period(body)
        if period is not None:
            step = math.lcm(commit, period[0]) // period[0]
            kept = _smallest(count, step)
            while kept < count:
                folded = _cut(dem, at, kept, period, step, length)
                if folded is not None:
                    return folded
                kept += step * max(1, kept // (2 * step))
    if dem.num_detectors > LARGEST_FLAT:
        raise ValueError(
            f"the model has {dem.num_detectors} detectors and no loop that moves on by whole "
            f"rounds; allowed without one: {LARGEST_FLAT}"
        )
    rounds = _rounds(dem)
    n_rounds = 1 + int(rounds.max(initial=0))
    return FoldedModel(dem, rounds, n_rounds, rounds.size, 0, 0, (0, n_rounds), 1, 0)


def _smallest(count: int, step: int) -> int:
    """Smallest number of iterations >= 2 that differs from ``count`` by whole steps."""
    return count - max(0, (count - 2) // step) * step


def _longest_loop(dem: Any) -> int | None:  # noqa: ANN401 - stim ships no types
    best, at = 1, None
    for i, instruction in enumerate(dem):
        if instruction.type == "repeat" and instruction.repeat_count > best:
            best, at = instruction.repeat_count, i
    return at


def _period(body: Any) -> tuple[int, int] | None:  # noqa: ANN401
    """Rounds and detectors that one iteration moves on by; ``None`` if they are not whole."""
    detectors, _ = _touched(body, 0)
    shift = _detector_shift(body)
    twice = body * 2
    if not detectors or shift < 1 or twice.num_detectors > LARGEST_FLAT:
        return None
    named = twice.get_detector_coordinates()
    moves = {
        named[i + shift][-1] - named[i][-1]
        for i in detectors
        if named.get(i) and named.get(i + shift)
    }
    if len(moves) != 1:
        return None
    move = moves.pop()
    return (int(move), shift) if move >= 1 and move == int(move) else None


def _cut(
    dem: Any,  # noqa: ANN401
    at: int,
    kept: int,
    period: tuple[int, int],
    step: int,
    length: int,
) -> FoldedModel | None:
    """The model with ``kept`` iterations of loop ``at``; ``None`` if they are too few."""
    import stim

    removed = int(dem[at].repeat_count) - kept
    short = stim.DetectorErrorModel()
    before, offset = stim.DetectorErrorModel(), 0
    for i, instruction in enumerate(dem):
        if i == at:
            offset = _detector_shift(before)
            short.append(stim.DemRepeatBlock(kept, instruction.body_copy()))
        else:
            short.append(instruction)
        if i < at:
            before.append(instruction)
    rounds = _rounds(short)
    body = dem[at].body_copy()
    first, _ = _touched(body, offset)
    head, _ = _touched(before, 0)
    after = stim.DetectorErrorModel()
    for instruction in list(dem)[at + 1 :]:
        after.append(instruction)
    tail, _ = _touched(after, offset + kept * period[1])
    n_rounds = 1 + int(rounds.max())
    times = rounds[np.array(sorted(first), dtype=np.int64)]
    from_head = 1 + int(rounds[np.array(sorted(head), dtype=np.int64)].max(initial=-1))
    from_tail = int(rounds[np.array(sorted(tail), dtype=np.int64)].min(initial=n_rounds))
    # All iterations that could touch a round of the stretch must be there.
    low = max(from_head, int(times.max()))
    high = min(from_tail, int(times.min()) + (kept - 1) * period[0] + 1)
    if high - low < length + step * period[0]:
        return None
    return FoldedModel(
        short,
        rounds,
        n_rounds + removed * period[0],
        rounds.size + removed * period[1],
        removed * period[0],
        removed * period[1],
        (low, high),
        step * period[0],
        step * period[1],
    )


def _rounds(dem: Any) -> I64Array:  # noqa: ANN401
    """int64 [D]: last coordinate of every detector."""
    named = dem.get_detector_coordinates()
    out = np.empty(dem.num_detectors, dtype=np.int64)
    for i in range(out.size):
        row = named.get(i)
        if not row or row[-1] != int(row[-1]) or row[-1] < 0:
            raise ValueError(f"detector D{i} has no round (last coordinate {row or 'missing'})")
        out[i] = int(row[-1])
    return out


def _detector_shift(dem: Any) -> int:  # noqa: ANN401
    """How far the instructions move the detector numbers on."""
    shift = 0
    for instruction in dem:
        if instruction.type == "repeat":
            shift += int(instruction.repeat_count) * _detector_shift(instruction.body_copy())
        elif instruction.type == "shift_detectors":
            shift += int(instruction.targets_copy()[0])
    return shift


def _touched(dem: Any, offset: int) -> tuple[set[int], int]:  # noqa: ANN401
    """Detectors that instructions name, in numbers of the whole model, and the offset behind."""
    found: set[int] = set()
    for instruction in dem:
        if instruction.type == "repeat":
            for _ in range(int(instruction.repeat_count)):
                inner, offset = _touched(instruction.body_copy(), offset)
                found |= inner
        elif instruction.type == "shift_detectors":
            offset += int(instruction.targets_copy()[0])
        else:
            found.update(offset + i for i in _detectors_of(instruction))
    return found, offset


def _detectors_of(instruction: Any) -> Iterator[int]:  # noqa: ANN401
    for target in instruction.targets_copy():
        if instruction.type in ("error", "detector") and target.is_relative_detector_id():
            yield int(target.val)
