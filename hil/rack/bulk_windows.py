"""Sliding windows in the bulk executor: ring and workers of a streaming decoder, compiled.

Same rules as ``hil.rack.event_windows``, replayed block by block; a property test holds the two
equal. A worker belongs to one shot from its first window to its last.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from gpu_decoder.protocol import Reason
from hil.rack.bulk_ring import prune
from hil.rack.timeline import Path

_PRIMARY, _UNANSWERED = int(Path.PRIMARY), int(Path.UNANSWERED)
_QUEUE_FULL, _LOSS = int(Reason.QUEUE_FULL), int(Reason.TRANSPORT_LOSS)


@njit(cache=True)
def stream(  # type: ignore[no-untyped-def]
    rx, visible, lost, dispatch, service, last_block, slots, scalars, free, times, counts, kinds,
):  # fmt: skip
    """Decode ``n`` shots window by window.

    ``rx``, ``visible``, ``lost`` [n, r]; ``dispatch``, ``service`` [n, w]; ``last_block`` [w].
    ``scalars`` = last_ready, unused, unused, n_held, used slots, next release, as in
    ``hil.rack.bulk``; ``free`` [workers].

    Returns:
        start, end int64 [n, w] (0 where a window was not decoded), path, reason, dropped, depth.
    """
    n, r = rx.shape
    w = last_block.size
    start = np.zeros((n, w), dtype=np.int64)
    end = np.zeros((n, w), dtype=np.int64)
    path = np.full(n, _PRIMARY, dtype=np.uint8)
    reason = np.zeros(n, dtype=np.uint8)
    dropped = np.zeros((n, r), dtype=np.bool_)
    depth = np.zeros(n, dtype=np.uint16)
    last_ready, _, _, n_held, used, release_next = scalars
    for i in range(n):
        held = 0  # slots of blocks whose window is not complete yet
        refused = False
        missing = False
        given_up = np.int64(-1)
        worker = -1
        before = np.int64(0)
        k = 0
        for b in range(r):
            release = np.int64(-1)
            freed = 0
            window = False
            if lost[i, b]:
                dropped[i, b] = True
                missing = True
            else:
                if release_next <= rx[i, b]:
                    n_held, used, release_next = prune(times, counts, kinds, n_held, rx[i, b])
                if used + held >= slots:
                    dropped[i, b] = True
                    refused = True
                elif given_up >= 0:
                    release = max(visible[i, b], given_up)
                    freed = 1
                else:
                    held += 1
            if b == last_block[k] and given_up < 0:
                if refused or missing:
                    given_up = max(visible[i, b], before)
                    release = given_up
                    if worker >= 0:
                        free[worker] = given_up
                else:
                    ready = max(visible[i, b] + dispatch[i, k], last_ready)
                    last_ready = ready
                    if k == 0:
                        worker = int(np.argmin(free))
                        before = free[worker]
                    if k == w - 1:
                        waiting = 0
                        for e in range(n_held):
                            if times[e] > ready and kinds[e]:
                                waiting += 1
                        depth[i] = waiting
                    release = max(ready, before)
                    window = True
                    start[i, k] = release
                    before = release + service[i, k]
                    end[i, k] = before
                    if k == w - 1:
                        free[worker] = before
                freed = held
                held = 0
            if freed > 0:
                times[n_held] = release
                counts[n_held] = freed
                kinds[n_held] = window
                n_held += 1
                used += freed
                release_next = min(release_next, release)
            if b == last_block[k] and k < w - 1:
                k += 1
        if given_up >= 0:
            path[i] = _UNANSWERED
            reason[i] = _QUEUE_FULL if refused else _LOSS
    scalars[0] = last_ready
    scalars[3:] = (n_held, used, release_next)
    return start, end, path, reason, dropped, depth
