"""Detector coordinates of a circuit, loops included, as one array.

``stim.Circuit.get_detector_coordinates`` makes a dictionary of lists: about 300 bytes per detector.
Here the body of a ``REPEAT`` is walked once and shifted as an array, so that time depends on the
length of the text and memory is that of the result.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]


def detector_coordinates(circuit: Any) -> tuple[NDArray[np.floating[Any]], NDArray[np.uint8]]:  # noqa: ANN401
    """Coordinates of all detectors of a ``stim.Circuit``.

    Returns:
        float32 [D, k], float64 where that would round; each row right-aligned (its last coordinate
        in the last column, zeros in front), and uint8 [D], number of coordinates of each detector
        (0: it has none).
    """
    n, width = int(circuit.num_detectors), max(1, _width(circuit))
    table = np.zeros((n, width), dtype=np.float64)
    lengths = np.zeros(n, dtype=np.uint8)
    _walk(circuit, table, lengths, np.zeros(width))
    used = int(lengths.max(initial=1))
    table = table[:, : max(1, used)]
    for length in np.unique(lengths).tolist():
        if 0 < length < table.shape[1]:
            rows = lengths == length
            table[rows] = np.roll(table[rows], table.shape[1] - length, axis=1)
    short = table.astype(np.float32)
    return (short if np.array_equal(short, table) else table), lengths


def _width(circuit: Any) -> int:  # noqa: ANN401
    """Largest number of coordinates of a detector or shift."""
    widest = 0
    for instruction in circuit:
        if instruction.name == "REPEAT":
            widest = max(widest, _width(instruction.body_copy()))
        elif instruction.name in ("DETECTOR", "SHIFT_COORDS"):
            widest = max(widest, len(instruction.gate_args_copy()))
    return widest


def _walk(circuit: Any, table: F64, lengths: NDArray[np.uint8], shift: F64) -> int:  # noqa: ANN401
    """Fill the first rows with the detectors of ``circuit``; returns how many.

    ``table`` is left-aligned here; ``shift`` [k] is what SHIFT_COORDS has added up so far, moved on
    in place.
    """
    at = 0
    for instruction in circuit:
        if instruction.name == "REPEAT":
            at += _repeat(instruction, table[at:], lengths[at:], shift)
        elif instruction.name == "SHIFT_COORDS":
            args = instruction.gate_args_copy()
            shift[: len(args)] += args
        elif instruction.name == "DETECTOR":
            args = instruction.gate_args_copy()
            table[at, : len(args)] = shift[: len(args)] + args
            lengths[at] = len(args)
            at += 1
    return at


def _repeat(instruction: Any, table: F64, lengths: NDArray[np.uint8], shift: F64) -> int:  # noqa: ANN401
    body, count = instruction.body_copy(), int(instruction.repeat_count)
    before = shift.copy()
    m = _walk(body, table, lengths, shift)
    step = shift - before
    shift[:] = before + count * step
    if not m:
        return 0
    counts = lengths[:m]
    lengths[: m * count] = np.tile(counts, count)
    present = np.arange(table.shape[1]) < counts[:, None]  # a shift moves stated coordinates only
    first = table[:m].copy()
    moves = np.where(present, step, 0.0)
    whole = table[: m * count].reshape(count, m, -1)
    whole[:] = np.arange(count, dtype=np.float64)[:, None, None] * moves
    whole += first
    return m * count
