"""What every runtime of the pre-decoder must do, run over all that can execute here.

A runtime that cannot execute on this machine has its own test of how it refuses.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from gpu_decoder.ising.geometry import ORIENTATIONS, Basis, geometry
from gpu_decoder.ising.network import architecture, forward
from gpu_decoder.ising.onnx_model import ModelMismatchError, build_network_onnx, build_onnx
from gpu_decoder.ising.quantize import quantize_int8
from gpu_decoder.ising.quantize_fp8 import quantize_fp8
from gpu_decoder.ising.tensors import Layout, threshold
from gpu_decoder.ising.weights import Weights, load_weights
from gpu_decoder.protocol import Backend, Precision, Reason, U8Array
from gpu_decoder.runtime.build import build_runtime
from gpu_decoder.runtime.ort import OrtRuntime
from gpu_decoder.runtime.protocol import EngineError, Runtime

DATA = Path(__file__).parents[1] / "data" / "ising_e2e"
LAYOUT = Layout(geometry(5, "XV"), 5, "Z")
OPENVINO = pytest.mark.needs("openvino")
EXECUTABLE = [
    pytest.param(Backend.ORT_CPU, Precision.FP32, id="ort_cpu-fp32"),
    pytest.param(Backend.ORT_CPU, Precision.INT8, id="ort_cpu-int8"),
    pytest.param(Backend.OPENVINO, Precision.FP32, id="openvino-fp32", marks=OPENVINO),
    pytest.param(Backend.OPENVINO, Precision.INT8, id="openvino-int8", marks=OPENVINO),
]
"""Runtimes that execute on any machine that has their package."""
FULL = [case for case in EXECUTABLE if case.values[1] == Precision.FP32]
AGREEMENT = {Precision.BF16: 0.97, Precision.INT8: 0.90}
"""Least share of equal bits on random weights, whose logits crowd around the threshold
(measured: int8 .933)."""


@lru_cache(maxsize=1)
def weights() -> Weights:
    return load_weights(DATA / "custom16_random_fp16.safetensors")


@lru_cache(maxsize=1)
def recorded() -> dict[str, U8Array]:
    return dict(np.load(DATA / "d5_T5_Z_XV.npz"))


@lru_cache(maxsize=2)
def model(precision: Precision) -> bytes:
    plain = build_onnx(weights(), LAYOUT)
    return quantize_int8(plain, recorded()["dets"]) if precision == Precision.INT8 else plain


@pytest.fixture(scope="module")
def runtime(request: pytest.FixtureRequest) -> Iterator[Runtime]:
    backend, precision = request.param
    built = build_runtime(backend, model(precision), precision)
    yield built
    built.close()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "runtime" in metafunc.fixturenames:
        cases = [pytest.param(c.values, id=c.id, marks=c.marks) for c in EXECUTABLE]
        metafunc.parametrize("runtime", cases, indirect=True, scope="module")


# Checks: each takes a runtime and raises AssertionError where it breaks the protocol.


def check_form(runtime: Runtime) -> None:
    """uint8 in and out, 0 and 1 only, any batch, the input untouched, the output newly made."""
    for n in (1, 3, 64):
        dets = recorded()["dets"][:n].copy()
        first = runtime.run(dets)
        np.testing.assert_array_equal(dets, recorded()["dets"][:n])
        assert first.dtype == np.uint8
        assert first.shape == (n, 1 + runtime.n_inputs)
        assert first.max() <= 1
        kept = first.copy()
        runtime.run(np.zeros_like(dets))
        np.testing.assert_array_equal(first, kept)
        first[:] = 7  # ours to write


def check_rows(runtime: Runtime) -> None:
    """A row's answer does not depend on the batch that it came in."""
    dets = recorded()["dets"]
    whole = runtime.run(dets)
    for row in (0, 17, 63):
        np.testing.assert_array_equal(runtime.run(dets[row : row + 1])[0], whole[row])
    np.testing.assert_array_equal(runtime.run(dets[5:38].copy()), whole[5:38])


def check_repeats(runtime: Runtime) -> None:
    """Equal input, equal output."""
    dets = recorded()["dets"]
    np.testing.assert_array_equal(runtime.run(dets), runtime.run(dets))


def check_refuses(runtime: Runtime) -> None:
    """Another width, dtype, rank or memory order, or no row at all, is refused by name."""
    dets = recorded()["dets"]
    for wrong in (
        dets[:, :-1].copy(),
        np.pad(dets, ((0, 0), (0, 1))),
        dets.astype(np.float32),
        dets.astype(bool),
        dets[0],
        dets[:0],
        np.asfortranarray(dets),
    ):
        with pytest.raises(ValueError, match=rf"allowed: uint8 \[n, {runtime.n_inputs}\]"):
            runtime.run(wrong)


def check_answers(runtime: Runtime) -> None:
    """The recorded bits: all of them in fp32, nearly all in less."""
    got = runtime.run(recorded()["dets"])
    share = float((got == recorded()["L_and_residual"]).mean())
    assert share >= AGREEMENT.get(runtime.precision, 1.0), share


def check_fingerprint(runtime: Runtime) -> None:
    """Names runtime, version, device, precision and model, all as text."""
    found = runtime.fingerprint()
    assert {"runtime", "runtime_version", "runtime_device", "precision", "model_sha256"} <= set(
        found
    )
    assert all(isinstance(value, str) and value for value in found.values())
    assert found["precision"] == runtime.precision.name.lower()
    assert len(found["model_sha256"]) == 64


CHECKS: list[Callable[[Runtime], None]] = [
    check_form, check_rows, check_repeats, check_refuses, check_answers, check_fingerprint,
]  # fmt: skip


@pytest.mark.parametrize("check", CHECKS)
def test_runtime(runtime: Runtime, check: Callable[[Runtime], None]) -> None:
    check(runtime)


def test_says_what_executes(request: pytest.FixtureRequest, runtime: Runtime) -> None:
    backend, precision = request.node.callspec.params["runtime"]
    assert (runtime.backend, runtime.precision) == (backend, precision)
    assert runtime.n_inputs == 120


@pytest.mark.parametrize(("backend", "precision"), EXECUTABLE)
def test_closed_twice_and_silent_afterwards(backend: Backend, precision: Precision) -> None:
    built = build_runtime(backend, model(precision), precision)
    built.close()
    built.close()
    with pytest.raises(EngineError, match="closed") as raised:
        built.run(recorded()["dets"])
    assert raised.value.reason == Reason.PREDECODER_ERROR


def random_weights(seed: int) -> Weights:
    """A small network whose widths and kernels differ; its last layer has a channel too many."""
    rng = np.random.default_rng(seed)
    net = architecture("custom", (6, 9, 5), (3, 5, 1))
    layers = tuple(
        (
            rng.normal(0, 1.4 / np.sqrt(np.prod(shape[1:])), shape).astype(np.float32),
            rng.normal(0, 0.3, shape[0]).astype(np.float32),
        )
        for shape in net.shapes
    )
    return Weights(net, layers, "fp32")


SHAPES = [(3, 2, False), (5, 3, True), (3, 5, True), (5, 2, False)]
LAYOUTS = [
    Layout(geometry(SHAPES[k % 4][0], orientation), SHAPES[k % 4][1], basis, SHAPES[k % 4][2])
    for k, (orientation, basis) in enumerate(product(ORIENTATIONS, get_args(Basis)))
]
"""Every orientation and basis, and different shapes."""


@pytest.mark.parametrize(("backend", "precision"), FULL)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_fp32_equals_the_numpy_twin(backend: Backend, precision: Precision, layout: Layout) -> None:
    """Thresholds off zero; shots with a logit within 1e-4 of them are left out."""
    rng = np.random.default_rng(5)
    network = random_weights(3)
    dets = (rng.random((40, layout.n_detectors)) < 0.2).astype(np.uint8)
    logits = forward(network.layers, layout.network_input(dets))
    margin = np.abs(logits - np.array([0.3, 0.3, -0.2, -0.2]).reshape(4, 1, 1, 1))
    clear = margin.reshape(40, -1).min(axis=1) > 1e-4
    assert clear.sum() > 20
    twin = layout.residual(dets, threshold(logits, 0.3, -0.2))
    got = build_runtime(backend, build_onnx(network, layout, 0.3, -0.2), precision).run(dets)
    np.testing.assert_array_equal(got[clear], twin[clear])


# Invariants of the graph: they hold for any network.


def constant_network(logit: float) -> Weights:
    """A network whose logits all have one value."""
    net = architecture("custom", (4,), (1,))
    zero = np.zeros(net.shapes[0], dtype=np.float32)
    return Weights(net, ((zero, np.full(4, logit, dtype=np.float32)),), "fp32")


@pytest.mark.parametrize("basis", ["X", "Z"])
@pytest.mark.parametrize("keep_last", [False, True])
def test_a_silent_network_leaves_the_detectors(basis: Basis, keep_last: bool) -> None:
    layout = Layout(geometry(5, "ZH"), 4, basis, keep_last)
    half, n = layout.geometry.half, layout.n_detectors
    dets = np.random.default_rng(1).integers(0, 2, (50, n), dtype=np.uint8)
    out = OrtRuntime(build_onnx(constant_network(-1.0), layout)).run(dets)
    expected = dets.copy()
    if not keep_last:
        start = n - 3 * half + (half if basis == "X" else 0)
        expected[:, start : start + half] = 0
    assert not out[:, 0].any()
    np.testing.assert_array_equal(out[:, 1:], expected)


def test_a_logit_on_the_threshold_counts_as_1() -> None:
    layout = Layout(geometry(3, "XV"), 3, "X")
    dets = np.zeros((1, layout.n_detectors), dtype=np.uint8)
    all_ones = np.ones((1, *layout.shape), dtype=np.uint8)
    silent, firing = dets[0], layout.residual(dets, all_ones)[0, 1:]
    assert firing.any()
    for logit, limit, expected in ((0.5, 0.5, firing), (0.5, 0.50001, silent), (0.0, 0.0, firing)):
        model = build_onnx(constant_network(logit), layout, limit, limit)
        np.testing.assert_array_equal(OrtRuntime(model).run(dets)[0, 1:], expected)


def test_detectors_that_the_network_does_not_see() -> None:
    """A readout detector passes through alone; one of the masked block changes nothing."""
    runtime = OrtRuntime(model(Precision.FP32))
    half, n = LAYOUT.geometry.half, LAYOUT.n_detectors
    dets = recorded()["dets"][:8]
    plain = runtime.run(dets)
    for i in range(half):
        flipped = dets.copy()
        flipped[:, n - half + i] ^= 1
        assert (np.argwhere(runtime.run(flipped) != plain)[:, 1] == 1 + n - half + i).all()
        assert (runtime.run(flipped) != plain).sum() == 8
        masked = dets.copy()
        masked[:, n - 3 * half + i] ^= 1  # X checks of the last round, memory basis Z
        np.testing.assert_array_equal(runtime.run(masked), plain)


def test_the_graph_is_small_and_its_bytes_repeat() -> None:
    import onnx

    first = build_onnx(weights(), LAYOUT)
    assert first == build_onnx(weights(), LAYOUT)
    nodes = onnx.load_model_from_string(first).graph.node
    bare = onnx.load_model_from_string(build_network_onnx(weights(), LAYOUT)).graph.node
    assert len(nodes) - len(bare) <= 20


# Requests that cannot be met.


@pytest.mark.parametrize("precision", [Precision.FP16, Precision.BF16, Precision.FP8])
def test_onnxruntime_refuses_what_it_would_compute_in_fp32(precision: Precision) -> None:
    data = build_onnx(weights(), LAYOUT, precision="fp16")
    with pytest.raises(EngineError, match=f"{precision.name}.*FP32") as raised:
        OrtRuntime(data, precision)
    assert raised.value.reason == Reason.ENGINE_MISMATCH


@pytest.mark.parametrize(
    "backend", [Backend.ORT_CPU, pytest.param(Backend.OPENVINO, marks=OPENVINO)]
)
@pytest.mark.parametrize(
    ("asked", "given"), [(Precision.FP32, Precision.INT8), (Precision.INT8, Precision.FP32)]
)
def test_a_model_of_another_precision_is_refused(
    backend: Backend, asked: Precision, given: Precision
) -> None:
    with pytest.raises(EngineError, match=f"{asked.name}.*{given.name}") as raised:
        build_runtime(backend, model(given), asked)
    assert raised.value.reason == Reason.ENGINE_MISMATCH


@pytest.mark.parametrize(("backend", "precision"), FULL)
@pytest.mark.parametrize("held", ["fp16", "fp8"])
def test_a_rounded_model_does_not_pass_for_fp32(
    backend: Backend, precision: Precision, held: str
) -> None:
    """A CPU would convolve its rounded numbers in float32 and report FP32."""
    plain = build_onnx(weights(), LAYOUT)
    data = (
        build_onnx(weights(), LAYOUT, precision="fp16")
        if held == "fp16"
        else quantize_fp8(plain, recorded()["dets"])
    )
    with pytest.raises(EngineError, match=f"FP32.*the model holds {held.upper()}") as raised:
        build_runtime(backend, data, precision)
    assert raised.value.reason == Reason.ENGINE_MISMATCH


@OPENVINO
def test_bf16_executes_as_such_or_is_refused() -> None:
    """Only processors with bfloat16 instructions have it; elsewhere OpenVINO would use fp32."""
    from gpu_decoder.runtime.openvino import import_openvino

    native = "BF16" in import_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if native:
        runtime = build_runtime(Backend.OPENVINO, model(Precision.BF16), Precision.BF16)
        assert runtime.precision == Precision.BF16
        check_answers(runtime)
        return
    with pytest.raises(EngineError, match=r"BF16.*FP32") as raised:
        build_runtime(Backend.OPENVINO, model(Precision.BF16), Precision.BF16)
    assert raised.value.reason == Reason.ENGINE_MISMATCH


@OPENVINO
def test_openvino_does_not_call_home() -> None:
    """Its telemetry would look up a host on import."""
    code = (
        "import os, sys\n"
        "sys.addaudithook(lambda event, _: event.startswith('socket.') and os._exit(9))\n"
        "from gpu_decoder.runtime.openvino import import_openvino; import_openvino().Core()\n"
        "assert not [m for m in sys.modules if m.startswith('openvino_telemetry')]"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("backend", "precision"), FULL)
def test_a_foreign_model_is_refused(backend: Backend, precision: Precision) -> None:
    bare = build_network_onnx(constant_network(0), LAYOUT)
    for data in (b"", b"not a model", model(Precision.FP32)[:5000], bare):
        with pytest.raises(ModelMismatchError):
            build_runtime(backend, data, precision)


@pytest.mark.parametrize(("backend", "precision"), FULL)
def test_a_damaged_graph_is_refused(backend: Backend, precision: Precision) -> None:
    import onnx

    damaged = onnx.load_model_from_string(model(Precision.FP32))
    damaged.graph.node[5].op_type = "NoSuchOperation"
    with pytest.raises(EngineError, match="cannot load the model") as raised:
        build_runtime(backend, damaged.SerializeToString(), precision)
    assert raised.value.reason == Reason.ENGINE_MISMATCH


# Broken peers: each breaks one rule, and the check of that rule must fire.


class Peer:
    """A runtime that does as another does."""

    def __init__(self) -> None:
        self.inner = OrtRuntime(model(Precision.FP32))
        self.n_inputs = self.inner.n_inputs
        self.backend, self.precision = self.inner.backend, self.inner.precision

    def run(self, dets: U8Array) -> U8Array:
        return self.inner.run(dets)

    def fingerprint(self) -> dict[str, str]:
        return self.inner.fingerprint()

    def close(self) -> None:
        self.inner.close()


class Reversed(Peer):
    def run(self, dets: U8Array) -> U8Array:
        return super().run(dets)[::-1].copy()


class OneBuffer(Peer):
    buffer = np.empty((64, 121), dtype=np.uint8)

    def run(self, dets: U8Array) -> U8Array:
        self.buffer[: len(dets)] = super().run(dets)
        return self.buffer[: len(dets)]


class WritesInput(Peer):
    def run(self, dets: U8Array) -> U8Array:
        out = super().run(dets)
        dets[:] = 0
        return out


class Wide(Peer):
    def run(self, dets: U8Array) -> U8Array:
        return super().run(dets).astype(np.int64)  # type: ignore[return-value]


class Bytes255(Peer):
    def run(self, dets: U8Array) -> U8Array:
        return super().run(dets) * np.uint8(255)


class Moody(Peer):
    calls = 0

    def run(self, dets: U8Array) -> U8Array:
        self.calls += 1
        return super().run(dets) ^ np.uint8(self.calls % 2)


class TakesAnything(Peer):
    def run(self, dets: U8Array) -> U8Array:
        rows = np.atleast_2d(dets).astype(np.uint8)
        padded = np.pad(rows, ((0, 0), (0, 1)))[:, :120]
        return super().run(np.ascontiguousarray(padded))


class OneBitWrong(Peer):
    def run(self, dets: U8Array) -> U8Array:
        out = super().run(dets)
        out[-1, -30] ^= 1
        return out


class Int8InDisguise(Peer):
    def __init__(self) -> None:
        super().__init__()
        self.inner = OrtRuntime(model(Precision.INT8), Precision.INT8)


class Nameless(Peer):
    def fingerprint(self) -> dict[str, str]:
        return {**super().fingerprint(), "runtime_version": ""}


@pytest.mark.parametrize(
    ("peer", "check"),
    [
        (Reversed, check_rows), (OneBuffer, check_form), (WritesInput, check_form),
        (Wide, check_form), (Bytes255, check_form), (Moody, check_repeats),
        (TakesAnything, check_refuses), (OneBitWrong, check_answers),
        (Int8InDisguise, check_answers), (Nameless, check_fingerprint),
    ],
)  # fmt: skip
def test_broken_peers_are_found(peer: type[Peer], check: Callable[[Runtime], None]) -> None:
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        check(peer())


def test_the_peer_that_breaks_nothing_passes() -> None:
    peer = Peer()
    for check in CHECKS:
        check(peer)
