"""The TensorRT runtimes on stand-ins for libcuda and TensorRT: the whole host path, no GPU.

Engines are executed by onnxruntime and kernels by a CPU, so the answers can be compared; what is
tested is the host code: order of calls, fixed addresses, captured graphs, refusals.
"""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorrt_names
from stand_ins import kernel_shim, network_cases
from stand_ins.fake_cuda import ILLEGAL_ADDRESS, OUT_OF_MEMORY, FakeCuda
from stand_ins.fake_tensorrt import FakeTensorRt

from gpu_decoder.gpu.driver import Attribute, Driver, DriverError
from gpu_decoder.gpu.memory import ReceiveMemory
from gpu_decoder.gpu.slot_predecoder import SlotPredecoder
from gpu_decoder.gpu.slots import Piece, detector_table
from gpu_decoder.ising.onnx_model import ModelMismatchError
from gpu_decoder.protocol import Backend, Precision, Reason
from gpu_decoder.runtime import tensorrt_api as api
from gpu_decoder.runtime.build import build_runtime
from gpu_decoder.runtime.engine import EngineRuntime
from gpu_decoder.runtime.engine_cache import EngineCache
from gpu_decoder.runtime.ort import OrtRuntime
from gpu_decoder.runtime.protocol import EngineError, RuntimeUnavailable
from gpu_decoder.runtime.tensorrt import TENSORRT
from gpu_decoder.runtime.tensorrt_rtx import TENSORRT_RTX

LAYOUT = network_cases.layout()
NAMES = Path(__file__).parents[1] / "data" / "tensorrt" / "classic_11_4_names.json"
N = LAYOUT.n_detectors


class Bench:
    """A fake machine with an empty engine cache."""

    def __init__(self, folder: Path, release: int = 11, shim: ctypes.CDLL | None = None) -> None:
        self.cuda = FakeCuda(shim)
        self.trt = FakeTensorRt(self.cuda, release)
        self.cache = EngineCache(folder)

    def runtime(
        self, precision: Precision = Precision.FP32, batch: int = 4, model: str = "fp32"
    ) -> EngineRuntime:
        return EngineRuntime(
            TENSORRT, network_cases.model(model), precision, batch, cache=self.cache,
            driver=Driver(library=self.cuda), trt=self.trt,
        )  # fmt: skip


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "engines")


def shots(n: int, seed: int = 1) -> np.ndarray:
    dets = (np.random.default_rng(seed).random((n, N)) < 0.2).astype(np.uint8)
    dets[:, N - LAYOUT.geometry.half :] = 0
    return dets


def test_answers_are_those_of_the_model_for_any_number_of_shots(bench: Bench) -> None:
    reference = OrtRuntime(network_cases.model())
    runtime = bench.runtime()
    assert (runtime.backend, runtime.precision, runtime.n_inputs) == (
        Backend.TENSORRT, Precision.FP32, N
    )  # fmt: skip
    dets = shots(11)
    for n in (1, 3, 4, 5, 11):
        assert np.array_equal(runtime.run(dets[:n]), reference.run(dets[:n]))
    first = runtime.run(dets[:2])
    runtime.run(dets[5:7])
    assert np.array_equal(first, reference.run(dets[:2])), "the answer is a copy"
    with pytest.raises(ValueError, match=f"allowed: uint8 \\[n, {N}\\]"):
        runtime.run(dets[:, :-1].copy())
    runtime.close()
    runtime.close()
    with pytest.raises(EngineError, match="closed"):
        runtime.run(dets)
    assert not +bench.cuda.live


def test_one_capture_after_the_first_use_then_only_launches(bench: Bench) -> None:
    runtime = bench.runtime()
    calls = bench.cuda.calls
    assert calls.index("first use") < calls.index("cuStreamBeginCapture_v2")
    assert calls.count("cuStreamCreate") == calls.count("cuStreamBeginCapture_v2") == 1
    before = len(calls)
    runtime.run(shots(8))
    assert calls[before:] == ["cuGraphLaunch", "cuStreamSynchronize"] * 2
    runtime.close()


@pytest.mark.parametrize("release", [10, 11])
def test_flags_suit_the_release_and_the_profile_the_batch(tmp_path: Path, release: int) -> None:
    bench = Bench(tmp_path, release)
    bench.runtime(batch=4).close()
    ((network, config),) = bench.trt.built
    flags = bench.trt.NetworkDefinitionCreationFlag
    wanted = {flag.name for flag in flags if network.flags >> flag & 1}
    assert wanted == ({"EXPLICIT_BATCH", "STRONGLY_TYPED"} if release == 10 else {"STRONGLY_TYPED"})
    assert config.profiles[0].shapes == {"dets": ((1, N), (4, N), (4, N))}
    assert config.on == set(), "FP32 is not TF32, and the number format lies in the model"


@pytest.mark.parametrize(
    "precision", [Precision.FP32, Precision.TF32, Precision.FP16, Precision.INT8]
)
def test_what_executes_is_what_the_network_holds(bench: Bench, precision: Precision) -> None:
    held = "fp32" if precision == Precision.TF32 else precision.name.lower()
    runtime = bench.runtime(precision, model=held)
    assert runtime.precision == precision
    ((_, config),) = bench.trt.built
    assert config.on == ({"TF32"} if precision == Precision.TF32 else set())
    facts = runtime.fingerprint()
    assert facts["precision"] == precision.name.lower()
    assert facts["runtime_device"] == "Fake GPU (compute capability 8.9)"
    assert {"runtime", "runtime_version", "runtime_driver", "engine_sha256"} < facts.keys()
    runtime.close()
    for other in ("fp32", "fp16", "int8"):
        if other != held:
            with pytest.raises(
                EngineError, match=f"{precision.name} was asked .* {other.upper()}"
            ) as e:
                bench.runtime(precision, model=other)
            assert e.value.reason == Reason.ENGINE_MISMATCH
    assert not +bench.cuda.live


def test_an_engine_is_built_once_and_kept_by_all_that_matters(bench: Bench) -> None:
    bench.runtime().close()
    bench.runtime().close()
    assert len(bench.trt.built) == 1
    bench.runtime(batch=2).close()
    bench.cuda.name = b"Other GPU"
    bench.runtime().close()
    bench.trt.__version__ = "11.1"
    bench.runtime().close()
    assert len(bench.trt.built) == 4
    file = max(bench.cache.folder.iterdir(), key=lambda f: f.stat().st_mtime_ns)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(EngineError, match=r"its header says .* remove the file") as seen:
        bench.runtime()
    assert seen.value.reason == Reason.ENGINE_MISMATCH
    assert len(bench.trt.built) == 4, "a damaged engine is not silently built anew"


def test_an_engine_that_cannot_be_kept_is_said(bench: Bench, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    bench.cache = EngineCache(blocked / "below")
    with pytest.raises(EngineError, match=r"cannot be kept in .*below: .*set XDG_CACHE_HOME"):
        bench.runtime()
    assert not +bench.cuda.live


@pytest.mark.parametrize(
    ("change", "text", "reason"),
    [
        ({"no_engine": True}, "built no engine: no tactic", Reason.ENGINE_MISSING),
        ({"refuse": True}, "is refused: serialization version", Reason.ENGINE_MISMATCH),
        ({"no_context": True}, "no execution context", Reason.ENGINE_MISSING),
        ({"lie": 1}, "the engine has .* the model needs", Reason.ENGINE_MISMATCH),
    ],
)
def test_each_refusal_of_tensorrt_is_named_and_frees_all(
    bench: Bench, change: dict[str, object], text: str, reason: Reason
) -> None:
    vars(bench.trt).update(change)
    with pytest.raises(EngineError, match=text) as seen:
        bench.runtime()
    assert seen.value.reason == reason
    assert not +bench.cuda.live


@pytest.mark.parametrize(
    "call",
    ["cuMemAlloc_v2", "cuMemHostAlloc", "cuStreamBeginCapture_v2", "cuGraphInstantiateWithFlags"],
)  # fmt: skip
def test_a_driver_call_that_fails_while_opening_frees_all(bench: Bench, call: str) -> None:
    bench.cuda.fail[call] = OUT_OF_MEMORY
    with pytest.raises(DriverError, match=call):
        bench.runtime()
    assert not +bench.cuda.live


def test_a_gpu_that_fails_in_a_run_is_an_engine_error(bench: Bench) -> None:
    runtime = bench.runtime()
    bench.cuda.fail["cuStreamSynchronize"] = ILLEGAL_ADDRESS
    with pytest.raises(EngineError, match="the GPU failed: cuStreamSynchronize") as seen:
        runtime.run(shots(1))
    assert seen.value.reason == Reason.PREDECODER_ERROR
    runtime.close()


def test_a_runtime_is_built_by_the_name_of_its_backend(bench: Bench) -> None:
    options = {"cache": bench.cache, "driver": Driver(library=bench.cuda), "trt": bench.trt}
    runtime = build_runtime(
        Backend.TENSORRT, network_cases.model(), Precision.FP32, threads=4, batch=3, **options
    )
    assert runtime.fingerprint()["runtime"] == "tensorrt"
    assert runtime.fingerprint()["runtime_batch"] == "3"
    runtime.close()


# --- asking for what is not there -------------------------------------------------------------


def test_neither_product_takes_the_place_of_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    there = FakeTensorRt(FakeCuda(), rtx=True)
    for name in ("tensorrt_rtx", "tensorrt_rtx_bindings"):
        monkeypatch.setitem(sys.modules, name, there)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    api.load.cache_clear()
    with pytest.raises(RuntimeUnavailable, match=r"TensorRT is not usable here: import tensorrt: "):
        build_runtime(Backend.TENSORRT, network_cases.model(), Precision.FP16)
    assert api.load(TENSORRT_RTX) is there
    monkeypatch.setitem(sys.modules, "tensorrt", FakeTensorRt(FakeCuda()))
    for name in ("tensorrt_rtx", "tensorrt_rtx_bindings"):
        monkeypatch.setitem(sys.modules, name, None)
    api.load.cache_clear()
    with pytest.raises(RuntimeUnavailable, match=r"TensorRT-RTX is not usable .*extra gpu"):
        build_runtime(Backend.TENSORRT_RTX, network_cases.model(), Precision.FP16)
    api.load.cache_clear()


def test_a_product_without_a_driver_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpu_decoder.gpu.driver.LIBRARY", "libabsent.so.1")
    trt = FakeTensorRt(FakeCuda(), rtx=True)
    for backend, name in ((Backend.TENSORRT, "tensorrt"), (Backend.TENSORRT_RTX, "tensorrt_rtx")):
        monkeypatch.setitem(sys.modules, name, trt)
        api.load.cache_clear()
        with pytest.raises(RuntimeUnavailable, match=r"no NVIDIA driver: libabsent.so.1"):
            build_runtime(backend, network_cases.model(), Precision.FP32)
    api.load.cache_clear()


def test_a_release_without_a_name_is_refused_by_that_name(monkeypatch: pytest.MonkeyPatch) -> None:
    trt = FakeTensorRt(FakeCuda())
    assert api.missing_names(trt, TENSORRT) == []
    del trt.Builder.create_optimization_profile
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    api.load.cache_clear()
    with pytest.raises(
        RuntimeUnavailable, match=r"11.0 lacks Builder.create_optimization_profile:"
    ):
        api.load(TENSORRT)
    assert "ComputeCapability.CURRENT" in api.missing_names(trt, TENSORRT_RTX)
    api.load.cache_clear()


def test_classic_tensorrt_has_every_name_we_use() -> None:
    """As read from the binary of release 11.4 (tests/data/tensorrt)."""
    recorded = json.loads(NAMES.read_text())
    assert tensorrt_names.used() <= set(recorded["found"])
    assert set(recorded["absent"]) == set(tensorrt_names.NOT_CLASSIC)


def test_a_gpu_that_tensorrt_rtx_does_not_know_is_named(tmp_path: Path) -> None:
    cuda = FakeCuda()
    trt = FakeTensorRt(cuda, rtx=True)
    arguments = (TENSORRT_RTX, network_cases.model(), Precision.FP32)
    options = {"cache": EngineCache(tmp_path), "trt": trt}
    EngineRuntime(*arguments, driver=Driver(library=cuda), **options).close()
    assert trt.built[0][1].aim == "SM89"
    trt.no_capture = True
    with pytest.raises(EngineError, match="cannot be captured"):
        EngineRuntime(*arguments, driver=Driver(library=cuda), **options)
    cuda.attributes[Attribute.COMPUTE_CAPABILITY_MAJOR] = 9
    cuda.attributes[Attribute.COMPUTE_CAPABILITY_MINOR] = 0
    with pytest.raises(RuntimeUnavailable, match=r"does not know SM90; .* backend tensorrt"):
        EngineRuntime(*arguments, driver=Driver(library=cuda), **options)
    assert not +cuda.live


# --- from messages to residual bits -----------------------------------------------------------

SIZES = (8, N - 8)
AT = np.array([[0, 4096], [64, 8192], [128, 256]], dtype=np.uint64)


def _slots(bench: Bench, batch: int = 2) -> tuple[ReceiveMemory, SlotPredecoder, np.ndarray]:
    """Three shots in receive memory, their detectors, and what shall treat them."""
    driver = Driver(library=bench.cuda)
    memory = ReceiveMemory(driver, 1 << 16)
    order = np.random.default_rng(0).permutation(N)
    dets = shots(3)
    record = np.empty_like(dets)
    record[:, order] = dets
    for shot in range(3):
        for at, part in zip(AT[shot], np.split(record[shot], [SIZES[0]]), strict=True):
            raw = np.packbits(part, bitorder="little").tobytes()
            ctypes.memmove(memory.address + int(at) + 56, raw, len(raw))
    table = detector_table([Piece(n, 56) for n in SIZES], order=order.tolist())
    predecoder = SlotPredecoder(
        driver, memory, table, TENSORRT, network_cases.model(), Precision.FP32, LAYOUT, batch,
        bench.cache, bench.trt,
    )  # fmt: skip
    return memory, predecoder, dets


@pytest.mark.needs("gxx", "nvrtc")
@pytest.mark.parametrize("ordering", [0, 200])
def test_messages_become_residual_bits_in_one_graph(tmp_path: Path, ordering: int) -> None:
    bench = Bench(tmp_path, shim=kernel_shim.build())
    bench.cuda.attributes[Attribute.GPU_DIRECT_RDMA_WRITES_ORDERING] = ordering
    memory, predecoder, dets = _slots(bench)
    before = len(bench.cuda.calls)
    got = predecoder.predecode_messages(AT)
    flush = [] if ordering else ["cuFlushGPUDirectRDMAWrites"]
    assert bench.cuda.calls[before:] == [*flush, "cuGraphLaunch", "cuStreamSynchronize"] * 2
    wanted = OrtRuntime(network_cases.model()).run(dets)
    assert wanted.any()
    assert np.array_equal(got.pre_l, wanted[:, 0])
    residual = np.unpackbits(got.residual_b8, axis=1, bitorder="little", count=N)
    assert np.array_equal(residual, wanted[:, 1:])
    assert (predecoder.backend, predecoder.precision) == (Backend.TENSORRT, Precision.FP32)
    predecoder.close()
    predecoder.close()
    memory.close()
    assert +bench.cuda.live == {"context": 1}


@pytest.mark.needs("gxx", "nvrtc")
def test_output_that_cannot_be_right_and_messages_elsewhere_are_refused(tmp_path: Path) -> None:
    bench = Bench(tmp_path, shim=kernel_shim.build())
    memory, predecoder, _ = _slots(bench, batch=1)
    calls, spot = [0], (0, 0)

    def spoil(out: np.ndarray) -> np.ndarray:
        calls[0] += 1
        if calls[0] == 2:
            out[0, spot[0]] = spot[1]
        return out

    bench.trt.spoil = spoil
    for where, text in (
        ((3, 2), "shot 1: a value is neither 0 nor 1"),
        ((0, 7), "shot 1: a value is neither 0 nor 1"),
        ((N, 1), "shot 1: a detector of the data readout fires"),
    ):
        calls[0], spot = 0, where
        with pytest.raises(EngineError, match=text) as seen:
            predecoder.predecode_messages(AT)
        assert seen.value.reason == Reason.OUTPUT_INVALID
    with pytest.raises(ValueError, match="the receive memory has 2097152"):
        predecoder.predecode_messages(AT + np.uint64(2097152 - 60))
    bench.cuda.fail["cuGraphLaunch"] = ILLEGAL_ADDRESS
    with pytest.raises(EngineError, match="the GPU failed: cuGraphLaunch"):
        predecoder.predecode_messages(AT)
    predecoder.close()
    with pytest.raises(EngineError, match="closed"):
        predecoder.predecode_messages(AT)
    memory.close()


@pytest.mark.needs("nvrtc")
def test_a_table_of_another_circuit_is_refused(bench: Bench) -> None:
    driver = Driver(library=bench.cuda)
    memory = ReceiveMemory(driver, 1)
    table = detector_table([Piece(N - 1, 0)])
    with pytest.raises(ModelMismatchError, match=f"forms {N - 1} detectors, the circuit has {N}"):
        SlotPredecoder(
            driver, memory, table, TENSORRT, network_cases.model(), Precision.FP32, LAYOUT,
            cache=bench.cache, trt=bench.trt,
        )  # fmt: skip


@pytest.mark.needs("gxx", "nvrtc")
@pytest.mark.parametrize("call", ["cuModuleLoadData", "cuModuleGetFunction", "cuLaunchKernel"])
def test_kernels_that_cannot_be_loaded_or_launched_free_all(tmp_path: Path, call: str) -> None:
    bench = Bench(tmp_path, shim=kernel_shim.build())
    bench.cuda.fail[call] = OUT_OF_MEMORY
    with pytest.raises(DriverError, match=call):
        _slots(bench)
    left = {kind: n for kind, n in bench.cuda.live.items() if n}
    assert left == {"context": 1, "memory": 1, "range": 1, "mapping": 1}, "the receive memory only"
