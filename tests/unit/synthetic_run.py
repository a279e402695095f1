"""Batches of shots made by hand: consistent columns for metrics, judge and report tests."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hil.timebase import MISSING_PS
from hil.verdict.group import HOPS

I64 = NDArray[np.int64]
SHOT_PERIOD_PS = 100_000_000
ROUND_PERIOD_PS = 1_100_000
DEADLINE_PS = 60_000_000
ROUNDS = 5
STAMPS = tuple(dict.fromkeys(name for pair in HOPS.values() for name in pair))
HOP_PS = dict(
    zip(
        HOPS,
        (170_000, 128_000, 900_000, 100_000, 0, 9_000_000, 50_000, 900_000, 140_000),
        strict=True,
    )
)
LATENCY_PS = sum(HOP_PS.values())
OK, LATE, TIMEOUT, DROPPED, CONCEALED, VOID = range(6)


@dataclass
class Shots:
    """``n`` shots from ``first`` on; change hops and fates, then take ``columns``."""

    n: int
    first: int = 0
    warmup: int = 0
    hops: dict[str, I64] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.hops = {name: np.full(self.n, ps, np.int64) for name, ps in HOP_PS.items()}
        self.failed = np.zeros(self.n, np.bool_)
        self.fallback = np.zeros(self.n, np.uint8)
        self.status = np.zeros(self.n, np.uint8)
        self.dq = np.zeros(self.n, np.uint32)
        self.dq[np.arange(self.first, self.first + self.n) < self.warmup] = 1

    def unanswered(self, where: object, reason: int = 1, status: int = TIMEOUT) -> None:
        """Declare shots unanswered: nothing behind the visible stamp happened."""
        self.status[where] = status  # type: ignore[index]
        self.fallback[where] = reason  # type: ignore[index]

    @property
    def lost(self) -> NDArray[np.bool_]:
        return np.isin(self.status, (TIMEOUT, DROPPED, VOID))

    def columns(self) -> tuple[dict[str, NDArray[np.generic]], dict[str, I64]]:
        """Columns of /shots and the stamps of the last blocks."""
        number = np.arange(self.first, self.first + self.n, dtype=np.int64)
        stamp = number * SHOT_PERIOD_PS + (ROUNDS + 1) * ROUND_PERIOD_PS
        windows = {STAMPS[0]: stamp.copy()}
        for name, duration in zip(STAMPS[1:], self.hops.values(), strict=True):
            stamp = stamp + duration
            windows[name] = stamp.copy()
        latency = windows["t_applied_ps"] - windows["t_intended_ps"]
        for name in STAMPS[5:]:
            windows[name][self.lost] = MISSING_PS
        latency[self.lost] = MISSING_PS
        slack = np.where(self.lost, MISSING_PS, DEADLINE_PS - latency)
        shots: dict[str, NDArray[np.generic]] = {
            "shot": number.astype(np.uint32),
            "dq_mask": self.dq,
            "failed": self.failed,
            "latency_ps": latency,
            "slack_ps": slack,
            "fallback": self.fallback,
            "status": self.status,
            "n_rounds": np.full(self.n, ROUNDS, np.uint16),
        }
        return shots, windows
