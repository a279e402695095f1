"""SIGKILL of every process of a run, at one random moment each; at 20 each in ``make soak``."""

from __future__ import annotations

from pathlib import Path

import crash
import pytest

pytestmark = [pytest.mark.live, pytest.mark.slow]


@pytest.mark.parametrize(
    ("victim", "index"), list(zip(crash.VICTIMS, (1, 1, 1, 0, 1), strict=True))
)
def test_a_kill_loses_at_most_one_commit_and_leaves_nothing(
    victim: str, index: int, tmp_path: Path
) -> None:
    found = crash.kill_once(victim, index, tmp_path)
    assert found.faults == ()
    assert found.commits_lost <= 1
    assert found.orphans == ()
    assert found.left == ()
    if victim in ("writer", "runner"):
        assert found.exit == -9
        assert 0 <= found.recorded <= found.accepted
    else:
        assert found.exit == 3 or (found.exit in (0, 4) and found.recorded == found.asked)
        assert found.recorded == found.accepted


def test_the_harness_sees_an_orphan_and_a_wrong_trace(tmp_path: Path, monkeypatch) -> None:
    """Broken peers: a process that stays, and a trace whose shots are not the run's."""
    import subprocess
    import sys

    stays = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE,
                             start_new_session=True)  # fmt: skip
    try:
        assert len(crash._orphans(stays.pid)) == 1
    finally:
        stays.kill()
        stays.communicate()
    shots = {name: values[:7] for name, values in crash._sampled(8).items()}
    assert crash._is_prefix(shots, 8)
    shots["detectors_b8"] = shots["detectors_b8"] ^ 1
    assert not crash._is_prefix(shots, 8)
