"""What a metric gives: a value with bounds, never a bare number."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hil.errors import RigError


class NotMeasuredError(RigError):
    """A metric has no data; a verdict on it is RIG ERROR, never PASS."""


@dataclass(frozen=True, slots=True)
class Clusters:
    """How events lie in time.

    Attributes:
        events: number of events m.
        episodes: clusters K of events.
        mean_length: events per episode L, 1 if none.
        longest: events of the longest episode.
        gap: largest distance in shots inside an episode.
        p_value: probability of such closeness if shots were independent.
        dependent: whether independence is refused; then episode and batch bounds count too.
    """

    events: int
    episodes: int
    mean_length: float
    longest: int
    gap: int
    p_value: float
    dependent: bool


@dataclass(frozen=True, slots=True)
class Measured:
    """One measured figure.

    Attributes:
        metric: name as in a scenario's ``expect``.
        stat: ``p50`` ... for latencies, empty otherwise.
        scope: ``clean`` (without warm-up and fault windows), ``all`` or ``warmup``.
        value: point estimate in ``unit``; ``inf`` where the quantile is an unanswered shot.
        lower: lower confidence bound, ``None`` if n is too small for one.
        upper: upper confidence bound, ``None`` if n is too small for one; ``inf`` if it is an
            unanswered shot.
        unit: ``ps``, ``1`` (rate), ``ps/shot`` or ``count``.
        n: samples behind it.
        confidence: of each bound.
        events: events behind a rate or a count, else ``None``.
        method: how the bounds were found, for the reader.
        label: which time or evidence the figure belongs to.
        clusters: episodes behind a rate, else ``None``.
    """

    metric: str
    stat: str
    scope: str
    value: float
    lower: float | None
    upper: float | None
    unit: str
    n: int
    confidence: float
    events: int | None = None
    method: str = ""
    label: str = ""
    clusters: Clusters | None = None

    @property
    def bounded(self) -> bool:
        """Whether both bounds exist (they may be infinite)."""
        return self.lower is not None and self.upper is not None

    @property
    def unanswered(self) -> bool:
        """Whether the figure itself falls on shots that were never answered."""
        return math.isinf(self.value)
