"""``hil decoder train``: from a file to weights that the pre-decoder takes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gpu_decoder.ising.geometry import geometry
from gpu_decoder.ising.onnx_model import ModelMismatchError, build_onnx
from gpu_decoder.ising.tensors import Layout
from gpu_decoder.ising.weights import load_weights
from hil.cli import main
from hil.run.interrupt import Interrupt
from hil.run.train import read_config, train

CONFIG = """\
name: tiny
filters: [4, 4]
kernels: [3, 3]
windows: [{distance: 3, rounds: 3}]
noises: [{model: ising25, p: 0.006}, {model: ising_scalar, p: 0.004}]
seed: 1
steps: 4
cells_per_step: 200
log_every: 2
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(CONFIG)
    return path


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (CONFIG.replace("[4, 4]\n", "[4, 3]\n"), "the last layer has 3 channels, allowed: 4"),
        (CONFIG.replace("seed: 1", "seed: x"), "valid integer"),
        (CONFIG + "more: 1\n", "Extra inputs are not permitted"),
        ("- 1\n", "not a training configuration"),
        ("a: [1\n", "configuration cannot be read"),
        ("\udcff", "configuration cannot be read"),
    ],
)
def test_a_wrong_file_is_refused(
    config: Path, text: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config.write_bytes(text.encode(errors="surrogateescape"))
    out = config.parent / "run"
    assert main(["decoder", "train", str(config), "--out", str(out)]) == 2
    assert words in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.needs("torch")
def test_train_then_use(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = config.parent / "run"
    assert main(["decoder", "train", str(config), "--out", str(out)]) == 0
    printed = capsys.readouterr()
    assert "step 4 of 4" in printed.err
    assert "tiny.safetensors" in printed.out
    weights = load_weights(out / "tiny.safetensors")
    record = json.loads((out / "tiny.json").read_text())
    assert record["sha256"] == weights.sha256
    assert record["steps"] == 4
    assert list(record["noise_sha256"]) == ["ising25 p=0.006", "ising_scalar p=0.004"]
    assert weights.metadata["trained_noise"] == "ising25 p=0.006, ising_scalar p=0.004"
    build_onnx(weights, Layout(geometry(3, "XV"), 3, "X"))
    with pytest.raises(ModelMismatchError, match="trained on orientation XV, the circuit has ZH"):
        build_onnx(weights, Layout(geometry(3, "ZH"), 3, "X"))


@pytest.mark.needs("torch")
def test_an_interrupted_run_leaves_no_weights_and_goes_on(config: Path) -> None:
    asked, out = Interrupt(), config.parent / "run"

    def stop(_row: object) -> None:
        asked.name = "SIGINT"

    done = train(read_config(config), out, stop, asked)
    assert (done.weights, done.step, done.signal) == (None, 2, "SIGINT")
    assert not (out / "tiny.safetensors").exists()
    assert train(read_config(config), out, lambda _: None, Interrupt()).step == 4
