"""How the rounds of a shot are cut into overlapping windows.

A window covers ``commit + buffer`` rounds and commits the first ``commit`` of them; the next one
starts where its commit region ends. The last window is the first one that reaches the end of the
shot: it commits everything that is left. *Round* here is the last coordinate of a detector, so the
final data readout counts as one more round (a *block* on the wire).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from gpu_decoder.protocol import I64Array, WindowSpec


@dataclass(frozen=True)
class WindowPlan:
    """The windows of one shot.

    Attributes:
        n_rounds: rounds of the shot, the final data readout included (>= 1).
        commit: rounds that a window commits (>= 1).
        buffer: rounds that it looks ahead (>= 0).

    Raises:
        ValueError: a number is out of range.
    """

    n_rounds: int
    commit: int
    buffer: int

    def __post_init__(self) -> None:
        if self.n_rounds < 1 or self.commit < 1 or self.buffer < 0:
            raise ValueError(
                f"n_rounds {self.n_rounds}, commit {self.commit}, buffer {self.buffer}; "
                "allowed: n_rounds >= 1, commit >= 1, buffer >= 0"
            )

    @property
    def length(self) -> int:
        """Rounds of a full window."""
        return self.commit + self.buffer

    @property
    def count(self) -> int:
        """Windows of a shot: the last one is the first that reaches the end."""
        return 1 + max(0, -(-(self.n_rounds - self.length) // self.commit))

    def window(self, k: int) -> WindowSpec:
        """Rounds of window ``k``, 0 <= k < count."""
        first = k * self.commit
        if k == self.count - 1:
            return WindowSpec(first, self.n_rounds, self.n_rounds)
        return WindowSpec(first, first + self.length, first + self.commit)

    @cached_property
    def first_round(self) -> I64Array:
        """int64 [count]: first round of each window."""
        return np.arange(self.count, dtype=np.int64) * self.commit

    @cached_property
    def last_round(self) -> I64Array:
        """int64 [count]: last round of each window, rising strictly."""
        return np.minimum(self.first_round + self.length, self.n_rounds) - 1

    @cached_property
    def committed_by(self) -> I64Array:
        """int64 [n_rounds]: the window that commits each round."""
        rounds = np.arange(self.n_rounds, dtype=np.int64)
        return np.minimum(rounds // self.commit, self.count - 1)

    @cached_property
    def first_needed_by(self) -> I64Array:
        """int64 [n_rounds]: the first window that contains each round."""
        return np.searchsorted(self.last_round, np.arange(self.n_rounds)).astype(np.int64)
