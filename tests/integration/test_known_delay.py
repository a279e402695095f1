"""The test of the joints: a delay injected at one hop shows on that hop and on no other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import hil
from hil.run.runner import RunOptions, run_scenario

HOPS = (
    "acquire", "packetize", "uplink", "deliver", "queue", "decode", "reply", "downlink", "apply"
)  # fmt: skip
STAMPS = (
    "intended", "syndrome", "tx", "rx", "visible", "decode_start", "decode_end", "reply_tx",
    "reply_rx", "applied",
)  # fmt: skip
DELAY_PS = 20_000_000
SIGMAS = 6
FALSE_ALARM_RATE = 2e-9  # of one comparison, two-sided, if the scatter were normal


@dataclass(frozen=True)
class Live:
    """A live run: bursts of ``burst`` shots with a delay alternate with bursts without."""

    bind: str
    burst: int
    cycles: int
    round_period: str
    shot_period: str

    @property
    def period(self) -> int:
        return 2 * len(HOPS) * self.burst


LIVE = (
    Live("sil", 12, 25, "500us", "2ms"),
    Live("sil100", 8, 8, "20us", "100us"),  # 100 times slower on the wall: 10 ms a shot
)


def _hops(trace: Path) -> np.ndarray:
    """int64 [9, shots]: all hops of each shot's last block; checks that they add up."""
    with hil.open_trace(trace) as opened:
        rounds = opened.stream("rounds")
    last = rounds["round"] == rounds["round"].max()
    stamps = np.stack([rounds[f"t_{name}_ps"][last] for name in STAMPS])
    hops = np.diff(stamps, axis=0)
    assert np.array_equal(hops.sum(axis=0), rounds["latency_ps"][last])
    return hops


def _run(scenarios: Path, out: Path, bind: str, fault: str | None, *overrides: str) -> np.ndarray:
    faults = (
        []
        if fault is None
        else [f"faults={{known: {{kind: delay, target: {fault}, value: 20us}}}}"]
    )
    result = run_scenario(
        scenarios / "known_delay.yaml",
        RunOptions(bind=bind, out=out, overrides=[*overrides, *faults]),
    )
    return _hops(result.trace)


@pytest.mark.parametrize("executor", ["bulk", "events"])
@pytest.mark.parametrize("hop", HOPS)
def test_virtual_to_the_picosecond(
    scenarios: Path, tmp_path: Path, hop: str, executor: str
) -> None:
    chosen = f"bind.profiles.mil.rack.executor={executor}"
    base = _run(scenarios, tmp_path / "base", "mil", None, chosen)
    late = _run(scenarios, tmp_path / "late", "mil", hop, chosen)
    want = np.zeros_like(base)
    want[HOPS.index(hop)] = DELAY_PS
    assert np.array_equal(late - base, want)


def _live(scenarios: Path, out: Path, case: Live, loopback: tuple[str, str]) -> np.ndarray:
    """float64 [cycles, 9, 9]: change of hop j (ps) while hop k was delayed, cycle by cycle.

    Every hop is delayed in turn for a few shots, with undelayed shots before and after. A pure
    delay moves the floor of a hop, and the floor is what a shared machine disturbs least: the
    change is the burst's second smallest value minus the mean of its two neighbours'.
    """
    network = f"bind.profiles.{case.bind}.network"
    faults = ", ".join(
        f"{hop}: {{kind: delay, target: {hop}, value: 20us, "
        f"at: {{shot: {case.burst * (2 * k + 1)}}}, "
        f"burst: {{shots: {case.burst}, every: {case.period}}}}}"
        for k, hop in enumerate(HOPS)
    )
    overrides = [
        f"run.shots={case.period * case.cycles + case.burst}",
        f"system.qpu.round_period={case.round_period}",
        f"system.qpu.shot_period={case.shot_period}",
        f"{network}.rack_address={loopback[0]}",
        f"{network}.node_address={loopback[1]}",
        f"faults={{{faults}}}",
    ]
    result = run_scenario(
        scenarios / "known_delay.yaml", RunOptions(bind=case.bind, out=out, overrides=overrides)
    )
    bursts = _hops(result.trace).reshape(len(HOPS), -1, case.burst)
    floors = np.sort(bursts, axis=2)[:, :, 1]
    delayed, before, after = floors[:, 1::2], floors[:, 0:-1:2], floors[:, 2::2]
    change = delayed - (before + after) / 2
    return change.reshape(len(HOPS), case.cycles, len(HOPS)).transpose(1, 2, 0)


@pytest.mark.live
@pytest.mark.parametrize("case", LIVE, ids=lambda case: case.bind)
def test_live(
    scenarios: Path, tmp_path: Path, case: Live, loopback: tuple[str, str], no_orphans: None
) -> None:
    """20 us +- U on the delayed hop, 0 +- U on all others, U from the scatter of the cycles.

    U must be below half the delay, or delayed and undelayed could be confused: a noisy machine
    measures again and pools, up to three times.
    """
    cycles = np.empty((0, len(HOPS), len(HOPS)))
    for attempt in range(3):
        new = _live(scenarios, tmp_path / str(attempt), case, loopback)
        cycles = np.concatenate([cycles, new])
        centre = np.median(cycles, axis=0)
        scatter = 1.4826 * np.median(np.abs(cycles - centre), axis=0)
        u_ps = SIGMAS * 1.2533 * scatter / np.sqrt(len(cycles)) + 1_000_000
        if u_ps.max() < DELAY_PS / 2:
            break
    assert u_ps.max() < DELAY_PS / 2, f"too noisy to tell: U = {u_ps.max() / 1e6:.1f} us"
    off = np.abs(centre - DELAY_PS * np.eye(len(HOPS)))
    k, j = np.unravel_index((off - u_ps).argmax(), off.shape)
    assert (off <= u_ps).all(), (
        f"{HOPS[j]} moved by {centre[k, j] / 1e6:.1f} us when {HOPS[k]} was delayed by 20 us; "
        f"U = {u_ps[k, j] / 1e6:.1f} us"
    )
