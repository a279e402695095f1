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
LIVE_TOLERANCE_PS = 12_000_000
"""U of the live comparison: medians of about 100 shots on a shared two-core machine."""


def _hops(trace: Path) -> np.ndarray:
    """int64 [9, shots]: durations of all hops of each shot's last block; checks that they add up."""
    with hil.open_trace(trace) as opened:
        rounds = opened.stream("rounds")
    last = rounds["round"] == rounds["round"].max()
    stamps = np.stack([rounds[f"t_{name}_ps"][last] for name in STAMPS])
    hops = np.diff(stamps, axis=0)
    assert np.array_equal(hops.sum(axis=0), rounds["latency_ps"][last])
    return hops


def _run(
    scenarios: Path, out: Path, bind: str, fault: str | None, *overrides: str
) -> np.ndarray:
    faults = (
        [] if fault is None else [f"faults.known={{kind: delay, target: {fault}, value: 20us}}"]
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
    scenarios: Path,
    tmp_path: Path,
    bind: str,
    loopback: tuple[str, str],
    no_orphans: None,
) -> None:
    network = f"bind.profiles.{bind}.network"
    here = (
        f"{network}.rack_address={loopback[0]}",
        f"{network}.node_address={loopback[1]}",
    )
    base = np.median(_run(scenarios, tmp_path / "base", bind, None, *here), axis=1)
    for hop in HOPS:
        late = np.median(_run(scenarios, tmp_path / hop, bind, hop, *here), axis=1)
        want = np.zeros(len(HOPS))
        want[HOPS.index(hop)] = DELAY_PS
        off = late - base - want
        assert (np.abs(off) < LIVE_TOLERANCE_PS).all(), (hop, dict(zip(HOPS, off / 1e6)))
