"""``hil decoder export-onnx`` and ``info``, and ``hil bench predecoder``."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from gpu_decoder.ising.onnx_model import read_info
from gpu_decoder.runtime.ort import OrtRuntime
from hil.cli.app import run_app

DATA = Path(__file__).parents[1] / "data" / "ising_e2e"
FILE = str(DATA / "custom16_random_fp16.safetensors")
CIRCUIT = ["--weights", FILE, "--distance", "5", "--rounds", "5", "--basis", "Z"]


def export(out: Path, *more: str) -> int:
    return run_app(["decoder", "export-onnx", str(out), *CIRCUIT, *more])


def test_exported_model_gives_the_recorded_bits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "m.onnx"
    assert export(out) == 0
    assert "d = 5, T = 5, basis Z, orientation XV, thresholds 0 and 0" in capsys.readouterr().out
    recorded = np.load(DATA / "d5_T5_Z_XV.npz")
    got = OrtRuntime(out.read_bytes()).run(recorded["dets"])
    np.testing.assert_array_equal(got, recorded["L_and_residual"])
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], (0.0, 0.0)),
        (["--threshold", "2"], (2.0, 2.0)),
        (["--threshold", "2", "--threshold-syndrome", "-1"], (2.0, -1.0)),
        (["--threshold-syndrome", "1"], (0.0, 1.0)),
    ],
)
def test_thresholds(options: list[str], expected: tuple[float, float], tmp_path: Path) -> None:
    assert export(tmp_path / "m.onnx", *options) == 0
    info = read_info((tmp_path / "m.onnx").read_bytes())
    assert (info.threshold_data, info.threshold_syndrome) == expected


def test_a_file_is_replaced_only_by_force(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "m.onnx"
    out.write_bytes(b"mine")
    assert export(out) == 2
    assert "the file exists" in capsys.readouterr().err
    assert out.read_bytes() == b"mine"
    assert export(out, "--force", "--orientation", "O4", "--residual", "keep_last") == 0
    info = read_info(out.read_bytes())
    assert (info.orientation, info.keep_last) == ("ZH", True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--distance", "4"], "distance 4, allowed: odd, at least 3"),
        (["--rounds", "1"], "1 rounds, allowed: at least 2"),
        (["--orientation", "XX"], "orientation 'XX', allowed: XV, XH, ZV, ZH"),
        (["--threshold", "nan"], "threshold nan for data, allowed: a finite number"),
        (["--weights", "nowhere"], "no weights 'nowhere', allowed: a file, or a shipped name"),
        (["--weights", __file__], "not a whole SafeTensors file"),
    ],
)
def test_bad_requests_leave_no_file(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(tmp_path / "m.onnx", *options) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export(tmp_path / "absent" / "m.onnx") == 3
    assert "cannot be written" in capsys.readouterr().err


def test_info_of_weights_and_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(["decoder", "info", FILE, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["parameters"], facts["receptive_field"]) == (17_332, 9)
    assert export(tmp_path / "m.onnx", "--precision", "fp16") == 0
    capsys.readouterr()
    assert run_app(["decoder", "info", str(tmp_path / "m.onnx"), "--json"]) == 0
    model = json.loads(capsys.readouterr().out)
    assert model["weights_sha256"] == facts["sha256"]
    assert (model["detectors"], model["precision"]) == (120, "fp16")
    assert run_app(["decoder", "info", FILE]) == 0
    assert "receptive_field     9\n" in capsys.readouterr().out


def test_info_of_other_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "x.onnx"
    other.write_bytes(b"no model")
    assert run_app(["decoder", "info", str(other)]) == 2
    assert f"{other}: not an ONNX model" in capsys.readouterr().err


def test_bench_gives_its_ratios(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--weights", FILE, "-d", "3", "--repeats", "1", "--json"]
    assert run_app(["bench", "predecoder", *options]) == 0
    data = json.loads(capsys.readouterr().out)
    (row,) = data["rows"]
    assert (data["backend"], data["threads"], row["distance"]) == ("ort_cpu", 1, 3)
    assert row["graph_us"] > 0
    assert row["ratio"] == pytest.approx(row["graph_us"] / row["network_us"])
    assert row["gain"] == pytest.approx(row["graph_us"] / row["batch_us"])
    assert run_app(["bench", "predecoder", "--weights", "nowhere"]) == 2
