"""What a first user types wrongly on the command line: one clear message, the right exit code."""

from __future__ import annotations

from pathlib import Path

import pytest

from hil.cli import main

REPOSITORY = Path(__file__).parents[2]
SCENARIO = REPOSITORY / "scenarios" / "surface_d5.yaml"


def _said(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> tuple[int, str]:
    code = main(arguments)
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return code, said


def _durations(path: Path, value: str, rows: int = 8_000) -> Path:
    lines = ["shot,round,demod_ns", *(f"{i // 10},{i % 10},{value}" for i in range(rows))]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_two_clocks_or_a_wrong_unit_are_refused_before_sums_overflow(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = _durations(tmp_path / "far.csv", "3600000000000000")
    code, said = _said(capsys, ["rack", "fit", "--csv", str(path), "--out", str(tmp_path / "o")])
    assert code == 2
    assert "a round takes longer than any rack does" in said
    assert "allowed: at most 10.000 s" in said
    assert not (tmp_path / "o").exists()


def test_a_capture_without_names_of_columns_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bare.csv"
    path.write_text("0,0,1.5\n0,1,1.5\n")
    code, said = _said(capsys, ["rack", "fit", "--csv", str(path)])
    assert code == 2
    assert "line 1: the first line names no columns" in said
    assert "got:     0, 0, 1.5" in said


def test_wrong_combinations_of_captures_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(_durations(tmp_path / "stamps.csv", "100", 10))
    fit = ["rack", "fit"]
    for arguments, what in (
        ([], "give one of --csv and --pcap\n    got:     neither"),
        (["--csv", path, "--pcap", path], "got:     both"),
        (["--csv", path, "--tap-clock", "ptp"], "--tap-clock ptp speaks about a tap"),
        (["--csv", str(tmp_path)], "got:     a folder"),
        (["--pcap", path], "neither pcap nor pcapng\n    got:     first word 0x73686f74\n"),
    ):
        code, said = _said(capsys, [*fit, *arguments])
        assert (code, what in said) == (2, True), said
        assert said.count("got:") == 1
        assert "fix:" in said


def test_a_fit_that_cannot_be_written_is_an_error_of_the_rig(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(_durations(tmp_path / "stamps.csv", "100"))
    (tmp_path / "file").write_text("")
    code, said = _said(capsys, ["rack", "fit", "--csv", path, "--hold-out", "0.4",
                                "--out", str(tmp_path / "file")])  # fmt: skip
    assert (code, "the fit cannot be written" in said, "fix:" in said) == (3, True, True)


def test_an_existing_result_is_said_before_the_capture_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "lab.json").write_text("mine")
    arguments = ["rack", "fit", "--csv", "absent.csv", "--name", "lab", "--out", str(tmp_path)]
    code, said = _said(capsys, arguments)
    assert (code, "lab.json: the file exists already" in said) == (2, True)
    assert (tmp_path / "lab.json").read_text() == "mine"


def test_a_scenario_or_nothing_in_place_of_a_rack_profile(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = _said(capsys, ["rack", "show", str(SCENARIO)])
    assert (code, said.count("error")) == (2, 2)
    assert "error[E201]: system.rack.profile: a scenario, not a rack profile" in said
    empty = tmp_path / "empty.yaml"
    empty.write_text("")
    code, said = _said(capsys, ["rack", "show", str(empty)])
    assert code == 2
    assert "fix:     write title, clocks, boards, stages" in said


def test_values_of_a_profile_that_the_scenario_hides_are_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A fitted link would otherwise have no effect, and nobody would notice."""
    check = ["check", str(SCENARIO)]
    code, said = _said(capsys, [*check, "--set", "system.rack.profile=nvqlink"])
    assert (code, said.count("warning[E201]")) == (0, 2)
    assert "system.links.down.latency: stands before the value of rack profile 'nvqlink'" in said
    assert "allowed: 1.915us of the profile" in said
    code, said = _said(capsys, [*check, "--set", "system.rack.profile=trapped-ions"])
    assert (code, said.count("warning[E201]: system.qpu.")) == (0, 2)
    assert _said(capsys, check) == (0, "")


def test_rack_show_tells_what_the_rack_is_built_of(capsys: pytest.CaptureFixture[str]) -> None:
    from json import loads

    assert main(["rack", "show", "nvqlink", "--json"]) == 0
    parts = loads(capsys.readouterr().out)["parts"]
    assert [part["part"] for part in parts if not part["evidence"]] == [
        "clock hsb", "board ro0", "board ro1", "board agg", "link up", "link down",
    ]  # fmt: skip
    assert "322.265625MHz" in parts[5]["value"]


def test_files_that_hold_no_frame_are_left_soon(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    binary, text = tmp_path / "trace.h5", tmp_path / "long.csv"
    binary.write_bytes(b"\x89HDF\r\n" + bytes(100) + b"\n00\n" * 50)
    text.write_text("not a frame\n" * 10_000)
    for path, most in ((binary, 2), (text, 20)):
        assert main(["wire", "decode", str(path)]) == 2
        captured = capsys.readouterr()
        assert len(captured.out.splitlines()) <= most
        assert "no frame found" in captured.err


def test_a_folder_is_no_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = _said(capsys, ["trace", "info", str(tmp_path)])
    assert code == 3
    assert "got:     a folder" in said
    assert f"such as {tmp_path / 'trace.h5'}" in said
