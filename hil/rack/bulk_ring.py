"""Slots of the ring in the bulk executor: who holds how many, until when."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.extending import register_jitable

NEVER = np.int64(2**62)


@register_jitable  # callable from compiled and from interpreted kernels
def prune(times: Any, counts: Any, kinds: Any, n: Any, now: Any) -> Any:  # noqa: ANN401
    """Drop entries whose time has come; returns their number left, slots held, next time."""
    kept = 0
    used = 0
    nxt = NEVER
    for k in range(n):
        if times[k] > now:
            times[kept] = times[k]
            counts[kept] = counts[k]
            kinds[kept] = kinds[k]
            used += counts[k]
            nxt = min(nxt, times[k])
            kept += 1
    return kept, used, nxt
