"""``hil check``: ok lines on stdout, errors on stderr, exit 0 or 2."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from hil.cli.check import check

ROOT = Path(__file__).parents[2]
BASE = ROOT / "tests" / "data" / "scenario" / "base.yaml"


@pytest.fixture
def app() -> typer.Typer:
    app = typer.Typer()
    app.command()(check)
    return app


def test_good_files(app: typer.Typer) -> None:
    shipped = ROOT / "scenarios" / "known_delay.yaml"
    result = CliRunner().invoke(app, [str(BASE), str(shipped)])
    assert result.exit_code == 0
    assert result.stderr == ""
    assert result.stdout == (
        f"ok {BASE}: base, profiles mil, live, uses mil\n"
        f"ok {shipped}: known-delay, profiles mil, sil, sil100, uses sil\n"
    )


def test_bad_files_do_not_hide_good_ones(app: typer.Typer, tmp_path: Path) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text(BASE.read_text().replace("workers: 2", "worker: 2"))
    absent = tmp_path / "absent.yaml"
    result = CliRunner().invoke(app, [str(broken), str(absent), str(BASE)])
    assert result.exit_code == 2
    assert result.stdout.startswith(f"ok {BASE}")
    assert f"{broken}:30:5: error[E201]: system.decoder.worker: unknown key 'worker'" in (
        result.stderr
    )
    assert f"{absent}: cannot read the scenario" in result.stderr


def test_bind_and_set(app: typer.Typer) -> None:
    result = CliRunner().invoke(app, [str(BASE), "--bind", "live", "--set", "run.shots=6000"])
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.endswith("uses live\n")
    result = CliRunner().invoke(app, [str(BASE), "--bind", "lab", "--set", "run.shots=x"])
    assert result.exit_code == 2
    assert "--bind lab: error[E401]" in result.stderr
    assert "--set run.shots=x: error[E203]" in result.stderr


def test_warnings_go_to_stderr(app: typer.Typer, tmp_path: Path) -> None:
    path = tmp_path / "loaded.yaml"
    path.write_text(BASE.read_text().replace("0: 4us, 20: 9us", "0: 19us, 20: 20us"))
    result = CliRunner().invoke(app, [str(path)])
    assert result.exit_code == 0
    assert "warning[E503]" in result.stderr
    assert result.stdout.startswith("ok ")
