"""A scenario whose rack is our frames endpoint and whose node receives through rxe and pyverbs.

The rack, the recorder, the node and its decoders run here; the node's queue pair is that of the
guest's verbs device, joined to the rack by the guest's Ethernet link.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from link_to_guest import HOST, HOST_MAC, MTU_BYTES, PATIENT, Joint

import hil
from hil.link.frame_wires import UnixFrames
from hil.link.frames_endpoint import FramesEndpoint
from hil.node import client, process
from hil.node.config import NodeConfig
from hil.node.process import NodeProcess
from hil.run import live_config
from hil.run.live_config import node_config
from hil.run.runner import RunOptions, run_scenario
from hil.timebase import PS_PER_S
from hil.trace.validate import validate_trace
from hil.verdict.judge import Verdict

pytestmark = [
    *(pytest.mark.slow, pytest.mark.live, pytest.mark.soak),
    pytest.mark.needs("rxe_vm"),
]

HERE = Path(__file__).parent
SHOTS = 1000
ROUNDS = 2
MESSAGES_PER_SHOT = ROUNDS + 2  # the rounds, the data readout and a request
PACE = 3  # and a period of 20 ms: an emulated guest takes about 10 ms a message
WAIT_PS = 600 * PS_PER_S  # nothing is given up: an emulated guest on a busy machine has no speed


@pytest.mark.timeout(900)
def test_answers_through_rxe_are_those_of_in_process(
    joint: Joint, scenarios: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends: list[FramesEndpoint] = []
    channel = joint.guest.channel.fileno()

    def open_endpoint(config: NodeConfig, side: str, tap: object, end: object) -> FramesEndpoint:
        ends.append(
            FramesEndpoint(
                *(UnixFrames(joint.cable()), HOST_MAC, HOST),
                psn_start=config.psn_start_down,
                mtu_bytes=MTU_BYTES,
                transport=config.transport,
                attributes=PATIENT,
            )
        )
        return ends[0]

    def node(launch: object, *, timeout_s: float, pass_fds: tuple[int, ...]) -> NodeProcess:
        return NodeProcess(launch, timeout_s=timeout_s, pass_fds=(*pass_fds, channel))

    def patient(*args: object) -> NodeConfig:
        wait = {"answer_timeout_ps": WAIT_PS, "gap_timeout_ps": WAIT_PS}
        return node_config(*args).model_copy(update=wait)

    monkeypatch.setattr(live_config, "node_config", patient)
    monkeypatch.setattr(client, "open_endpoint", open_endpoint)
    monkeypatch.setattr(client, "NodeProcess", node)
    command = (sys.executable, str(HERE / "guest_node.py"), str(channel))
    monkeypatch.setattr(process, "COMMAND", command)
    text = (scenarios / "surface_d5.yaml").read_text().replace("rocev2-uc", "rocev2-rc")
    path = tmp_path / "rxe.yaml"
    path.write_text(text)
    what = (
        f"run.shots={SHOTS}",
        f"system.qpu.circuit.rounds={ROUNDS}",
        "system.qpu.shot_period=20ms",
        "system.links.up.mtu=1024B",
        "system.links.down.mtu=1024B",
        "system.decoder.ring.slots=1024",
        "run.wall=15min",
    )
    paced = f"bind.profiles.sil.rack.pace={PACE}"
    options = RunOptions(bind="sil", out=tmp_path / "sil", overrides=[*what, paced])
    live = run_scenario(path, options)
    model = run_scenario(path, RunOptions(bind="mil", out=tmp_path / "mil", overrides=what))
    assert live.verdict is model.verdict, live.document  # so few shots may leave the LER open
    assert live.verdict in {Verdict.PASS, Verdict.INCONCLUSIVE}
    with hil.open_trace(live.trace) as a, hil.open_trace(model.trace) as b:
        left, right = a.stream("shots"), b.stream("shots")
        assert left["shot"].size == SHOTS
        columns = ("detectors_b8", "obs_true_b8", "obs_pred_b8", "failed", "fallback")
        for column in ("shot", *columns):
            assert np.array_equal(left[column], right[column]), column
    assert validate_trace(live.trace).ok
    (rack,) = ends
    counters = rack.counters()
    assert counters["tx"] == SHOTS * MESSAGES_PER_SHOT
    assert counters["rx_ok"] == SHOTS * MESSAGES_PER_SHOT  # every message is answered
    assert counters["drop_icrc"] == 0
    assert rack.error == ""
