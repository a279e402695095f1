"""Does a fit reproduce rounds that it has not seen? Held-out comparison with its sampling noise.

The held-out rounds are the last ones in time, one contiguous stretch. Their own event counts drive
the model. Compared are the end-to-end duration (sum of all stages) of a round and of a window of
``WINDOW`` consecutive rounds: a queue behind the rack sees sums, and an independent draw gets
exactly these wrong. Noise is three standard errors from a block bootstrap (blocks longer than the
correlation) of both parts, of a quantile at least what the number of episodes above it allows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hil import seeds
from hil.rack.fit.capture import Capture
from hil.rack.fit.model import independent_total_ps, replayed_total_ps
from hil.rack.timeline import I64
from hil.scenario.recording import Recording

F64 = NDArray[np.float64]

WINDOW: Final = 32
"""Consecutive rounds whose durations are summed."""
REPLICAS: Final = 16
"""Replays of the held-out stretch, begun at evenly spaced places of the recording."""
MIN_BLOCKS: Final = 20
"""Fewest independent stretches in the held-out part."""
_RESAMPLES: Final = 200
_SIGMAS: Final = 3.0
_AUTOCORRELATION_TOLERANCE: Final = 0.15
_KS_TOLERANCE: Final = 0.05
_MOST_NOISE: Final = 10.0 / 3.0
"""In tolerances: beyond this an agreement says nothing."""


class State(StrEnum):
    """What the held-out rounds say about one statistic, or about a fit."""

    REPRODUCED = "reproduced"
    NOT_REPRODUCED = "not reproduced"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True, slots=True)
class Statistic:
    """One comparison.

    Attributes:
        name: what is compared.
        unit: ``ps`` (then error, tolerance and noise are relative), or empty.
        held_out, model: the two values.
        error: model against held-out: relative for times, else the difference.
        tolerance: largest error of a good fit.
        noise: three standard errors of ``error``.
        state: verdict on it.
    """

    name: str
    unit: str
    held_out: float
    model: float
    error: float
    tolerance: float
    noise: float

    @property
    def state(self) -> State:
        """Reproduced: inside the tolerance, and the noise small enough for that to mean much."""
        if abs(self.error) > self.tolerance:
            beyond = abs(self.error) > self.noise
            return State.NOT_REPRODUCED if beyond else State.INCONCLUSIVE
        quiet = self.noise <= _MOST_NOISE * self.tolerance
        return State.REPRODUCED if quiet else State.INCONCLUSIVE


@dataclass(frozen=True, slots=True)
class Check:
    """Outcome of the comparison.

    Attributes:
        n_fit, n_held_out: rounds of the two parts.
        block: length of a bootstrap block in rounds.
        tolerance: largest relative error of a quantile that was asked for.
        statistics: comparisons of the fit.
        independent: the same of an independent draw from the same durations.
        levels: float64 [q], quantile levels of the picture.
        curves_ps: float64 [3, q] quantiles: held out, fit, independent.
        window_curves_ps: the same of windows.
    """

    n_fit: int
    n_held_out: int
    block: int
    tolerance: float
    statistics: tuple[Statistic, ...]
    independent: tuple[Statistic, ...]
    levels: F64
    curves_ps: F64
    window_curves_ps: F64

    @property
    def state(self) -> State:
        """Worst state: one statistic that is not reproduced refuses the fit."""
        return worst(self.statistics)

    @property
    def rounds_needed(self) -> int:
        """Rough count of rounds at which the noise of every statistic is its tolerance."""
        factors = [
            (entry.noise / entry.tolerance) ** 2
            for entry in self.statistics
            if entry.state is State.INCONCLUSIVE and math.isfinite(entry.noise)
        ]
        factor = max([1.0, MIN_BLOCKS * self.block / self.n_held_out, *factors])
        return math.ceil((self.n_fit + self.n_held_out) * factor / 1_000) * 1_000


def worst(statistics: tuple[Statistic, ...]) -> State:
    """Worst state of several statistics."""
    states = {entry.state for entry in statistics}
    for state in (State.NOT_REPRODUCED, State.INCONCLUSIVE):
        if state in states:
            return state
    return State.REPRODUCED


def check_fit(recording: Recording, held_out: Capture, tolerance: float = 0.03) -> Check:
    """Compare a recording with later rounds of the same rack.

    Args:
        recording: fitted on earlier rounds.
        held_out: later rounds, at least as many as the judged quantile needs.
        tolerance: largest relative error of a quantile.
    """
    n = held_out.n_rounds
    events = np.zeros(n, dtype=np.int64) if held_out.events is None else held_out.events
    truth = held_out.durations_ps.sum(axis=0)
    step = recording.rounds_per_shot or 1
    starts = [i * recording.n_rounds // REPLICAS // step * step for i in range(REPLICAS)]
    fit = np.stack([replayed_total_ps(recording, events, start) for start in starts])
    rng = seeds.generator(0, "rack", "fit", "independent")
    loose = np.stack([independent_total_ps(recording, n, rng) for _ in starts])
    seen = replayed_total_ps(recording, recording.events_from[recording.own], 0)
    block = _block(truth)
    noise = _noise_of_error(truth, seen, block)
    levels = _levels(n)
    return Check(
        recording.n_rounds,
        n,
        block,
        tolerance,
        _compare(truth, fit, tolerance, noise),
        _compare(truth, loose, tolerance, noise),
        levels,
        np.stack([np.quantile(a, levels) for a in (truth, fit, loose)]),
        np.stack([np.quantile(windows(a), levels) for a in (truth, fit, loose)]),
    )


def windows(total: I64) -> I64:
    """Sums over ``WINDOW`` consecutive rounds, int64 [..., n - WINDOW + 1]."""
    sums = np.cumsum(total, axis=-1)
    zero = np.zeros((*sums.shape[:-1], 1), dtype=np.int64)
    padded = np.concatenate([zero, sums], axis=-1)
    out: I64 = padded[..., WINDOW:] - padded[..., :-WINDOW]
    return out


_TIMES: Final[dict[str, tuple[bool, float]]] = {
    "p50": (False, 0.5),
    "p99": (False, 0.99),
    "p99.9": (False, 0.999),
    f"p50 of {WINDOW} rounds": (True, 0.5),
    f"p99 of {WINDOW} rounds": (True, 0.99),
}
"""Judged quantiles: of windows or of rounds, and the level."""


def _quantiles(total: I64, windowed: I64) -> dict[str, float]:
    return {
        name: float(np.quantile(windowed if of_windows else total, q))
        for name, (of_windows, q) in _TIMES.items()
    }


def _compare(
    truth: I64, model: I64, tolerance: float, noise: dict[str, float]
) -> tuple[Statistic, ...]:
    """Statistics of [n] held-out totals against [replicas, n] of the model."""
    want, have = _quantiles(truth, windows(truth)), _quantiles(model, windows(model))
    out = [
        Statistic(name, "ps", want[name], have[name], have[name] / max(want[name], 1.0) - 1.0,
                  tolerance, noise[name])
        for name in _TIMES
    ]  # fmt: skip
    distance = ks_distance(truth, model.ravel())
    out.append(Statistic("KS distance", "", 0.0, distance, distance, _KS_TOLERANCE, noise["KS"]))
    ours, theirs = lag_1(truth), float(np.mean([lag_1(row) for row in model]))
    out.append(
        Statistic("lag-1 correlation", "", ours, theirs, theirs - ours,
                  _AUTOCORRELATION_TOLERANCE, noise["lag"])
    )  # fmt: skip
    return tuple(out)


def _noise_of_error(truth: I64, seen: I64, block: int) -> dict[str, float]:
    """Noise of each error: that of the held-out part and that of the fitted one.

    A short held-out part that happens to hold few episodes looks calmer than it is: its noise is
    at least that of the fitted part, scaled by the root of the lengths.
    """
    ours, theirs = _noise(truth, block), _noise(seen, block)
    scale = math.sqrt(seen.size / truth.size)
    return {
        name: math.hypot(max(value, scale * theirs[name]), theirs[name])
        for name, value in ours.items()
    }


def _noise(truth: I64, block: int) -> dict[str, float]:
    """Three standard errors of each statistic of some rounds, by block bootstrap."""
    rng = seeds.generator(0, "rack", "fit", "bootstrap")
    sums, n = windows(truth), truth.size
    if n < MIN_BLOCKS * block:  # too few stretches for a bootstrap
        return dict.fromkeys((*_TIMES, "KS", "lag"), math.inf)
    of_rounds, of_windows = _Ranked.of(truth), _Ranked.of(sums)
    want = _quantiles(truth, sums)
    found: dict[str, list[float]] = {name: [] for name in (*_TIMES, "KS", "lag")}
    for _ in range(_RESAMPLES):
        starts = rng.integers(0, sums.size - block + 1, size=n // block)
        rows = (starts[:, None] + np.arange(block)).ravel()
        one, many = of_rounds.counts(rows), of_windows.counts(rows)
        for name, (windowed, q) in _TIMES.items():
            value = of_windows.quantile(many, q) if windowed else of_rounds.quantile(one, q)
            found[name].append(value / max(want[name], 1.0))
        found["KS"].append(of_rounds.distance(one))
        found["lag"].append(lag_1(truth[rows]))
    noise = {name: _SIGMAS * float(np.std(values)) for name, values in found.items()}
    noise["KS"] += float(np.mean(found["KS"]))
    for name, (windowed, q) in _TIMES.items():
        if q > 0.9:
            reach = _episode_noise(sums if windowed else truth, q)
            noise[name] = max(noise[name], reach / max(want[name], 1.0))
    return noise


@dataclass(frozen=True, slots=True)
class _Ranked:
    """Values by rank, so that a resample needs no sorting.

    Attributes:
        levels: distinct values, increasing.
        place: index of each value in ``levels``.
        share: empirical distribution function at ``levels``.
    """

    levels: I64
    place: I64
    share: F64

    @classmethod
    def of(cls, values: I64) -> _Ranked:
        levels, place, counts = np.unique(values, return_inverse=True, return_counts=True)
        return cls(levels, place, np.cumsum(counts) / values.size)

    def counts(self, rows: I64) -> I64:
        """Cumulative counts at ``levels`` of the values in ``rows``."""
        return np.cumsum(np.bincount(self.place[rows], minlength=self.levels.size))

    def quantile(self, counts: I64, q: float) -> float:
        """Smallest value with at least the share ``q`` at or below it."""
        at = int(np.searchsorted(counts, q * counts[-1]))
        return float(self.levels[at])

    def distance(self, counts: I64) -> float:
        """KS distance of a resample from the values themselves."""
        return float(np.abs(counts / counts[-1] - self.share).max())


def _episode_noise(values: I64, q: float) -> float:
    """Reach of a quantile in ps when the number of values above it varies by three sigma.

    The ``m`` values above come in episodes (gaps up to ``WINDOW``) of mean length ``c``; their
    number has variance ``m c``. A bootstrap cannot see beyond the few episodes that it has.
    """
    n = values.size
    middle = float(np.quantile(values, q))
    above = np.flatnonzero(values > middle)
    if not above.size:
        return 0.0
    episodes = 1 + int((np.diff(above) > WINDOW).sum())
    swing = _SIGMAS * math.sqrt(above.size * above.size / episodes) / n
    low = float(np.quantile(values, max(0.0, q - swing)))
    high = float(np.quantile(values, min(1.0, q + swing)))
    return max(middle - low, high - middle)


def _block(total: I64) -> int:
    """Ten correlation times of rounds, at least three windows."""
    values = total - total.mean()
    power = np.abs(np.fft.rfft(values, 2 * values.size)) ** 2
    correlation = np.fft.irfft(power)[: values.size]
    if correlation[0] <= 0:
        return 3 * WINDOW
    correlation = correlation / correlation[0]
    below = np.flatnonzero(correlation < 0.05)
    end = int(below[0]) if below.size else values.size
    time = 1.0 + 2.0 * float(correlation[1:end].sum())
    return max(3 * WINDOW, math.ceil(10 * time))


def lag_1(total: I64) -> float:
    """Autocorrelation at lag 1; 0 for constant values."""
    values = total - total.mean()
    power = float((values * values).sum())
    return float((values[1:] * values[:-1]).sum()) / power if power > 0 else 0.0


def ks_distance(first: I64, second: I64) -> float:
    """Largest distance between two empirical distribution functions."""
    a, b = np.sort(first), np.sort(second)
    both = np.concatenate([a, b])
    distance = (
        np.searchsorted(a, both, "right") / a.size - np.searchsorted(b, both, "right") / b.size
    )
    return float(np.abs(distance).max())


def _levels(n: int) -> F64:
    """Quantile levels of the picture: even in the logarithm of what lies above."""
    return 1.0 - np.geomspace(0.99, 5.0 / n, 80)
