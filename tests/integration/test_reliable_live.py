"""Live runs over a reliable connection: the same answers as over UC, also where frames get lost."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from test_node_live import config, expected, experiment, plans_of, run

import hil
from hil.link.endpoint import Endpoint
from hil.link.faults import FaultPlan, Faulty
from hil.node.client import NodeLostError, RackClient
from hil.node.shots import Answerer
from hil.run.runner import RunOptions, run_scenario
from hil.timebase import PS_PER_US
from hil.verdict.judge import Verdict
from hil.wire.roce import Opcode

pytestmark = [pytest.mark.live, pytest.mark.usefixtures("no_orphans")]

RC = (
    "system.links.up.profile=rocev2-rc-write-imm",
    "system.links.down.profile=rocev2-rc-send",
)


def test_rc_answers_as_the_model_does_and_so_as_uc(
    scenarios: Path, tmp_path: Path, loopback: tuple[str, str]
) -> None:
    """That UC answers as the model does is shown in ``test_live_run``."""
    network = "bind.profiles.sil100.network"
    common = ("run.shots=150", "system.qpu.round_period=10us", "system.qpu.shot_period=40us", *RC)
    here = (f"{network}.rack_address={loopback[0]}", f"{network}.node_address={loopback[1]}")
    path = scenarios / "known_delay.yaml"
    live = run_scenario(path, RunOptions("sil100", tmp_path / "rc", overrides=[*common, *here]))
    model = run_scenario(path, RunOptions("mil", tmp_path / "mil", overrides=common))
    assert live.verdict is model.verdict is Verdict.PASS
    with hil.open_trace(live.trace) as a, hil.open_trace(model.trace) as b:
        left, right = a.stream("shots"), b.stream("shots")
        for column in ("detectors_b8", "obs_true_b8", "obs_pred_b8", "failed", "fallback"):
            np.testing.assert_array_equal(left[column], right[column])


def test_frames_that_get_lost_are_repeated_and_every_shot_is_answered() -> None:
    """The same faults cost shots on UC (``test_node_live``); here the session sees nothing."""
    shots, per_shot = 240, len(experiment()[1]) + 1
    faults = FaultPlan.seeded(
        5, shots * per_shot, drop=10, duplicate=10, reorder=10, flip=4, max_delay=7
    )
    made = config(transport="rc")
    with RackClient(made, wrap=lambda inner: Faulty(inner, faults)) as rack:
        found = run(rack, plans_of(shots, 2, 700 * PS_PER_US))
        node = rack.close()
        rack_side = rack.counters()
    assert (found.path == Answerer.PRIMARY).all()
    np.testing.assert_array_equal(found.prediction_b8, expected("pymatching_corr")[:shots])
    assert not found.lost.any()
    troubles = ("gaps", "lost", "duplicate", "reordered", "stale", "link.psn_lost")
    assert {name: node[name] for name in troubles} == dict.fromkeys(troubles, 0)
    assert (node["received"], node["link.rx_ok"]) == (shots * per_shot, shots * per_shot)
    assert node["link.drop_icrc"] + node["link.drop_qp"] > 0
    assert rack_side["link.tx"] == shots * per_shot
    assert rack_side["link.retransmit"] >= 14  # what was dropped or flipped, and what followed it
    assert node["link.rx_duplicate"] > 0


def test_a_connection_in_error_ends_the_stream_and_says_why() -> None:
    """One write with a wrong memory key: the node refuses it for good, nothing hangs."""

    def spoil(inner: Endpoint) -> Endpoint:
        seen = itertools.count()

        def stage(datagram: bytes) -> list[bytes]:
            if datagram[0] != Opcode.RC_WRITE_ONLY_IMM or next(seen) != 200:
                return [datagram]
            wrong = bytearray(datagram)
            wrong[20] ^= 1
            inner.seal(wrong)
            return [bytes(wrong)]

        inner.intercept(stage)
        return inner

    with (
        RackClient(config(transport="rc"), wrap=spoil) as rack,
        pytest.raises(NodeLostError, match="NAK 0x62") as caught,
    ):
        run(rack, plans_of(240, 2, 700 * PS_PER_US))
    partial = caught.value.partial
    assert partial is not None
    answered = partial.path == Answerer.PRIMARY
    assert 0 < answered.sum() < 240
    truth = expected("pymatching_corr")[partial.first_shot :][: partial.n_shots]
    np.testing.assert_array_equal(partial.prediction_b8[answered], truth[answered])
