"""Bad input at the process's door: one clear message, the right exit code, never a traceback.

Codes E101..E604 have their broken files in ``tests/data/scenario/errors.yaml``.
"""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import hil
from hil.cli import main
from hil.trace import ledger

ROOT = Path(__file__).parents[2]
SCENARIO = ROOT / "scenarios" / "surface_d5.yaml"
QUICK = ("--bind", "mil", "--set", "run.shots=1000", "--quiet")
USAGE, RIG = 2, 3


def refused(
    capsys: pytest.CaptureFixture[str], arguments: list[str | Path], code: int, *words: str
) -> str:
    """Run the command line; it must end with ``code`` and one message that has all ``words``."""
    status = main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    assert status == code, err
    assert "Traceback" not in err + out
    assert err.strip()
    assert len(err) < 6000, "one message, not a flood"
    for word in words:
        assert word in err, err
    return err


def write(path: Path, data: str | bytes) -> Path:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


BASE = SCENARIO.read_text()
BROKEN_FILES = {
    "empty": ("", "empty"),
    "only comments": ("# nothing\n", "empty"),
    "a list": ("- 1\n- 2\n", "error[E"),
    "a text": ("hello\n", "error[E"),
    "garbage of 10 MB": (random.Random(1).randbytes(10_000_000), "s.yaml"),
    "not UTF-8": (b"schema: \xff\xfe\n", "s.yaml"),
    "null bytes": (b"schema: hil.scenario/1\n\0\0\0", "s.yaml"),
    "a billion of brackets": ("a: " + "[" * 5_000, "s.yaml"),
    "deep mappings": ("a: " + "{b: " * 2_000 + "1" + "}" * 2_000, "s.yaml"),
    "deep by indentation": ("".join(" " * k + "a:\n" for k in range(1500)), "s.yaml"),
    "alias bomb": (
        "a0: &a0 [1]\n" + "".join(f"a{k}: &a{k} [*a{k - 1}, *a{k - 1}]\n" for k in range(1, 8)),
        "s.yaml",
    ),
    "huge integer": (BASE.replace("shots: 4000", "shots: " + "9" * 400), "run.shots"),
    "integer of 5,000 digits": (BASE.replace("shots: 4000", "shots: " + "9" * 5000), "s.yaml"),
    "huge time": (BASE.replace("shot_period: 1ms", "shot_period: 1.0e300s"), "shot_period"),
    "not a number": (BASE.replace("p: 3.0e-3", "p: .nan"), "system.qpu.noise.p"),
    "infinite": (BASE.replace("p: 3.0e-3", "p: .inf"), "system.qpu.noise.p"),
    "too many shots": (BASE.replace("shots: 4000", "shots: 1000000000000000000"), "run.shots"),
    "cut off": (BASE[:900], "s.yaml"),
}


@pytest.mark.parametrize("name", BROKEN_FILES)
def test_broken_scenario_file(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, word = BROKEN_FILES[name]
    path = write(tmp_path / "s.yaml", data)
    refused(capsys, ["run", path, "--out", tmp_path / "out"], USAGE, word)
    assert not (tmp_path / "out").exists(), "refused before anything is made"


def test_missing_scenario(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, ["run", tmp_path / "none.yaml"], USAGE, "none.yaml")
    refused(capsys, ["check", tmp_path / "none.yaml"], USAGE, "none.yaml")


def test_directory_as_scenario(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, ["run", tmp_path], USAGE, str(tmp_path))


@pytest.mark.parametrize(
    ("option", "word"),
    [
        ("run.shots=", "run.shots"),
        ("run.shots", "path=value"),
        ("nothing.at.all=1", "E402"),
        ("run.shots=-1", "run.shots"),
        ("run.shots=1e99", "run.shots"),
        ("=5", "--set"),
    ],
)
def test_broken_override(
    option: str, word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(capsys, ["run", SCENARIO, "--out", tmp_path / "o", "--set", option], USAGE, word)


# -- where results go ------------------------------------------------------------------------------


def test_output_is_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "taken", "precious")
    refused(
        capsys, ["run", SCENARIO, *QUICK, "--out", path], RIG,
        "the output directory cannot be made", str(path),
    )  # fmt: skip
    refused(
        capsys, ["run", SCENARIO, *QUICK, "--out", path / "below"], RIG,
        "the output directory cannot be made",
    )  # fmt: skip
    assert path.read_text() == "precious"


def test_output_exists_already(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "trace.h5").write_text("precious")
    refused(capsys, ["run", SCENARIO, *QUICK, "--out", tmp_path], USAGE, "holds a trace already")
    assert (tmp_path / "trace.h5").read_text() == "precious"


def test_output_is_read_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder that takes no file, also for root: procfs."""
    refused(capsys, ["run", SCENARIO, *QUICK, "--out", "/proc/self"], RIG, "cannot create")
    refused(capsys, ["run", SCENARIO, *QUICK, "--out", "/proc/nowhere"], RIG, "cannot be made")


def test_a_report_name_is_taken_by_a_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The trace is whole, the verdict is printed, what is missing is named."""
    (tmp_path / "report.html").mkdir()
    status = main(["run", str(SCENARIO), *QUICK, "--out", str(tmp_path)])
    out, err = capsys.readouterr()
    assert status == RIG
    assert "surface-d5" in out
    assert err.startswith("error: ")
    assert "the report cannot be written" in err
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "junit.xml", "report.html", "report.json", "trace.h5", "trace.h5.manifest.json",
    ]  # fmt: skip
    with hil.open_trace(tmp_path / "trace.h5") as trace:
        assert trace.rows("shots") == 1000


# -- traces ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    main(["run", str(SCENARIO), *QUICK, "--out", str(folder)])
    return folder / "trace.h5"


@pytest.mark.parametrize("keep", [0, 1, 0.7])
def test_truncated_trace(
    keep: float, trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """HDF5 alone would search for the lost end of a live file for hours."""
    monkeypatch.setattr(ledger, "_PROBE_S", 3.0)
    data = trace.read_bytes()
    cut = data[: int(keep if keep >= 1 else keep * len(data))]
    refused(capsys, ["trace", "info", write(tmp_path / "t.h5", cut)], RIG, "t.h5")
    part = write(tmp_path / "u.part.h5", cut)
    refused(capsys, ["trace", "recover", part], RIG, "u.part.h5")
    assert part.read_bytes() == cut, "what is left is not touched"
    assert not (tmp_path / "u.h5").exists()
    status = main(["trace", "validate", str(tmp_path / "t.h5")])
    out, err = capsys.readouterr()
    assert status in (1, RIG)
    assert "REFUSED" in out or "t.h5" in err
    assert "Traceback" not in out + err


@pytest.mark.parametrize("command", ["info", "validate"])
@pytest.mark.parametrize("data", [b"not HDF5", b"\x89HDF\r\n\x1a\n" + bytes(900), b""])
def test_not_a_trace(
    command: str, data: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "t.h5", data)
    status = main(["trace", command, str(path)])
    out, err = capsys.readouterr()
    assert status in (1, RIG)
    assert "t.h5" in out + err
    assert "Traceback" not in out + err


@pytest.mark.parametrize("command", ["info", "validate", "recover"])
def test_trace_that_is_absent_or_a_folder(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (tmp_path / "none.part.h5", tmp_path):
        status = main(["trace", command, str(path)])
        out, err = capsys.readouterr()
        assert status in (1, USAGE, RIG)
        assert path.name in out + err
        assert "Traceback" not in out + err


def test_recover_of_a_finished_trace(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, ["trace", "recover", trace], USAGE, "not the name of a live trace")


# -- the network -----------------------------------------------------------------------------------


@pytest.mark.live
@pytest.mark.parametrize("end", ["node", "rack"])
def test_port_in_use(
    end: str, tmp_path: Path, loopback: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    address = loopback[0] if end == "rack" else loopback[1]
    network = "bind.profiles.sil.network"
    arguments = ["run", SCENARIO, "--out", tmp_path / "run", "--quiet", "--set", "run.shots=1000",
                 "--set", f"{network}.rack_address={loopback[0]}",
                 "--set", f"{network}.node_address={loopback[1]}"]  # fmt: skip
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as owner:
        owner.bind((address, 4791))
        status = main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    assert status == RIG
    assert "Traceback" not in out + err
    words = "".join(out.split()) + err
    assert "UDPportistaken" in words
    assert f"{address}:4791" in words
    assert (tmp_path / "run" / "trace.h5").exists(), "a valid trace of nothing"
    with hil.open_trace(tmp_path / "run" / "trace.h5") as found:
        assert found.rows("shots") == 0
        assert found.exit_status == "rig_error"


# -- the interpreter's own door --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (["run"], USAGE, "scenario"),
        (["nothing"], USAGE, "nothing"),
        (["run", "--shots", "5", "x.yaml"], USAGE, "--shots"),
        (["run", "x.yaml", "--seed", "many"], USAGE, "seed"),
        (["node", "serve", "--config", "/nowhere"], USAGE, "/nowhere"),
    ],
)
def test_usage(arguments: list[str], code: int, word: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hil", *arguments],
        check=False, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert word in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("line", ["", "{}", "garbage", '{"config": 5}', "[" * 3000])
def test_node_refuses_a_broken_launch_line(line: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hil", "node", "serve", "--config", "-"], input=line + "\n",
        check=False, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == RIG
    assert "Traceback" not in done.stderr
    assert '"error"' in done.stdout
