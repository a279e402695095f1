"""The Ising decoder: the rules of every decoder, and what it does when its first stage fails."""

from __future__ import annotations

import pickle
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest

from gpu_decoder.build import build_decoder
from gpu_decoder.ising.circuit import memory_circuit
from gpu_decoder.ising.config import PredecoderConfig, build_predecoder
from gpu_decoder.ising.geometry import geometry
from gpu_decoder.ising.noise import Ising25
from gpu_decoder.ising.onnx_model import ModelMismatchError, build_onnx, read_info
from gpu_decoder.ising.pipeline import IsingDecoder
from gpu_decoder.ising.predecoder import NetworkPredecoder
from gpu_decoder.ising.tensors import Layout
from gpu_decoder.ising.weights import WeightsError, load_weights
from gpu_decoder.matching import MatchingDecoder
from gpu_decoder.protocol import Backend, GlobalDecoder, Precision, Reason, U8Array
from gpu_decoder.runtime.ort import OrtRuntime
from gpu_decoder.runtime.protocol import EngineError

FILE = Path(__file__).parents[1] / "data" / "ising_e2e" / "custom16_random_fp16.safetensors"
CONFIG = PredecoderConfig(
    5, 5, "Z", "O1", weights=str(FILE), threshold_data=0.5, threshold_syndrome=0.5
)
LAYOUT = CONFIG.layout


@lru_cache(maxsize=1)
def circuit() -> tuple[str, U8Array, U8Array]:
    """Error model, detectors_b8 and observables_b8 of 300 shots."""
    made = memory_circuit(LAYOUT.geometry, 5, "Z", Ising25.from_p(0.006))
    dem = made.detector_error_model(decompose_errors=True, approximate_disjoint_errors=True)
    sampler = made.compile_detector_sampler(seed=5)
    return str(dem), *sampler.sample(300, separate_observables=True, bit_packed=True)


@pytest.mark.parametrize("kind", ["pymatching", "pymatching_corr"])
def test_batch_equals_one_by_one_and_the_parts(kind: str) -> None:
    dem, shots, _ = circuit()
    before = shots.copy()
    decoder = build_decoder(kind, dem, predecoder=CONFIG)
    batch = decoder.decode_batch(shots)
    np.testing.assert_array_equal(shots, before)
    for row in range(40):
        np.testing.assert_array_equal(decoder.decode_one(shots[row]), batch.predictions_b8[row])
    first = build_predecoder(CONFIG, dem).predecode(shots)
    matching = MatchingDecoder(dem, correlated=kind == "pymatching_corr")
    second = matching.decode_batch(first.residual_b8).predictions_b8
    np.testing.assert_array_equal(batch.predictions_b8, second ^ first.pre_l[:, None])
    assert first.pre_l.any()
    assert batch.executed == decoder.kind == GlobalDecoder[kind.upper()]
    assert batch.predecoded is not None
    np.testing.assert_array_equal(
        batch.predecoded.residual_events, np.bitwise_count(first.residual_b8).sum(axis=1)
    )
    assert (decoder.n_detectors, decoder.n_observables) == (120, 1)


def test_says_what_was_asked_and_what_ran() -> None:
    dem, shots, _ = circuit()
    decoder = build_decoder("pymatching", dem, predecoder=pickle.loads(pickle.dumps(CONFIG)))
    record = decoder.decode_batch(shots[:1]).predecoded
    assert record is not None
    assert record.backend_requested == record.backend_executed == Backend.ORT_CPU
    assert record.precision_requested == record.precision_executed == Precision.FP32
    found = decoder.fingerprint()
    assert found["weights_sha256"] == load_weights(FILE).sha256
    assert (found["threshold_data"], found["residual"]) == ("0.5", "compatible")
    assert {"dem_sha256", "model_sha256", "runtime", "package"} <= set(found)


def test_a_network_that_never_fires_decodes_as_matching_does() -> None:
    """The masked block is lost in compatible mode and kept in own mode; answers are the same."""
    dem, shots, _ = circuit()
    silent = replace(CONFIG, threshold_data=1e6, threshold_syndrome=1e6)
    alone = MatchingDecoder(dem, correlated=False).decode_batch(shots).predictions_b8
    events = np.bitwise_count(shots).sum(axis=1)
    for keep_last in (False, True):
        config = replace(silent, keep_last=keep_last)
        batch = build_decoder("pymatching", dem, predecoder=config).decode_batch(shots)
        np.testing.assert_array_equal(batch.predictions_b8, alone)
        assert batch.predecoded is not None
        assert (batch.predecoded.residual_events == events).all() == keep_last


@pytest.mark.parametrize("shape", [(3, 14), (3, 16), (15,)])
def test_rows_of_another_length_are_refused(shape: tuple[int, ...]) -> None:
    decoder = build_decoder("pymatching", circuit()[0], predecoder=CONFIG)
    with pytest.raises(ValueError, match=r"allowed \[n, 15\]"):
        decoder.decode_batch(np.zeros(shape, dtype=np.uint8))


def test_a_fired_readout_detector_is_refused_by_name() -> None:
    """No error of the circuit fires it, and PyMatching would refuse the whole batch."""
    dem, shots, _ = circuit()
    spoiled = shots.copy()
    spoiled[7, 14] |= 0x80
    decoder = build_decoder("pymatching", dem, predecoder=CONFIG)
    with pytest.raises(ValueError, match=r"row 7 has a fired detector .* \(108 to 119\)"):
        decoder.decode_batch(spoiled)


def test_memory_of_a_call_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large batch reaches the runtime in pieces; answers and row numbers do not tell."""
    dem, shots, _ = circuit()
    whole = build_predecoder(CONFIG, dem).predecode(shots)
    sizes: list[int] = []

    class Counting(OrtRuntime):
        def run(self, dets: U8Array) -> U8Array:
            sizes.append(len(dets))
            return super().run(dets)

    monkeypatch.setattr("gpu_decoder.ising.predecoder._CELLS_PER_CALL", 125 * 70)
    data = build_onnx(load_weights(FILE), LAYOUT, 0.5, 0.5)
    pieces = NetworkPredecoder(Counting(data), read_info(data), LAYOUT)
    got = pieces.predecode(shots)
    assert sizes == [70, 70, 70, 70, 20]
    np.testing.assert_array_equal(got.pre_l, whole.pre_l)
    np.testing.assert_array_equal(got.residual_b8, whole.residual_b8)
    spoiled = shots.copy()
    spoiled[211, 14] |= 0x80
    with pytest.raises(ValueError, match="row 211 has a fired detector"):
        pieces.predecode(spoiled)


class Broken(OrtRuntime):
    """A runtime whose output is spoiled."""

    how = "shape"

    def run(self, dets: U8Array) -> U8Array:
        out = super().run(dets)
        if self.how == "shape":
            return out[:, :-1]
        if self.how == "dtype":
            return out.astype(np.float32)  # type: ignore[return-value]
        if self.how == "value":
            out[-1, 3] = 2
        elif self.how == "readout":
            out[0, -1] = 1
        return out


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("shape", r"uint8 \[2, 120\], not uint8 \[2, 121\]"), ("dtype", "it is float32"),
        ("value", "holds the value 2"), ("readout", "fires detectors of the data readout"),
    ],
)  # fmt: skip
def test_an_invalid_output_is_an_error_never_an_answer(how: str, message: str) -> None:
    dem, shots, _ = circuit()
    data = build_onnx(load_weights(FILE), LAYOUT, 0.5, 0.5)
    runtime = Broken(data)
    decoder = IsingDecoder(dem, NetworkPredecoder(runtime, read_info(data), LAYOUT))
    runtime.how = ""
    assert len(decoder.decode_batch(shots[:2]).predictions_b8) == 2
    runtime.how = how
    with pytest.raises(EngineError, match=message) as raised:
        decoder.decode_batch(shots[:2])
    assert raised.value.reason == Reason.OUTPUT_INVALID
    again = pickle.loads(pickle.dumps(raised.value))
    assert (str(again), again.reason) == (str(raised.value), Reason.OUTPUT_INVALID)


def test_exported_models_are_used_only_for_their_circuit(tmp_path: Path) -> None:
    dem, shots, _ = circuit()
    path = tmp_path / "m.onnx"
    path.write_bytes(build_onnx(load_weights(FILE), LAYOUT, 0.5, 0.5))
    config = replace(CONFIG, weights="", model=str(path))
    with_file = build_decoder("pymatching", dem, predecoder=config).decode_batch(shots)
    from_weights = build_decoder("pymatching", dem, predecoder=CONFIG).decode_batch(shots)
    np.testing.assert_array_equal(with_file.predictions_b8, from_weights.predictions_b8)
    for change in (
        {"basis": "X"}, {"orientation": "ZH"}, {"rounds": 6}, {"distance": 7}, {"keep_last": True},
        {"threshold_data": 0.0}, {"threshold_syndrome": 4.0},
    ):  # fmt: skip
        key = next(iter(change))
        with pytest.raises(ModelMismatchError, match=f"{key}: model .*, (circuit|asked) "):
            build_decoder("pymatching", dem, predecoder=replace(config, **change))
    with pytest.raises(WeightsError, match=r"absent\.onnx.*cannot be read"):
        build_predecoder(replace(config, model=str(tmp_path / "absent.onnx")), dem)


def test_the_error_model_must_have_as_many_detectors() -> None:
    other = memory_circuit(geometry(3, "XV"), 5, "Z", Ising25.from_p(0.006))
    dem = str(other.detector_error_model(decompose_errors=True, approximate_disjoint_errors=True))
    with pytest.raises(ModelMismatchError, match=r"120 detectors.*40"):
        build_decoder("pymatching", dem, predecoder=CONFIG)


def test_runtime_for_another_circuit_is_refused() -> None:
    data = build_onnx(load_weights(FILE), LAYOUT)
    small = build_onnx(load_weights(FILE), Layout(geometry(3, "XV"), 5, "Z"))
    with pytest.raises(ModelMismatchError, match="takes 40 detectors, the circuit has 120"):
        NetworkPredecoder(OrtRuntime(small), read_info(data), LAYOUT)


def test_contradictory_configurations_are_refused() -> None:
    with pytest.raises(ValueError, match="exactly one of weights, model, rule"):
        replace(CONFIG, rule="isolated_pair")
    with pytest.raises(ValueError, match="exactly one of weights, model, rule"):
        replace(CONFIG, weights="")
    with pytest.raises(ValueError, match="a rule runs without a network"):
        replace(CONFIG, weights="", rule="isolated_pair")
    with pytest.raises(ValueError, match="whole shots"):
        build_decoder("pymatching", circuit()[0], predecoder=CONFIG, sliding=(2, 2))
