"""A live run whose sender is made late on purpose: its wall time is not judged."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from hil.node.client import RackClient
from hil.run.runner import RunOptions, run_scenario

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.live
@pytest.mark.slow
@pytest.mark.usefixtures("no_orphans")
def test_a_sender_forced_late_makes_wall_verdicts_inconclusive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loopback: tuple[str, str]
) -> None:
    emit = RackClient._emit

    def sometimes_late(self: RackClient, outgoing: object, shot: int, block: int) -> None:
        if shot % 10 == 0 and block == 0:
            time.sleep(8e-3)
        emit(self, outgoing, shot, block)  # type: ignore[arg-type]

    monkeypatch.setattr(RackClient, "_emit", sometimes_late)
    tail = "{metric: latency.end_to_end, stat: p50, max: 10s, confidence: 0.95}"
    result = run_scenario(
        ROOT / "scenarios" / "surface_d5.yaml",
        RunOptions(
            bind="sil",
            out=tmp_path / "run",
            overrides=[
                f"bind.profiles.sil.network.rack_address={loopback[0]}",
                f"bind.profiles.sil.network.node_address={loopback[1]}",
                "bind.profiles.sil.rack.pace=1", "system.qpu.shot_period=4ms",
                "system.decoder.deadline=20ms", "run.shots=200", "run.warmup.shots=0",
                f"expect={{tail: {tail}, lost: {{metric: packets.lost_undetected, equals: 0}}}}",
            ],
        ),
    )  # fmt: skip
    judged = {row.id: (row.verdict, row.reason) for row in result.document.expectations}
    verdict, reason = judged["tail"]
    assert verdict == "INCONCLUSIVE"
    assert "the sender did not hold the cadence" in reason
    assert "frames left more than 2.000 ms late" in reason
    assert judged["lost"][0] == "PASS"
    assert result.exit_code == 4
    figures = dict(result.document.facts.detectors)
    assert figures["sender.late"] >= 20
    assert figures["sender.lateness_max_ns"] >= 5_000_000
