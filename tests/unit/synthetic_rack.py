"""A made-up rack with known truth: correlated in time, between stages, and with event counts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter

I64 = NDArray[np.int64]


def gauss_markov(n: int, rho: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """float64 [n], standard normal with lag-1 correlation ``rho``."""
    steps = rng.standard_normal(n) * np.sqrt(1 - rho**2)
    steps[0] = rng.standard_normal()
    values: NDArray[np.float64] = lfilter([1.0], [1.0, -rho], steps)
    return values


def two_state(n: int, p_on: float, length: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """bool [n]: a Markov mode that is on with probability ``p_on``, ``length`` rounds at a time."""
    leave, enter = 1 / length, p_on / (1 - p_on) / length
    draws = rng.random(n)
    on = np.zeros(n, dtype=np.bool_)
    for i in range(1, n):
        on[i] = draws[i] >= leave if on[i - 1] else draws[i] < enter
    return on


def rack(n: int, seed: int) -> tuple[I64, I64]:
    """Durations int64 [2, n] (ps) of ``demod`` and ``merge``, and event counts int64 [n].

    demod grows with the events and has correlated jitter; merge shares that jitter and has a slow
    second mode, 40 ns higher.
    """
    rng = np.random.default_rng(seed)
    events = rng.binomial(24, np.where(two_state(n, 0.1, 60, rng), 0.10, 0.03))
    jitter = gauss_markov(n, 0.9, rng)
    slow = two_state(n, 0.05, 20, rng)
    demod = 110_000 + 4_000 * events + np.exp(7.5 + 0.5 * jitter)
    other = 0.7 * jitter + np.sqrt(1 - 0.7**2) * gauss_markov(n, 0.5, rng)
    merge = 60_000 + 40_000 * slow + 2_500 * other
    return np.rint(np.stack([demod, np.maximum(merge, 40_000)])).astype(np.int64), events


def write_stamps(path: Path, durations_ps: I64, events: I64 | None, rounds: int = 8) -> Path:
    """CSV of stamps in ns with three decimals, ``rounds`` rounds per shot, 1.1 us apart."""
    n = durations_ps.shape[1] // rounds * rounds
    head = "shot,round," + ("events," if events is not None else "")
    lines = [head + "t_start_ns,t_demod_ns,t_merge_ns"]
    for i in range(n):
        start = 1_700_000_000_000_000_000_000 + 1_100_000 * i  # ps since 1970: more than 64 bits
        one = start + int(durations_ps[0, i])
        two = one + int(durations_ps[1, i])
        count = f"{events[i]}," if events is not None else ""
        times = ",".join(f"{t // 1000}.{t % 1000:03d}" for t in (start, one, two))
        lines.append(f"{i // rounds},{i % rounds},{count}{times}")
    path.write_text("\n".join(lines) + "\n")
    return path


_BASE = Path(__file__).parents[1] / "data" / "scenario" / "base.yaml"


def with_profile(folder: Path, profile: str, *changes: tuple[str, str]) -> Path:
    """The small test scenario, fault-free, with the rack of ``profile``; ``changes`` come last."""
    text = _BASE.read_text()
    text = text[: text.index("faults:")]
    clocks = text[text.index("    clocks:") : text.index("  links:")]
    for old, new in ((clocks, f"    profile: {profile}\n"), *changes):
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    path = folder / "scenario.yaml"
    path.write_text(text)
    return path
