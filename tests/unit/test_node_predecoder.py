"""A decode worker whose pre-decoder is broken: every way of breaking becomes its own reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gpu_decoder.ising.circuit import memory_circuit
from gpu_decoder.ising.geometry import geometry
from gpu_decoder.ising.noise import Ising25
from gpu_decoder.ising.onnx_model import build_onnx, read_info
from gpu_decoder.ising.pipeline import IsingDecoder
from gpu_decoder.ising.predecoder import NetworkPredecoder
from gpu_decoder.ising.tensors import Layout
from gpu_decoder.ising.weights import load_weights
from gpu_decoder.protocol import Backend, Precision, Reason, U8Array
from gpu_decoder.runtime.ort import OrtRuntime
from gpu_decoder.runtime.protocol import EngineError
from gpu_decoder.turns import TurnDecoders
from hil.node.worker import DONE, JOB, NO_CHAIN, decode

WEIGHTS = Path(__file__).parents[1] / "data" / "ising_e2e" / "custom16_random_fp16.safetensors"
CODE, T = geometry(3, "XV"), 3
LAYOUT = Layout(CODE, T, "X")
ROW_BYTES = -(-LAYOUT.n_detectors // 8)


class BrokenRuntime(OrtRuntime):
    """A runtime whose output passes through ``spoil``; it may claim to be another backend."""

    spoil: Callable[[U8Array], U8Array] = staticmethod(lambda out: out)  # type: ignore[assignment]
    claimed = Backend.ORT_CPU

    @property
    def backend(self) -> Backend:
        return self.claimed

    def run(self, dets: U8Array) -> U8Array:
        return type(self).spoil(super().run(dets))


def answer(
    spoil: Callable[[U8Array], U8Array], backend: Backend = Backend.ORT_CPU
) -> tuple[Reason, bytes, tuple[int, int, int]]:
    """What the worker sends back for one empty shot."""

    class Runtime(BrokenRuntime):
        claimed = backend

    Runtime.spoil = staticmethod(spoil)  # type: ignore[assignment]
    data = build_onnx(load_weights(WEIGHTS), LAYOUT)
    predecoder = NetworkPredecoder(Runtime(data, Precision.FP32), read_info(data), LAYOUT)
    model = memory_circuit(CODE, T, "X", Ising25.from_p(0.003)).detector_error_model(
        decompose_errors=True, approximate_disjoint_errors=True
    )
    decoder = IsingDecoder(str(model), predecoder, requested=(Backend.ORT_CPU, Precision.FP32))
    job = JOB.pack(7, 0, Reason.NONE) + bytes(ROW_BYTES)
    done = decode(TurnDecoders((decoder,), predecoded=True), job)
    shot, start, end, failed, *chain = DONE.unpack_from(done)
    assert shot == 7
    assert start <= end
    return Reason(failed), done[DONE.size :], (chain[0], chain[1], chain[2])


def raises(error: Exception) -> Callable[[U8Array], U8Array]:
    def spoil(out: U8Array) -> U8Array:
        raise error

    return spoil


def boundary_fires(out: U8Array) -> U8Array:
    out[:, -1] = 1
    return out


FAILURES: list[tuple[Callable[[U8Array], U8Array], Reason]] = [
    (raises(RuntimeError("CUDA error 700")), Reason.PREDECODER_ERROR),
    (raises(MemoryError()), Reason.PREDECODER_ERROR),
    (raises(EngineError("gone", Reason.DEVICE_LOST)), Reason.DEVICE_LOST),
    (raises(EngineError("stale", Reason.ENGINE_MISMATCH)), Reason.ENGINE_MISMATCH),
    (lambda out: out + np.uint8(2), Reason.OUTPUT_INVALID),
    (lambda out: out[:, :-1], Reason.OUTPUT_INVALID),
    (lambda out: out.astype(np.float32), Reason.OUTPUT_INVALID),  # type: ignore[return-value]
    (boundary_fires, Reason.OUTPUT_INVALID),
]


@pytest.mark.parametrize(("spoil", "reason"), FAILURES, ids=range(len(FAILURES)))
def test_a_broken_runtime_gives_a_reason_and_no_answer(
    spoil: Callable[[U8Array], U8Array], reason: Reason
) -> None:
    failed, text, chain = answer(spoil)
    assert failed is reason
    assert text, "the text of the error goes with it"
    assert chain == (0, 0, NO_CHAIN)


def test_a_sound_runtime_answers_and_says_what_it_is() -> None:
    failed, prediction, (backend, precision, left) = answer(lambda out: out)
    assert (failed, len(prediction)) == (Reason.NONE, 1)
    assert (backend, precision) == (Backend.ORT_CPU, Precision.FP32)
    assert left >= 0


def test_a_backend_that_took_the_place_of_another_is_named() -> None:
    """F28: it decodes well, so only its name gives it away."""
    _, _, (backend, _, _) = answer(lambda out: out, Backend.OPENVINO)
    assert backend == Backend.OPENVINO
