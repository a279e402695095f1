"""TensorRT-RTX builds our models ahead of time for named GPUs: a real parser and a real builder.

No engine is executed: that needs a GPU. Classic TensorRT is another product: of it only the names
are compared (``test_gpu_runtime``).
"""

from __future__ import annotations

import hashlib
import importlib
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper
from stand_ins import network_cases

from gpu_decoder.protocol import Precision, Reason
from gpu_decoder.runtime import tensorrt_api as api
from gpu_decoder.runtime.engine_build import Plan, build_plan
from gpu_decoder.runtime.protocol import EngineError, RuntimeUnavailable
from gpu_decoder.runtime.tensorrt import TENSORRT
from gpu_decoder.runtime.tensorrt_rtx import TENSORRT_RTX

pytestmark = pytest.mark.needs("tensorrt_rtx")
N = network_cases.layout().n_detectors


@lru_cache(maxsize=1)
def _rtx() -> ModuleType:
    return importlib.import_module("tensorrt_rtx_bindings")


def _build(
    model: bytes, precision: Precision, capability: tuple[int, int] = (8, 9), batch: int = 8
) -> Plan:
    return build_plan(_rtx(), TENSORRT_RTX, model, precision, batch, N, capability)


@pytest.mark.parametrize("capability", [(8, 9), (12, 0)])
def test_an_engine_is_built_twice_with_equal_bytes(capability: tuple[int, int]) -> None:
    model = network_cases.model("fp16")
    plan = _build(model, Precision.FP16, capability)
    assert (plan.precision, plan.convolutions, len(plan.data) > 10_000) == (Precision.FP16, 4, True)
    assert _build(model, Precision.FP16, capability).data == plan.data


@pytest.mark.slow
@pytest.mark.parametrize("capability", [(8, 9), (12, 0)])
def test_another_process_builds_equal_bytes(capability: tuple[int, int]) -> None:
    code = (
        "import sys, hashlib; sys.path[:0] = sys.argv[1].split(':'); import test_gpu_tensorrt as t;"
        "from stand_ins import network_cases as n; from gpu_decoder.protocol import Precision;"
        f"plan = t._build(n.model('fp16'), Precision.FP16, {capability});"
        "print(hashlib.sha256(plan.data).hexdigest())"
    )
    here = ":".join(str(Path(__file__).parents[k]) for k in range(3))
    done = subprocess.run(
        [sys.executable, "-c", code, here], capture_output=True, text=True, check=True
    )
    mine = _build(network_cases.model("fp16"), Precision.FP16, capability).data
    assert done.stdout.strip() == hashlib.sha256(mine).hexdigest()


@pytest.mark.parametrize(
    "precision", [Precision.FP32, Precision.TF32, Precision.INT8, Precision.FP8]
)
def test_the_other_number_formats_build(precision: Precision) -> None:
    held = "fp32" if precision == Precision.TF32 else precision.name.lower()
    plan = _build(network_cases.model(held), precision)
    assert (plan.precision, plan.convolutions) == (precision, 4)


@pytest.mark.parametrize(
    ("asked", "held"),
    [(Precision.FP16, "fp32"), (Precision.INT8, "fp16"), (Precision.FP32, "int8")],
)
def test_another_number_format_is_refused_with_both_sides(asked: Precision, held: str) -> None:
    with pytest.raises(
        EngineError, match=f"{asked.name} was asked for.* in {held.upper()}"
    ) as seen:
        _build(network_cases.model(held), asked)
    assert seen.value.reason == Reason.ENGINE_MISMATCH


def _edited(edit: Any) -> bytes:
    model = onnx.load_model_from_string(network_cases.model())
    edit(model.graph)
    return model.SerializeToString()


def test_a_bad_operation_is_named_by_its_node() -> None:
    def edit(graph: onnx.GraphProto) -> None:
        (node,) = (n for n in graph.node if n.name == "gelu1_tanh")
        node.op_type = "NoSuchOp"

    with pytest.raises(EngineError, match=r"gelu1_tanh.*NoSuchOp|NoSuchOp.*gelu1_tanh") as seen:
        _build(_edited(edit), Precision.FP32)
    assert seen.value.reason == Reason.ENGINE_MISSING


def test_mixed_number_formats_are_not_called_one() -> None:
    def edit(graph: onnx.GraphProto) -> None:
        (conv,) = (n for n in graph.node if n.name == "conv1")
        at = list(graph.node).index(conv)
        casts = [
            helper.make_node("Cast", [name], [f"{name}_16"], to=TensorProto.FLOAT16)
            for name in conv.input
        ]
        back = helper.make_node("Cast", ["conv1_16"], ["conv1"], to=TensorProto.FLOAT)
        conv.input[:] = [f"{name}_16" for name in conv.input]
        conv.output[:] = ["conv1_16"]
        rest = [*graph.node[:at], *casts, conv, back, *graph.node[at + 1 :]]
        del graph.node[:]
        graph.node.extend(rest)

    with pytest.raises(EngineError, match=r"cannot be stated: 3 x .*FLOAT, 1 x .*HALF"):
        _build(_edited(edit), Precision.FP32)


def test_a_gpu_that_the_product_does_not_know_is_refused() -> None:
    with pytest.raises(RuntimeUnavailable, match=r"does not know SM90; .* backend tensorrt"):
        _build(network_cases.model("fp16"), Precision.FP16, (9, 0))


def test_bytes_that_are_no_model_are_refused() -> None:
    with pytest.raises(EngineError, match="TensorRT-RTX refuses the model"):
        _build(b"no model", Precision.FP16)


def test_the_installed_module_has_every_name_we_use() -> None:
    assert api.missing_names(_rtx(), TENSORRT_RTX) == []
    assert api.missing_names(_rtx(), TENSORRT) == []
