"""Loops of the equivalence of labels, compiled by numba. Tables: see ``equivalence``."""

from __future__ import annotations

import numpy as np
from numba import njit

from gpu_decoder.protocol import I64Array, U8Array

_MAX_SPACELIKE = 100
_MAX_TIMELIKE = 8


@njit(cache=True)
def reduce_spacelike(
    rows: U8Array,
    corners: I64Array,
    weights: I64Array,
    canonical: I64Array,
    x_type: bool,
    boundary: bool,
) -> None:
    """Reduce rows of data errors by the stabilizers of their type, in place, to a fixed point."""
    for n in range(rows.shape[0]):
        row = rows[n]
        for _ in range(_MAX_SPACELIKE):
            changed = False
            for i in range(corners.shape[0]):
                c = corners[i]
                if weights[i] == 4:
                    if row[c[0]] + row[c[1]] + row[c[2]] + row[c[3]] >= 3:
                        for k in range(4):
                            row[c[k]] ^= 1
                        changed = True
                elif row[c[0]] + row[c[1]] == 2:
                    row[c[0]] = 0
                    row[c[1]] = 0
                    changed = True
            for i in range(corners.shape[0]):
                c = corners[i]
                if weights[i] == 4:
                    tl, tr, bl, br = row[c[0]], row[c[1]], row[c[2]], row[c[3]]
                    if tl + tr + bl + br != 2:
                        continue
                    left, bottom = tl == 1 and bl == 1, bl == 1 and br == 1
                    diagonal = (tl == 1 and br == 1) if x_type else (tr == 1 and bl == 1)
                    if left or bottom or diagonal:
                        for k in range(4):
                            row[c[k]] ^= 1
                        changed = True
                elif boundary and row[c[0]] + row[c[1]] == 1 and row[canonical[i]] == 0:
                    row[c[0]] ^= 1
                    row[c[1]] ^= 1
                    changed = True
            if not changed:
                break


@njit(cache=True)
def reduce_timelike(
    errors: U8Array, flips: U8Array, events: U8Array, seen_by: I64Array, first: int
) -> None:
    """Move data errors between neighbouring rounds; pairs begin at round ``first``."""
    n_rounds, n_data = errors.shape[1], errors.shape[2]
    accepted = np.zeros(n_data, dtype=np.uint8)
    touched = np.zeros(flips.shape[2], dtype=np.uint8)
    for n in range(errors.shape[0]):
        e, y, s = errors[n], flips[n], events[n]
        for _ in range(_MAX_TIMELIKE):
            changed = False
            for parity in range(2):
                for t in range(parity, n_rounds - 1, 2):
                    if t < first:
                        continue
                    for q in range(n_data):
                        accepted[q] = _accept(e, y, s, seen_by, t, q)
                    touched[:] = 0
                    for q in range(n_data):
                        if accepted[q] == 0:
                            continue
                        free = True
                        for k in range(4):
                            if seen_by[q, k] >= 0 and touched[seen_by[q, k]] == 1:
                                free = False
                        if not free:
                            continue
                        e[t, q] ^= 1
                        e[t + 1, q] ^= 1
                        for k in range(4):
                            if seen_by[q, k] >= 0:
                                y[t, seen_by[q, k]] ^= 1
                                touched[seen_by[q, k]] = 1
                        changed = True
            if not changed:
                break


@njit(cache=True)
def _accept(e: U8Array, y: U8Array, s: U8Array, seen_by: I64Array, t: int, q: int) -> bool:
    """Whether moving qubit q's error between rounds t and t + 1 is better."""
    was_0, was_1 = np.int64(e[t, q]), np.int64(e[t + 1, q])
    now_0, now_1 = 1 - was_0, 1 - was_1
    for k in range(4):
        c = seen_by[q, k]
        if c < 0:
            continue
        was_0 += y[t, c] + s[t, c]
        now_0 += 1 - y[t, c] + s[t, c]
        was_1 += y[t + 1, c] + s[t + 1, c]
        now_1 += y[t + 1, c] + s[t + 1, c]
    before, after = was_0 + was_1, now_0 + now_1
    return bool(after < before or (after == before and max(now_0, now_1) > max(was_0, was_1)))
