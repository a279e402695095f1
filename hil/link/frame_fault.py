"""What can happen to one frame, and what of it the receiving end gets to see."""

from __future__ import annotations

from enum import IntEnum
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

I64: TypeAlias = npt.NDArray[np.int64]
U8: TypeAlias = npt.NDArray[np.uint8]


class FrameFault(IntEnum):
    """What happens to one frame; the meaning of its ``amount`` in brackets."""

    NONE = 0
    DROP = 1
    """It never leaves."""
    DUPLICATE = 2
    """It leaves, and once more later [frames after which the copy goes, 0 = at once]."""
    REORDER = 3
    """Later frames overtake it [how many, >= 1]."""
    FLIP = 4
    """A bit is inverted on the wire, the ICRC is left [bit of the datagram, BTH .. ICRC]."""
    CORRUPT = 5
    """A bit is inverted before the ICRC is made, so no transport check sees it [bit of the
    payload behind BTH, RETH and immediate]."""
    RESIZE = 6
    """The payload gets another length, under a right ICRC [bytes added, negative = cut]."""
    WRONG_QP = 7
    """Another destination QP, under a right ICRC [mask that is XORed, 24 bit]."""
    WRONG_RKEY = 8
    """Another memory key, under a right ICRC [mask that is XORed, 32 bit]; only on writes."""
    WRONG_PSN = 9
    """Another PSN, under a right ICRC [number that is added, modulo 2^24]."""
    HOLD = 10
    """The port lets nothing out: it and all behind it leave later [ps]."""


GONE: Final = (
    *(FrameFault.DROP, FrameFault.FLIP, FrameFault.CORRUPT, FrameFault.RESIZE),
    *(FrameFault.WRONG_QP, FrameFault.WRONG_RKEY),
)
"""Faults after which the receiving application does not get the message."""


def arrivals(
    frames: I64, kinds: U8, amounts: I64, gone: tuple[FrameFault, ...] = GONE
) -> tuple[I64, I64]:
    """Which frames reach the receiver's sequence check, in order.

    Args:
        frames: i8[n], ascending numbers.
        kinds: u1[n], codes of :class:`FrameFault`.
        amounts: i8[n].
        gone: faults after which a frame does not get there; default: the application's check.

    Returns:
        i8[m] numbers in order of arrival, copies included, and i8[m] when each arrives: with the
        frame of that number or, if odd, right behind it (2 x number, plus 1 if behind).
    """
    through = ~np.isin(kinds, gone)
    when = 2 * frames[through]
    late = kinds[through] == FrameFault.REORDER
    when[late] += 2 * amounts[through][late] + 1
    copied = kinds == FrameFault.DUPLICATE
    numbers = np.concatenate((frames[through], frames[copied]))
    when = np.concatenate((when, 2 * (frames + amounts)[copied] + 1))
    order = np.lexsort((numbers, when))
    return numbers[order], when[order]
