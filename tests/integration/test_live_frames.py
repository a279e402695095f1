"""Live runs over whole Ethernet frames: the same syndromes and answers as the virtual run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import hil
from hil.run.runner import RunOptions, run_scenario
from hil.trace.validate import validate_trace
from hil.verdict.judge import Verdict

pytestmark = [pytest.mark.live, pytest.mark.usefixtures("no_orphans")]

SHOTS = 500


@pytest.mark.parametrize("transport", ["uc", pytest.param("rc", marks=pytest.mark.slow)])
def test_answers_over_frames_are_those_of_in_process(
    scenarios: Path, tmp_path: Path, transport: str
) -> None:
    """A pair of UNIX sockets between two processes; every ICRC is checked."""
    text = (scenarios / "surface_d5.yaml").read_text().replace("rocev2-uc", f"rocev2-{transport}")
    path = tmp_path / "frames.yaml"
    path.write_text(text)
    shots = f"run.shots={SHOTS}"
    frames = "bind.profiles.sil.network.backend=frames"
    live = run_scenario(path, RunOptions(bind="sil", out=tmp_path / "a", overrides=[shots, frames]))
    model = run_scenario(path, RunOptions(bind="mil", out=tmp_path / "b", overrides=[shots]))
    assert live.verdict not in {Verdict.FAIL, Verdict.RIG_ERROR}
    counts = dict(live.document.facts.detectors)
    assert counts["rack.link.tx"] == SHOTS * 7
    assert counts["rack.link.rx_ok"] == SHOTS * 7  # every message is answered
    assert counts["node.link.drop_icrc"] == counts["node.link.drop_ip"] == 0
    with hil.open_trace(live.trace) as a, hil.open_trace(model.trace) as b:
        for column in ("shot", "detectors_b8", "obs_true_b8", "obs_pred_b8", "fallback"):
            assert np.array_equal(a.stream("shots")[column], b.stream("shots")[column]), column
    assert validate_trace(live.trace).ok
