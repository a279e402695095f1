"""Two decoders on the same shots: tests and bounds from the discordant counts.

``worse`` are the shots that only the new decoder gets wrong, ``better`` those that only the old one
does; the difference is always new - old = (worse - better) / shots. Formulas and check values:
``docs/verdict.md``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from scipy import special

from hil.errors import UsageError
from hil.verdict.stats import Bounds, binomial_cdf


def _check(worse: int, better: int, shots: int) -> None:
    if min(worse, better) < 0 or shots < 1 or worse + better > shots:
        raise UsageError(
            "no such counts",
            got=f"{worse} worse and {better} better of {shots} shots",
            allowed="worse + better <= shots, shots >= 1",
        )


def mcnemar_exact(worse: int, better: int) -> float:
    """Two-sided exact p-value of equal error rates: a fair coin of ``worse + better`` throws."""
    throws = worse + better
    return min(1.0, 2.0 * binomial_cdf(min(worse, better), throws, 0.5)) if throws else 1.0


def score(worse: int, better: int, shots: int, difference: float) -> float:
    """Tango's score statistic of the hypothesis new - old = ``difference``.

    Standard normal under it; above 0 where the data lie above it (Tango, Statistics in Medicine 17,
    1998, 891-908).
    """
    _check(worse, better, shots)
    n, x, b, c = shots, difference, worse, better
    distance = b - c - n * x
    if distance == 0.0:
        return 0.0
    middle = (2 * n - b + c) * x - b - c
    root = math.sqrt(max(0.0, middle * middle + 8 * n * c * x * (1 - x)))
    q = (root - middle) / (4 * n)
    variance = n * (2 * q + x * (1 - x))
    return distance / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, distance)


def tango(worse: int, better: int, shots: int, confidence: float) -> Bounds:
    """One-sided bounds on new - old, each at ``confidence``: roots of `score` = +-z."""
    _check(worse, better, shots)
    if not 0.5 < confidence < 1.0:
        raise UsageError("confidence out of range", got=repr(confidence), allowed="0.5 < C < 1")
    z = float(special.ndtri(confidence))
    middle = (worse - better) / shots

    def root(target: float, outer: float) -> float:
        inner = middle
        for _ in range(200):
            half = (inner + outer) / 2
            if half in (inner, outer):
                break
            if abs(score(worse, better, shots, half)) < target:
                inner = half
            else:
                outer = half
        return (inner + outer) / 2

    return Bounds(root(z, -1.0), root(z, 1.0))


def not_inferior_p(worse: int, better: int, shots: int, margin: float) -> float:
    """p-value of "new - old >= ``margin``": small where the new decoder is not inferior.

    Below 1 - C exactly where the upper bound of `tango` at confidence C is below the margin.
    """
    return float(special.ndtr(score(worse, better, shots, margin)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given (Holm, Scand. J. Statist. 6, 1979)."""
    count, largest = len(p_values), 0.0
    adjusted = [0.0] * count
    for rank, i in enumerate(sorted(range(count), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (count - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted
