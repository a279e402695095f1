"""Weights files and models that must be refused, with both sides named."""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from gpu_decoder.ising.geometry import geometry
from gpu_decoder.ising.network import REGISTRY, architecture
from gpu_decoder.ising.onnx_model import (
    ModelMismatchError,
    build_onnx,
    check_info,
    read_info,
)
from gpu_decoder.ising.tensors import Layout
from gpu_decoder.ising.weights import (
    Weights,
    WeightsError,
    describe,
    find_weights,
    load_weights,
    save_weights,
)

FILE = Path(__file__).parents[1] / "data" / "ising_e2e" / "custom16_random_fp16.safetensors"
LAYOUT = Layout(geometry(5, "XV"), 5, "Z")


@pytest.mark.parametrize(
    ("model_id", "parameters", "field"),
    [
        ("1", 912_772, 9), ("2", 3_595_012, 9), ("3", 4_224_388, 17), ("4", 1_797_764, 13),
        ("5", 7_134_468, 13), ("hil-32x4", 62_308, 9), ("hil-48x4", 134_932, 9),
    ],
)  # fmt: skip
def test_registry_has_the_published_sizes(model_id: str, parameters: int, field: int) -> None:
    net = REGISTRY[model_id]
    assert (net.parameters, net.receptive_field) == (parameters, field)


def test_published_files_with_a_wider_last_layer_are_taken() -> None:
    net = architecture("1", (128, 128, 128, 16), (3,) * 4)
    assert net.parameters == 954_256
    with pytest.raises(ValueError, match=r"filters \[64, 4\].*Surface-1-Fast has filters \[128"):
        architecture("1", (64, 4), (3, 3))
    with pytest.raises(ValueError, match="model id 'B' without filters"):
        architecture("B")


Parts = tuple[dict[str, np.ndarray[Any, Any]], dict[str, str]]


def parts() -> Parts:
    weights = load_weights(FILE)
    tensors = {}
    for k, (weight, bias) in enumerate(weights.layers):
        tensors[f"net.{3 * k}.weight"] = weight.astype(np.float16)
        tensors[f"net.{3 * k}.bias"] = bias.astype(np.float16)
    return tensors, dict(weights.metadata)


def drop(key: str) -> Callable[[Parts], None]:
    return lambda p: (p[0] if key.startswith("net.") else p[1]).pop(key)  # type: ignore[return-value]


def tensor(key: str, change: Callable[[Any], Any]) -> Callable[[Parts], None]:
    def edit(p: Parts) -> None:
        p[0][key] = change(p[0].get(key, np.zeros(4, np.float16)))

    return edit


def meta(key: str, value: str) -> Callable[[Parts], None]:
    return lambda p: p[1].update({key: value})


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (drop("net.3.bias"), "missing tensors: net.3.bias; unexpected tensors: none"),
        (tensor("net.12.weight", lambda a: a), "unexpected tensors: net.12.weight"),
        (
            tensor("net.3.weight", lambda a: np.ascontiguousarray(a[:, :8])),
            r"net.3.weight has shape \[16, 8, 3, 3, 3\], but .* give \[16, 16, 3, 3, 3\]",
        ),
        (tensor("net.0.bias", lambda a: a * np.nan), "net.0.bias holds values that are not finite"),
        (
            tensor("net.0.bias", lambda a: a.astype(np.float32)),
            "net.0.bias is float32, but quant_format is 'fp16'",
        ),
        (drop("model_id"), "metadata without model_id; it holds kernel_size, "),
        (drop("kernel_size"), "metadata without kernel_size"),
        (meta("model_version", "predecoder_memory_cascade"), "allowed: 'predecoder_memory_v1'"),
        (meta("num_filters", "[16, 16, 4]"), r"filters \[16, 16, 4\] and kernels \[3, 3, 3, 3\]"),
        (meta("num_filters", "16"), "num_filters is '16', allowed: a JSON list of integers"),
        (meta("num_filters", "[16, 16, 16, 4"), "allowed: a JSON list of integers"),
        (meta("kernel_size", "[3, 3, 3, 4]"), "allowed: odd numbers"),
        (meta("receptive_field", "13"), r"receptive_field '13', but kernel_size .* gives 9"),
        (meta("quant_format", "int8"), "quant_format 'int8', allowed: 'fp16', 'fp32'"),
        (meta("model_id", "1"), r"but Surface-1-Fast has filters \[128, 128, 128, 4\]"),
    ],
)
def test_bad_file_is_refused(edit: Callable[[Parts], None], message: str, tmp_path: Path) -> None:
    tensors, metadata = parts()
    edit((tensors, metadata))
    path = tmp_path / "bad.safetensors"
    save_file(tensors, path, metadata)
    with pytest.raises(WeightsError, match=message) as raised:
        load_weights(path)
    assert str(raised.value).startswith(f"{path}: ")


def test_every_truncation_and_other_formats_are_refused(tmp_path: Path) -> None:
    whole, path = FILE.read_bytes(), tmp_path / "bad.safetensors"
    cuts = [0, 1, 7, 8, 9, 200, len(whole) // 2, len(whole) - 1]
    hostile = [struct.pack("<Q", 2**62) + whole[8:], pickle.dumps({"net.0.weight": 1}), b"\0" * 64]
    for data in [whole[:cut] for cut in cuts] + hostile + [whole + b"\0"]:
        path.write_bytes(data)
        with pytest.raises(WeightsError, match="not a whole SafeTensors file"):
            load_weights(path)
    with pytest.raises(WeightsError, match="cannot be read"):
        load_weights(tmp_path)
    header = json.dumps({"a": {"dtype": "F16", "shape": [1], "data_offsets": [0, 2]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0\0")
    with pytest.raises(WeightsError, match=r"metadata without model_id, .*; it holds none"):
        load_weights(path)


def test_weights_are_found_by_path_or_shipped_name(tmp_path: Path) -> None:
    assert find_weights(str(FILE)) == FILE
    with pytest.raises(WeightsError, match="no weights 'nowhere', allowed: a file, or a shipped"):
        find_weights("nowhere")
    with pytest.raises(WeightsError):
        find_weights(tmp_path)


@pytest.mark.parametrize("quant_format", ["fp16", "fp32"])
def test_saved_weights_come_back(quant_format: Any, tmp_path: Path) -> None:
    first = load_weights(FILE)
    own = {**first.metadata, "threshold_data": "1.5", "trained_noise": "abc"}
    path = tmp_path / "w.safetensors"
    sha256 = save_weights(path, replace(first, quant_format=quant_format, metadata=own))
    again = load_weights(path)
    assert again.sha256 == sha256
    assert again.architecture == first.architecture
    assert (again.threshold_data, again.threshold_syndrome) == (1.5, 0.0)
    assert again.metadata == own | describe(first.architecture, quant_format)
    for (w1, b1), (w2, b2) in zip(first.layers, again.layers, strict=True):
        np.testing.assert_array_equal(w1, w2)
        np.testing.assert_array_equal(b1, b2)
    assert save_weights(tmp_path / "x.safetensors", again) == sha256


def test_what_cannot_be_read_back_is_not_written(tmp_path: Path) -> None:
    first = load_weights(FILE)
    path = tmp_path / "w.safetensors"
    path.write_bytes(b"before")
    huge = ((first.layers[0][0] * 1e9, first.layers[0][1]), *first.layers[1:])
    with pytest.raises(WeightsError, match=r"net\.0\.weight holds values that are not finite"):
        save_weights(path, replace(first, layers=huge))
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(WeightsError, match="threshold_data is 'high', allowed: a finite number"):
        _ = replace(first, metadata={"threshold_data": "high"}).threshold_data


@pytest.mark.needs("torch")
def test_checkpoints_of_torch(tmp_path: Path) -> None:
    import torch

    first = load_weights(FILE)
    state = {f"module.{k}": torch.from_numpy(v) for k, v in parts()[0].items()}
    for name, content in (
        ("a.pt", state), ("b.pth", {"model_state_dict": state, "epoch": 3}),
        ("c.pt", {"state_dict": state}),
    ):  # fmt: skip
        torch.save(content, tmp_path / name)
        again = load_weights(tmp_path / name)
        assert again.quant_format == "fp16"
        np.testing.assert_array_equal(again.layers[2][0], first.layers[2][0])

    class Hostile:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"state_dict": Hostile()}, tmp_path / "d.pt")
    torch.save([1, 2], tmp_path / "e.pt")
    torch.save({"x": torch.zeros(3)}, tmp_path / "f.pt")
    torch.save({"x": torch.zeros(3, dtype=torch.int32)}, tmp_path / "g.pt")
    (tmp_path / "h.pt").write_bytes((tmp_path / "a.pt").read_bytes()[:900])
    for name, message in (
        ("d.pt", "not a checkpoint that loads as plain weights"), ("e.pt", "no state dict"),
        ("f.pt", "no convolutions"), ("g.pt", "not floating point"),
        ("h.pt", "not a checkpoint"),
    ):  # fmt: skip
        with pytest.raises(WeightsError, match=message) as caught:
            load_weights(tmp_path / name)
        assert "False" not in str(caught.value), "torch's advice to load without the guard"
    assert not (tmp_path / "ran").exists()


def test_model_says_what_it_was_built_for() -> None:
    weights = load_weights(FILE)
    info = read_info(build_onnx(weights, LAYOUT, 1.5, -0.25, "fp16"))
    assert (info.distance, info.rounds, info.basis, info.orientation) == (5, 5, "Z", "XV")
    assert (info.threshold_data, info.threshold_syndrome, info.keep_last) == (1.5, -0.25, False)
    assert (info.weights_sha256, info.model_id) == (weights.sha256, "custom")
    assert (info.precision, info.n_detectors) == ("fp16", 120)
    check_info(info, LAYOUT, 1.5, -0.25)
    check_info(info, LAYOUT)


@pytest.mark.parametrize(
    ("layout", "limits", "message"),
    [
        (Layout(geometry(3, "XV"), 5, "Z"), (0.0, 0.0), "distance: model 5, circuit 3"),
        (Layout(geometry(5, "XV"), 6, "Z"), (0.0, 0.0), "rounds: model 5, circuit 6"),
        (Layout(geometry(5, "XV"), 5, "X"), (0.0, 0.0), "basis: model Z, circuit X"),
        (Layout(geometry(5, "O2"), 5, "Z"), (0.0, 0.0), "orientation: model XV, circuit XH"),
        (Layout(geometry(5, "XV"), 5, "Z", True), (0.0, 0.0), "keep_last: model False, .* True"),
        (LAYOUT, (1.0, 0.0), "threshold_data: model 0.0, asked 1.0"),
        (LAYOUT, (0.0, 2.0), "threshold_syndrome: model 0.0, asked 2.0"),
        (
            Layout(geometry(3, "XV"), 4, "Z"), (0.0, 0.0),
            "distance: model 5, circuit 3; rounds: model 5, circuit 4",
        ),
    ],
)  # fmt: skip
def test_model_of_another_circuit_is_refused(
    layout: Layout, limits: tuple[float, float], message: str
) -> None:
    info = read_info(build_onnx(load_weights(FILE), LAYOUT))
    with pytest.raises(ModelMismatchError, match=message):
        check_info(info, layout, *limits)


def edited(change: Callable[[Any], None]) -> bytes:
    import onnx

    model = onnx.load_model_from_string(build_onnx(load_weights(FILE), LAYOUT))
    change(model)
    return bytes(model.SerializeToString())


def stored(key: str, value: str) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        for entry in model.metadata_props:
            if entry.key == f"hil.{key}":
                entry.value = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.ClearField("metadata_props"), r"without the metadata hil\.distance, "),
        (stored("distance", "7"), r"input .*120.*but d = 7, T = 5 give .*240"),
        (stored("rounds", "many"), "metadata cannot be read"),
        (stored("precision", "fp4"), "metadata precision 'fp4', allowed: fp32, fp16, int8, fp8"),
        (stored("version", "2"), "metadata version '2', allowed: '1'"),
        (lambda m: setattr(m.graph.input[0], "name", "x"), "input .*'x'"),
        (
            lambda m: setattr(m.graph.output[0].type.tensor_type, "elem_type", 1),
            "output .*'L_and_residual_dets', 1, 121",
        ),
    ],
)
def test_model_that_contradicts_itself_is_refused(
    change: Callable[[Any], None], message: str
) -> None:
    with pytest.raises(ModelMismatchError, match=message):
        read_info(edited(change))


def test_thresholds_are_finite() -> None:
    weights: Weights = load_weights(FILE)
    for limits in ((float("nan"), 0.0), (0.0, float("inf"))):
        with pytest.raises(ValueError, match="allowed: a finite number"):
            build_onnx(weights, LAYOUT, *limits)
