"""Live runs whose link carries something else: raw measurements, no envelope, plain UDP."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import hil
from gpu_decoder.turns import build_turns
from hil.device.families import build_models
from hil.device.sampler import StimSampler
from hil.node.exchange import Exchange
from hil.run.live import LiveRun
from hil.run.runner import RunOptions, run_scenario
from hil.scenario.load import load_scenario
from hil.trace.validate import validate_trace
from hil.verdict.judge import Verdict

pytestmark = [pytest.mark.live, pytest.mark.usefixtures("no_orphans")]

SHOTS = 150
JUDGED = "expect={lost: {metric: packets.lost, equals: 0}}"
UP, NETWORK = "system.links.up", "bind.profiles.sil.network"
NVIDIA = (
    f"{UP}.payload=measurements",
    f"{UP}.envelope=nvidia",
    "system.qpu.circuit.basis=alternate",
)
PLAIN_UDP = (
    f"{UP}.payload=measurements",
    f"{NETWORK}.backend=cudaq_udp",
    f"{UP}.udp_port=14791",
    "system.links.down.udp_port=14791",
)


def wanted(path: Path, variant: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Detection events of the run, sampled as such, and the decoder's answers to them."""
    scenario = load_scenario(path, overrides=(JUDGED, *variant)).scenario
    models = build_models(scenario.system.qpu)
    batch = next(StimSampler(models, scenario.run.seed).batches(SHOTS))
    decoder = build_turns("pymatching_corr", [model.dem_text for model in models])
    return batch.detectors_b8, decoder.decode_batch(batch.detectors_b8, batch.shots).predictions_b8


@pytest.mark.parametrize(
    "variant", [NVIDIA, pytest.param(PLAIN_UDP, marks=pytest.mark.slow)], ids=["nvidia", "udp"]
)
def test_answers_to_raw_measurements_equal_those_to_detection_events(
    scenarios: Path,
    tmp_path: Path,
    loopback: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
    variant: tuple[str, ...],
) -> None:
    at_node: list[np.ndarray] = []
    audit = LiveRun._audit

    def noting(self: LiveRun, got: Exchange) -> None:
        at_node.append(got.n_events)
        audit(self, got)

    monkeypatch.setattr(LiveRun, "_audit", noting)
    options = (
        *(JUDGED, f"run.shots={SHOTS}", "run.warmup.shots=10"),
        "run.record.streams=[shots, rounds, decodes, syndromes, packets]",
        *(f"{NETWORK}.rack_address={loopback[0]}", f"{NETWORK}.node_address={loopback[1]}"),
        *variant,
    )
    path = scenarios / "surface_d5.yaml"
    live = run_scenario(path, RunOptions(bind="sil", out=tmp_path / "sil", overrides=options))
    assert live.verdict is Verdict.PASS
    with hil.open_trace(live.trace) as trace:
        shots, packets = trace.stream("shots"), trace.stream("packets")
    events, answers = wanted(path, variant)
    assert np.array_equal(shots["detectors_b8"], events)
    assert np.array_equal(shots["obs_pred_b8"], answers)
    assert answers.any()
    assert np.array_equal(np.concatenate(at_node), np.bitwise_count(events).sum(axis=1))
    up = packets["dir"] == 0
    if variant is NVIDIA:
        assert set(packets["opcode"][up]) == {0x2B}
        assert set(packets["len"][up]) == {64 + 36}, "24 + 32 + 4 bytes and no envelope"
    else:
        assert (set(packets["opcode"]), set(packets["psn"])) == ({255}, {2**32 - 1})
        assert set(packets["len"]) == {128}, "always a whole slot, both ways"
    assert validate_trace(live.trace).ok
