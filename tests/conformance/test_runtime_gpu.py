"""The rules of ``test_runtime`` for the GPU runtimes: on a GPU where there is one.

And always on stand-ins for the driver and TensorRT, whose engines onnxruntime executes: that tests
the host code between the protocol and those libraries, and says nothing about a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from stand_ins.fake_cuda import FakeCuda
from stand_ins.fake_tensorrt import FakeTensorRt
from test_runtime import AGREEMENT, CHECKS, LAYOUT, check_answers, model, weights

from gpu_decoder.gpu.driver import Driver
from gpu_decoder.ising.onnx_model import build_onnx
from gpu_decoder.protocol import Backend, Precision
from gpu_decoder.runtime.build import build_runtime
from gpu_decoder.runtime.engine import EngineRuntime
from gpu_decoder.runtime.engine_cache import EngineCache
from gpu_decoder.runtime.protocol import Runtime
from gpu_decoder.runtime.tensorrt import TENSORRT
from gpu_decoder.runtime.tensorrt_api import Product
from gpu_decoder.runtime.tensorrt_rtx import TENSORRT_RTX

PRECISIONS = (Precision.FP32, Precision.TF32, Precision.FP16, Precision.INT8)


def held(precision: Precision) -> bytes:
    """The model that holds a precision; float32 and TF32 share one."""
    if precision == Precision.FP16:
        return build_onnx(weights(), LAYOUT, precision="fp16")
    return model(Precision.INT8 if precision == Precision.INT8 else Precision.FP32)


@pytest.fixture(
    params=[
        pytest.param((backend, precision), marks=pytest.mark.needs(name, "cuda"))
        for backend, name in (
            (Backend.TENSORRT, "tensorrt"),
            (Backend.TENSORRT_RTX, "tensorrt_rtx"),
        )
        for precision in PRECISIONS
    ],
    ids=lambda case: f"{case[0].name}-{case[1].name}".lower(),
)
def on_a_gpu(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Runtime]:
    backend, precision = request.param
    built = build_runtime(
        backend, held(precision), precision, batch=16, cache=EngineCache(tmp_path)
    )
    assert (built.backend, built.precision) == (backend, precision)
    yield built
    built.close()


def test_on_a_gpu(on_a_gpu: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    for precision in (Precision.TF32, Precision.FP16):
        monkeypatch.setitem(AGREEMENT, precision, 0.97)
    for check in CHECKS:
        check(on_a_gpu)


@pytest.mark.parametrize(
    ("product", "batch"), [(TENSORRT, 64), (TENSORRT, 7), (TENSORRT_RTX, 16)],
    ids=["tensorrt-64", "tensorrt-7", "tensorrt_rtx-16"],
)  # fmt: skip
def test_on_stand_ins(product: Product, batch: int, tmp_path: Path) -> None:
    cuda = FakeCuda()
    built = EngineRuntime(
        product, held(Precision.FP32), Precision.FP32, batch, cache=EngineCache(tmp_path),
        driver=Driver(library=cuda), trt=FakeTensorRt(cuda, rtx=product is TENSORRT_RTX),
    )  # fmt: skip
    for check in CHECKS:
        check(built)
    built.close()
    assert not +cuda.live


def test_an_engine_that_answers_wrongly_is_found(tmp_path: Path) -> None:
    cuda = FakeCuda()
    trt = FakeTensorRt(cuda)
    trt.spoil = lambda out: out ^ (np.arange(out.shape[1]) == 90).astype(np.uint8)
    built = EngineRuntime(
        TENSORRT, held(Precision.FP32), Precision.FP32, 16, cache=EngineCache(tmp_path),
        driver=Driver(library=cuda), trt=trt,
    )  # fmt: skip
    with pytest.raises(AssertionError):
        check_answers(built)
    built.close()
