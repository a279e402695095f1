"""The test of the joints: a delay injected at one hop shows on that hop and on no other."""

from __future__ import annotations

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
LIVE_TOLERANCE_PS = 8_000_000
"""U of the live comparison: medians of 60 shots each on a shared two-core machine, below half of
the injected delay, so that delayed and undelayed hops cannot be confused."""
SEGMENT = 60


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


@pytest.mark.parametrize("bind", ["sil", "sil100"])
def test_live(
    scenarios: Path, tmp_path: Path, bind: str, loopback: tuple[str, str], no_orphans: None
) -> None:
    """One run, hop after hop delayed from its segment on: each segment differs in one hop."""
    network = f"bind.profiles.{bind}.network"
    overrides = [
        f"run.shots={SEGMENT * (len(HOPS) + 1)}",
        f"{network}.rack_address={loopback[0]}",
        f"{network}.node_address={loopback[1]}",
    ]
    if bind == "sil100":  # 100 times slower on the wall: 2 ms between rounds, 10 ms between shots
        overrides += ["system.qpu.round_period=20us", "system.qpu.shot_period=100us"]
    faults = ", ".join(
        f"{hop}: {{kind: delay, target: {hop}, value: 20us, at: {{shot: {SEGMENT * (k + 1)}}}}}"
        for k, hop in enumerate(HOPS)
    )
    result = run_scenario(
        scenarios / "known_delay.yaml",
        RunOptions(bind=bind, out=tmp_path / "run", overrides=[*overrides, f"faults={{{faults}}}"]),
    )
    hops = _hops(result.trace).reshape(len(HOPS), len(HOPS) + 1, SEGMENT)
    step = np.diff(np.median(hops, axis=2), axis=1)
    off = step - DELAY_PS * np.eye(len(HOPS))
    worst = np.unravel_index(np.abs(off).argmax(), off.shape)
    assert np.abs(off).max() < LIVE_TOLERANCE_PS, (
        f"{HOPS[worst[0]]} moved by {step[worst] / 1e6:.1f} us when {HOPS[worst[1]]} was delayed"
    )
