"""Cost of the pre-decoder beside its network alone, measured side by side in one process.

Per distance: one shot through the whole graph (``Runtime.run``), the same runtime on the network
alone with its input ready-made, a batch through the whole graph, one shot and the batch through
the whole decoder, matching included. One thread, processor time; single shots alternate call by
call with each other, batches repeat by repeat; medians count. Values of the weights do not matter:
without a file they are drawn at random, and with thresholds of 2 the network fires seldom.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Literal

import numpy as np

from gpu_decoder.ising.circuit import memory_circuit
from gpu_decoder.ising.geometry import geometry
from gpu_decoder.ising.logits import bare_network
from gpu_decoder.ising.network import architecture
from gpu_decoder.ising.noise import Ising25
from gpu_decoder.ising.onnx_model import build_onnx, read_info
from gpu_decoder.ising.pipeline import IsingDecoder
from gpu_decoder.ising.predecoder import NetworkPredecoder
from gpu_decoder.ising.tensors import Layout
from gpu_decoder.ising.weights import Weights, find_weights, load_weights
from gpu_decoder.protocol import Backend, Precision
from gpu_decoder.runtime.build import build_runtime

DISTANCES = (5, 7, 9)
BATCH = 256
_P = 3.0e-3


@dataclass(frozen=True, slots=True)
class PredecoderRow:
    """One distance; times in microseconds of processor time per shot.

    ``ratio`` = whole graph / network alone, one shot. ``gain`` = rate of the batch / rate of one
    shot at a time, whole graph; ``gain_decoder`` = the same of the whole decoder.
    """

    distance: int
    graph_us: float
    network_us: float
    ratio: float
    batch_us: float
    gain: float
    decoder_us: float
    decoder_batch_us: float
    gain_decoder: float


def bench_predecoder(
    distances: Sequence[int] = DISTANCES,
    *,
    weights: str = "",
    model_id: str = "hil-48x6",
    backend: Literal["ort_cpu", "openvino"] = "ort_cpu",
    repeats: int = 15,
) -> list[PredecoderRow]:
    """Measure all rows.

    Args:
        distances: code distances; rounds = distance, p = 0.003, basis X.
        weights: file or shipped name; empty for random weights of ``model_id``.
        model_id: architecture of the random weights.
        backend: runtime, fp32.
        repeats: alternations; the median counts.

    Raises:
        WeightsError: the weights cannot be used.
        RuntimeUnavailable: the runtime is not installed.
    """
    network = load_weights(find_weights(weights)) if weights else _random(model_id)
    return [_row(d, network, Backend[backend.upper()], repeats) for d in distances]


def _row(distance: int, weights: Weights, backend: Backend, repeats: int) -> PredecoderRow:
    layout = Layout(geometry(distance, "XV"), distance, "X")
    circuit = memory_circuit(layout.geometry, distance, "X", Ising25.from_p(_P))
    dem = circuit.detector_error_model(decompose_errors=True, approximate_disjoint_errors=True)
    shots_b8 = circuit.compile_detector_sampler(seed=3).sample(BATCH, bit_packed=True)
    dets = np.unpackbits(shots_b8, axis=1, bitorder="little", count=layout.n_detectors)
    model = build_onnx(weights, layout, 2.0, 2.0)
    runtime = build_runtime(backend, model, Precision.FP32)
    decoder = IsingDecoder(str(dem), NetworkPredecoder(runtime, read_info(model), layout))
    one, grid = dets[:1].copy(), layout.network_input(dets[:1])
    bare = bare_network(weights, layout, backend)
    single: dict[str, Callable[[], object]] = {
        "graph": lambda: runtime.run(one),
        "network": lambda: bare(grid),
        "decoder": lambda: decoder.decode_one(shots_b8[0]),
    }
    batch: dict[str, Callable[[], object]] = {
        "batch": lambda: runtime.run(dets),
        "decoder_batch": lambda: decoder.decode_batch(shots_b8),
    }
    for call in single.values():
        call()  # warms up
    times: dict[str, list[float]] = {name: [] for name in (*single, *batch)}
    calls = max(2, 4000 // distance**3)  # about the same processor time at all distances
    for _ in range(repeats):
        for _ in range(calls):
            for name, call in single.items():
                times[name].append(_spent_us(call))
        for name, call in batch.items():
            times[name].append(_spent_us(call) / BATCH)
    cost = {name: median(values) for name, values in times.items()}
    return PredecoderRow(
        distance=distance,
        graph_us=cost["graph"],
        network_us=cost["network"],
        ratio=cost["graph"] / cost["network"],
        batch_us=cost["batch"],
        gain=cost["graph"] / cost["batch"],
        decoder_us=cost["decoder"],
        decoder_batch_us=cost["decoder_batch"],
        gain_decoder=cost["decoder"] / cost["decoder_batch"],
    )


def _spent_us(call: Callable[[], object]) -> float:
    """Processor time of one call."""
    begin = time.process_time_ns()
    call()
    return (time.process_time_ns() - begin) / 1e3


def _random(model_id: str) -> Weights:
    rng, net = np.random.default_rng(3), architecture(model_id)
    layers = tuple(
        (
            (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32),
            np.zeros(shape[0], dtype=np.float32),
        )
        for shape in net.shapes
    )
    return Weights(net, layers, "fp32")


def as_data(rows: Sequence[PredecoderRow], backend: str) -> dict[str, object]:
    """JSON form of ``bench_predecoder``."""
    return {
        "bench": "predecoder",
        "backend": backend,
        "precision": "fp32",
        "threads": 1,
        "p": _P,
        "batch": BATCH,
        "rows": [asdict(row) for row in rows],
    }
