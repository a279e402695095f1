"""``hil trace``: data on stdout, exit codes 0, 1 (refused), 2 (usage), 3 (damaged)."""

from __future__ import annotations

import json

import h5py
import pytest
from trace_cases import make_record, make_writer, write_trace
from typer.testing import CliRunner

from hil.cli.trace import app
from hil.errors import TraceError, UsageError

RUNNER = CliRunner()


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return write_trace(tmp_path_factory.mktemp("cli") / "t.h5", [make_record(0, 12)])


def hil_trace(*arguments: object):
    return RUNNER.invoke(app, [str(a) for a in arguments])


def test_info_prints_data_and_a_table(sound):
    result = hil_trace("info", sound, "--json")
    assert result.exit_code == 0
    facts = json.loads(result.stdout)
    assert facts["rows"]["shots"] == 12
    assert facts["rows"]["rounds"] == 36
    assert facts["exit_status"] == "success"
    assert facts["live"] is False
    table = hil_trace("info", sound)
    assert table.exit_code == 0
    assert "content_id" in table.stdout
    assert "rounds" in table.stdout


def test_validate_says_which_trace_is_refused_and_why(sound, tmp_path):
    assert hil_trace("validate", sound).stdout == f"{sound}: valid\n"
    bad = tmp_path / "bad.h5"
    bad.write_bytes(sound.read_bytes())
    with h5py.File(bad, "r+") as file:
        file["rounds/t_intended_ps"][7] += 1
    result = hil_trace("validate", sound, bad)
    assert result.exit_code == 1
    assert f"{sound}: valid" in result.stdout
    assert f"{bad}: REFUSED" in result.stdout
    assert "row 7" in result.stdout
    assert "note:" in result.stdout


def test_recover_prints_the_final_file(tmp_path):
    with make_writer(tmp_path / "t.h5") as w:
        w.append(make_record(0, 12))
    result = hil_trace("recover", w.part)
    assert result.exit_code == 0
    assert result.stdout == f"{tmp_path / 't.h5'}\n"
    assert hil_trace("validate", tmp_path / "t.h5").exit_code == 0


def test_errors_carry_their_exit_code(tmp_path):
    missing = hil_trace("info", tmp_path / "none.h5")
    assert isinstance(missing.exception, UsageError)
    assert missing.exception.exit_code == 2
    (tmp_path / "x.h5").write_bytes(b"no HDF5")
    damaged = hil_trace("info", tmp_path / "x.h5")
    assert isinstance(damaged.exception, TraceError)
    assert damaged.exception.exit_code == 3
