"""``hil rack``: exit codes, what is said, what is written."""

from __future__ import annotations

from pathlib import Path

import pytest
from synthetic_rack import rack, write_stamps

from hil.cli import main


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(["rack", *arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_fit_says_what_was_compared_and_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_stamps(tmp_path / "lab.csv", *rack(100_000, 7))
    code, out, err = run(capsys, "fit", "--csv", str(path), "--out", str(tmp_path / "a"))
    assert (code, err) == (0, "")
    assert "stamps of demod, merge: each is told apart" in out
    assert "REPRODUCED: profile written, evidence measured" in out
    assert "independent draws would miss: p99 of 32 rounds, lag-1 correlation" in out
    row = next(line for line in out.splitlines() if line.startswith("p99.9"))
    assert row.split()[-1] == "reproduced"
    assert max(map(len, out.split("REPRODUCED")[0].splitlines())) <= 90
    code, out, _ = run(capsys, "show", str(tmp_path / "a" / "lab.yaml"))
    assert code == 0
    assert "measured" in out


def test_fit_refuses_a_rack_that_drifts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    durations, events = rack(40_000, 3)
    durations[0, 20_000:] += 40_000
    path = write_stamps(tmp_path / "drift.csv", durations, events)
    code, out, _ = run(capsys, "fit", "--csv", str(path), "--out", str(tmp_path))
    assert code == 1
    assert "NOT REPRODUCED (p50" in out
    assert not (tmp_path / "drift.yaml").exists()


def test_fit_names_what_is_wrong_with_a_capture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.csv").write_text("shot,round,demod\n0,0,5\n")
    code, _, err = run(capsys, "fit", "--csv", str(tmp_path / "bad.csv"))
    assert code == 2
    assert "column 'demod' names no unit" in err
    assert run(capsys, "fit")[0] == 2
    assert run(capsys, "fit", "--csv", "a.csv", "--hold-out", "2")[0] == 2


def test_show_names_every_number_with_its_source(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "show", "neutral-atoms")
    assert code == 0
    assert "arXiv:2505.15907" in "".join(out.split())
    code, _, err = run(capsys, "show", "neutral-atom")
    assert code == 2
    assert err.startswith("error: hil rack show: error[E401]: system.rack.profile: unknown rack")
    assert "did you mean 'neutral-atoms'?" in err
