"""The pre-decoder as one ONNX file: detectors in, logical flip and residual detectors out.

Contract (that of the public reference, NVIDIA/Ising-Decoding, commit 33acb15): input ``dets`` uint8
[batch, N], output ``L_and_residual_dets`` uint8 [batch, 1 + N], column 0 = flip of the observable;
opset 18, one file, only ``batch`` is dynamic. The graph is ours and small: a gather places the
detectors, the convolutions run, a second gather collects the at most seven bits whose parity each
output is. What the file was built for stands in its metadata under ``hil.*``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Final, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from gpu_decoder.ising.geometry import Basis, Orientation
from gpu_decoder.ising.network import CHANNELS
from gpu_decoder.ising.tensors import Layout
from gpu_decoder.ising.weights import Weights

ModelPrecision: TypeAlias = Literal["fp32", "fp16", "int8", "fp8"]
INPUT: Final = "dets"
OUTPUT: Final = "L_and_residual_dets"
OPSET: Final = 18
_PREFIX: Final = "hil."
_VERSION: Final = "1"


class ModelMismatchError(ValueError):
    """An ONNX model was built for something else; the message names both sides."""


@dataclass(frozen=True)
class ModelInfo:
    """What a model was built for, as stored in its metadata.

    Attributes:
        distance: d.
        rounds: T.
        basis: memory basis.
        orientation: of the code.
        threshold_data: threshold of the data channels.
        threshold_syndrome: threshold of the measurement channels.
        keep_last: see ``Layout``.
        weights_sha256: of the weights file.
        model_id: of the architecture.
        precision: number format of the convolutions in the file.
        trained_noise: noise models that the weights were trained on, as their file says, or empty.
        version: of this metadata.
    """

    distance: int
    rounds: int
    basis: Basis
    orientation: Orientation
    threshold_data: float
    threshold_syndrome: float
    keep_last: bool
    weights_sha256: str
    model_id: str
    precision: ModelPrecision
    trained_noise: str
    version: str = _VERSION

    @property
    def n_detectors(self) -> int:
        """N of the input."""
        return self.rounds * (self.distance**2 - 1)


def build_onnx(
    weights: Weights,
    layout: Layout,
    threshold_data: float = 0.0,
    threshold_syndrome: float = 0.0,
    precision: Literal["fp32", "fp16"] = "fp32",
) -> bytes:
    """Build the model of one layout.

    Args:
        weights: the network.
        layout: distance, rounds, basis, orientation, and what happens to the last round.
        threshold_data: a data bit is 1 where its logit is >= this.
        threshold_syndrome: the same for measurement bits.
        precision: number format of the convolutions; all else is exact in either.

    Returns:
        The file; equal for equal arguments.

    Raises:
        ModelMismatchError: see ``check_orientation``.
        ValueError: a threshold is not finite.
    """
    check_orientation(weights, layout)
    for name, value in (("data", threshold_data), ("syndrome", threshold_syndrome)):
        if not np.isfinite(value):
            raise ValueError(f"threshold {value!r} for {name}, allowed: a finite number")
    graph = _Graph(weights, layout, precision)
    grid = graph.place_detectors()
    logits = graph.convolutions(grid)
    graph.collect(logits, threshold_data, threshold_syndrome)
    info = ModelInfo(
        distance=layout.geometry.distance,
        rounds=layout.rounds,
        basis=layout.basis,
        orientation=layout.geometry.orientation,
        threshold_data=float(threshold_data),
        threshold_syndrome=float(threshold_syndrome),
        keep_last=layout.keep_last,
        weights_sha256=weights.sha256,
        model_id=weights.architecture.model_id,
        precision=precision,
        trained_noise=weights.metadata.get("trained_noise", ""),
    )
    return graph.model(info)


def check_orientation(weights: Weights, layout: Layout) -> None:
    """Refuse weights that name the orientation that they were trained on, if it is another one.

    Raises:
        ModelMismatchError: order of the CNOTs and edges differ, and with them what errors look
            like.
    """
    trained, wanted = weights.metadata.get("orientation"), layout.geometry.orientation
    if trained is not None and trained != wanted:
        raise ModelMismatchError(
            f"the weights were trained on orientation {trained}, the circuit has {wanted}"
        )


def build_network_onnx(weights: Weights, layout: Layout) -> bytes:
    """The convolutions alone, ``grid`` float32 [batch, 4, T, d, d] -> ``logits`` of that shape.

    For measurements of what the rest of the graph costs, and for tests.
    """
    graph = _Graph(weights, layout, "fp32")
    graph.convolutions("grid")
    return graph.bare_model()


class _Graph:
    """Nodes and constants of one model, in the order in which they run."""

    def __init__(self, weights: Weights, layout: Layout, precision: str) -> None:
        self.weights = weights
        self.layout = layout
        self.float = np.float16 if precision == "fp16" else np.float32
        self.half = precision == "fp16"
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def node(self, op: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:  # noqa: ANN401
        from onnx import helper

        self.nodes.append(helper.make_node(op, inputs, [output], name=output, **attributes))
        return output

    def constant(self, name: str, value: NDArray[Any]) -> str:
        from onnx import numpy_helper

        self.constants.append(numpy_helper.from_array(value, name))
        return name

    def place_detectors(self) -> str:
        """``dets`` -> grid of the network; presence and masked cells are constants."""
        index, is_bit = grid_sources(self.layout)
        fixed = np.zeros(self.layout.shape, dtype=self.float)
        fixed[2:] = self.layout.presence.reshape(fixed[2:].shape)
        self.node("Cast", [INPUT], "bits_in", to=1)
        self.node("Gather", ["bits_in", self.constant("cell_source", index)], "cells", axis=1)
        if self.half:
            self.node("Cast", ["cells"], "cells_half", to=10)
        shown = self.constant("cell_is_bit", is_bit[None].astype(self.float))
        self.node("Mul", ["cells_half" if self.half else "cells", shown], "shown")
        return self.node("Add", ["shown", self.constant("cell_constant", fixed[None])], "grid")

    def convolutions(self, grid: str) -> str:
        """The network, float32 or float16; extra channels of its last layer are left out."""
        x, last = grid, self.weights.architecture.layers - 1
        for k, (weight, bias) in enumerate(self.weights.layers):
            used = CHANNELS if k == last else len(bias)
            size = weight.shape[2]
            inputs = [
                x,
                self.constant(f"conv{k}_weight", weight[:used].astype(self.float)),
                self.constant(f"conv{k}_bias", bias[:used].astype(self.float)),
            ]
            out = "logits" if k == last and not self.half else f"conv{k}"
            x = self.node("Conv", inputs, out, kernel_shape=[size] * 3, pads=[size // 2] * 6)
            if k < last:
                x = self.gelu(x, f"gelu{k}")
        return self.node("Cast", [x], "logits", to=1) if self.half else x

    def gelu(self, x: str, name: str) -> str:
        """GELU, tanh form, in the nodes that onnxruntime and OpenVINO fuse into one."""
        if not any(c.name == "one" for c in self.constants):
            for label, value in (
                ("three", 3), ("cubic", 0.044715), ("scale", np.sqrt(2 / np.pi)),
                ("one", 1), ("half", 0.5),
            ):  # fmt: skip
                self.constant(label, np.array(value, dtype=self.float))
        self.node("Pow", [x, "three"], f"{name}_cube")
        self.node("Mul", [f"{name}_cube", "cubic"], f"{name}_cubic")
        self.node("Add", [x, f"{name}_cubic"], f"{name}_sum")
        self.node("Mul", [f"{name}_sum", "scale"], f"{name}_scaled")
        self.node("Tanh", [f"{name}_scaled"], f"{name}_tanh")
        self.node("Add", [f"{name}_tanh", "one"], f"{name}_plus")
        self.node("Mul", [x, "half"], f"{name}_half")
        return self.node("Mul", [f"{name}_half", f"{name}_plus"], name)

    def collect(self, logits: str, data: float, syndrome: float) -> str:
        """``logits`` and ``dets`` -> output: each bit is the parity of a few others.

        Sums stay far below 2^24 and x - 2 floor(x / 2) is exact in float32.
        """
        limits = np.array([data, data, syndrome, syndrome], dtype=np.float32)
        terms, frame = parity_terms(self.layout)
        count = int(np.prod(self.layout.shape))
        self.constant("threshold", limits.reshape(1, CHANNELS, 1, 1, 1))
        self.node("GreaterOrEqual", [logits, "threshold"], "fired")
        self.node("Cast", ["fired"], "fired_float", to=1)
        self.constant("flat", np.array([-1, count], dtype=np.int64))
        self.node("Reshape", ["fired_float", "flat"], "bits_out")
        self.constant("pad_ends", np.array([0, 0, 0, 1], dtype=np.int64))
        self.constant("zero", np.array(0, dtype=np.float32))
        self.node("Concat", ["bits_in", "bits_out"], "all_bits", axis=1)
        self.node("Pad", ["all_bits", "pad_ends", "zero"], "padded_bits")
        self.node("Gather", ["padded_bits", self.constant("residual_terms", terms)], "r", axis=1)
        self.node("Gather", ["bits_out", self.constant("frame_terms", frame)], "f", axis=1)
        self.constant("axis", np.array([1], dtype=np.int64))
        self.node("ReduceSum", ["r", "axis"], "r_sum", keepdims=0)
        self.node("ReduceSum", ["f", "axis"], "f_sum", keepdims=1)
        self.node("Concat", ["f_sum", "r_sum"], "sums", axis=1)
        self.constant("half_f32", np.array(0.5, dtype=np.float32))
        self.constant("two", np.array(2, dtype=np.float32))
        self.node("Mul", ["sums", "half_f32"], "halves")
        self.node("Floor", ["halves"], "floors")
        self.node("Mul", ["floors", "two"], "evens")
        self.node("Sub", ["sums", "evens"], "parity")
        return self.node("Cast", ["parity"], OUTPUT, to=2)

    def model(self, info: ModelInfo) -> bytes:
        from onnx import TensorProto as Tp
        from onnx import helper

        n = info.n_detectors
        return self._pack(
            [helper.make_tensor_value_info(INPUT, Tp.UINT8, ["batch", n])],
            [helper.make_tensor_value_info(OUTPUT, Tp.UINT8, ["batch", n + 1])],
            info_as_metadata(info),
        )

    def bare_model(self) -> bytes:
        from onnx import TensorProto as Tp
        from onnx import helper

        shape: list[str | int | None] = ["batch", *self.layout.shape]
        return self._pack(
            [helper.make_tensor_value_info("grid", Tp.FLOAT, shape)],
            [helper.make_tensor_value_info("logits", Tp.FLOAT, shape)],
            {},
        )

    def _pack(self, inputs: list[Any], outputs: list[Any], metadata: dict[str, str]) -> bytes:
        from onnx import checker, helper

        graph = helper.make_graph(self.nodes, "predecoder", inputs, outputs, self.constants)
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=9,  # what opset 18 came with; newer runtimes read it
            producer_name="hil",
        )
        helper.set_model_props(model, metadata)
        checker.check_model(model)
        data: bytes = model.SerializeToString(deterministic=True)
        return data


def grid_sources(layout: Layout) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Which detector each cell of the network's input shows.

    Returns:
        int64 [4, T, d, d], index of a detector (0 where there is none), and bool of the same
        shape, true where the cell shows a detector.
    """
    g, rounds, half = layout.geometry, layout.rounds, layout.geometry.half
    index = np.full((CHANNELS, rounds, g.n_data), -1, dtype=np.int64)
    memory = 0 if layout.basis == "X" else 1
    checks = np.arange(half)
    for kind, cells in enumerate((g.x_cells, g.z_cells)):
        for t in range(1, rounds):
            index[kind, t, cells] = half + (t - 1) * 2 * half + kind * half + checks
        if kind == memory:
            index[kind, 0, cells] = checks
        else:
            index[kind, rounds - 1] = -1
    index = index.reshape(layout.shape)
    return np.maximum(index, 0), index >= 0


def parity_terms(layout: Layout) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which bits each output is the parity of.

    Positions count the N detectors, then the 4 T d d output bits of the network in C order; the
    position N + 4 T d d stands for a constant 0.

    Returns:
        int64 [7, N]: terms of each residual detector (itself, its measurement flip in this and in
        the round before, up to four data flips), and int64 [T d]: output bits of the network (from
        0) whose parity is the flip of the observable.
    """
    g, rounds, half, n = layout.geometry, layout.rounds, layout.geometry.half, layout.n_detectors
    cells_per_round = g.n_data
    none = n + CHANNELS * rounds * cells_per_round

    def bit(channel: int, t: int, cell: NDArray[np.int64]) -> NDArray[np.int64]:
        return n + (channel * rounds + t) * cells_per_round + cell

    memory = 0 if layout.basis == "X" else 1
    terms = np.full((7, n), none, dtype=np.int64)
    for kind, (cells, slots) in enumerate(((g.x_cells, g.x_slots), (g.z_cells, g.z_slots))):
        data = np.array([[-1 if q is None else q for q in row] for row in slots], dtype=np.int64)
        for t in range(rounds):
            if t == 0 and kind != memory:
                continue
            first = 0 if t == 0 else half + (t - 1) * 2 * half + kind * half
            at = first + np.arange(half)
            if kind == memory or t < rounds - 1 or layout.keep_last:
                terms[0, at] = at
            terms[1, at] = bit(2 + kind, t, cells)
            if t > 0:
                terms[2, at] = bit(2 + kind, t - 1, cells)
            terms[3:, at] = np.where(data >= 0, bit(kind, t, data), none).T
    boundary = np.arange((2 * rounds - 1) * half, n)
    terms[0, boundary] = boundary
    logical = np.flatnonzero(g.logical(layout.basis))
    frame = np.concatenate([bit(memory, t, logical) - n for t in range(rounds)])
    return terms, frame


def info_as_metadata(info: ModelInfo) -> dict[str, str]:
    """The texts that a model stores."""
    return {
        _PREFIX + key: str(int(value) if isinstance(value, bool) else value)
        for key, value in asdict(info).items()
    }


def read_info(onnx_bytes: bytes) -> ModelInfo:
    """What a model was built for.

    Raises:
        ModelMismatchError: the bytes are no ONNX model, its metadata is missing or its input and
            output are not those that its metadata implies.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load_model_from_string(onnx_bytes)
    except DecodeError as error:
        raise ModelMismatchError(f"not an ONNX model: {error}") from error
    stored = {p.key: p.value for p in model.metadata_props}
    missing = [f.name for f in fields(ModelInfo) if _PREFIX + f.name not in stored]
    if missing:
        raise ModelMismatchError(
            f"an ONNX model without the metadata {', '.join(_PREFIX + m for m in missing)}: it "
            "cannot be checked against a circuit; export one with `hil decoder export-onnx`"
        )
    info = _parse(stored)
    n = info.n_detectors
    for what, values, name, width in (
        ("input", model.graph.input, INPUT, n),
        ("output", model.graph.output, OUTPUT, n + 1),
    ):
        got = [_signature(value) for value in values]
        if got != [(name, onnx.TensorProto.UINT8, width)]:
            raise ModelMismatchError(
                f"{what} {got}, but d = {info.distance}, T = {info.rounds} give "
                f"{[(name, int(onnx.TensorProto.UINT8), width)]} (name, type, columns)"
            )
    return info


def check_info(
    info: ModelInfo,
    layout: Layout,
    threshold_data: float | None = None,
    threshold_syndrome: float | None = None,
) -> None:
    """Refuse a model that was built for another circuit or another threshold.

    Args:
        info: of the model.
        layout: of the circuit.
        threshold_data: the wanted threshold, ``None`` to take what the model has.
        threshold_syndrome: the same for measurement bits.

    Raises:
        ModelMismatchError: names every difference with both sides.
    """
    wanted: dict[str, object] = {
        "distance": layout.geometry.distance,
        "rounds": layout.rounds,
        "basis": layout.basis,
        "orientation": layout.geometry.orientation,
        "keep_last": layout.keep_last,
    }
    if threshold_data is not None:
        wanted["threshold_data"] = float(threshold_data)
    if threshold_syndrome is not None:
        wanted["threshold_syndrome"] = float(threshold_syndrome)
    wrong = [
        f"{key}: model {getattr(info, key)}, "
        f"{'asked' if key.startswith('threshold') else 'circuit'} {value}"
        for key, value in wanted.items()
        if getattr(info, key) != value
    ]
    if wrong:
        raise ModelMismatchError("the model was built for something else: " + "; ".join(wrong))


def _signature(value: Any) -> tuple[str, int, int]:  # noqa: ANN401 - a protobuf message
    tensor = value.type.tensor_type
    dims = tensor.shape.dim
    return value.name, tensor.elem_type, dims[1].dim_value if len(dims) == 2 else -1


def _parse(stored: dict[str, str]) -> ModelInfo:
    values: dict[str, Any] = {f.name: stored[_PREFIX + f.name] for f in fields(ModelInfo)}
    try:
        for key in ("distance", "rounds"):
            values[key] = int(values[key])
        for key in ("threshold_data", "threshold_syndrome"):
            values[key] = float(values[key])
        values["keep_last"] = bool(int(values["keep_last"]))
    except ValueError as error:
        raise ModelMismatchError(f"metadata cannot be read: {error}") from error
    if values["precision"] not in get_args(ModelPrecision):
        raise ModelMismatchError(
            f"metadata precision {values['precision']!r}, "
            f"allowed: {', '.join(get_args(ModelPrecision))}"
        )
    if values["version"] != _VERSION:
        raise ModelMismatchError(f"metadata version {values['version']!r}, allowed: {_VERSION!r}")
    return ModelInfo(**values)
