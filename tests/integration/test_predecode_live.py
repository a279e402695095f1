"""Live loopback: whole shots by RPC predecode, a pre-decoder in the node, broken on purpose."""

from __future__ import annotations

import functools
import itertools
import os
from pathlib import Path

import numpy as np
import pytest

from gpu_decoder.build import build_decoder
from gpu_decoder.ising.circuit import detector_rounds, memory_circuit
from gpu_decoder.ising.config import PredecoderConfig
from gpu_decoder.ising.geometry import geometry
from gpu_decoder.ising.noise import Ising25
from gpu_decoder.protocol import Backend, DecodedBatch, Decoder, Precision, Reason
from hil.errors import NodeError
from hil.node.client import Plan, RackClient
from hil.node.config import Breakage, NodeConfig
from hil.node.shots import Answerer
from hil.timebase import PS_PER_MS, PS_PER_S, PS_PER_US, monotonic_ps
from hil.wire.predecode import Correction
from hil.wire.rpc import Status
from hil.wire.rpc_batch import (
    build_enqueue_batch,
    build_get_batch,
    ptp_from_ns_array,
    split_blocks,
)

pytestmark = [pytest.mark.live, pytest.mark.usefixtures("no_orphans")]

WEIGHTS = Path(__file__).parents[1] / "data" / "ising_e2e" / "custom16_random_fp16.safetensors"
CODE, T = geometry(5, "XV"), 8
N = 2 * T * CODE.half
WHOLE = 10
MTU = 256  # a whole shot of 24 + 192 bytes needs two packets
PREDECODER = PredecoderConfig(5, T, "X", "XV", weights=str(WEIGHTS))
BROKEN = {
    Reason.PREDECODER_ERROR: 5,
    Reason.OUTPUT_INVALID: 8,
    Reason.ENGINE_MISSING: 11,
    Reason.ENGINE_MISMATCH: 14,
    Reason.DEVICE_LOST: 17,
    Reason.FORCED: 20,
}
_pairs = itertools.count(1, 2)


@functools.cache
def experiment() -> tuple[str, np.ndarray]:
    """Detector error model and 60 packed shots; the weights are random, so many are misjudged."""
    circuit = memory_circuit(CODE, T, "X", Ising25.from_p(0.004))
    model = circuit.detector_error_model(decompose_errors=True, approximate_disjoint_errors=True)
    return str(model), circuit.compile_detector_sampler(seed=5).sample(60, bit_packed=True)


def decoded(decoder: Decoder) -> DecodedBatch:
    return decoder.decode_batch(experiment()[1])


def config(**changes: object) -> NodeConfig:
    pid, pair = os.getpid(), next(_pairs)
    blocks = detector_rounds(CODE, T)
    fields: dict[str, object] = {
        "rack_address": f"127.13.{pid % 250}.{pair}",
        "node_address": f"127.13.{pid % 250}.{pair + 1}",
        "ring_slots": 1024,  # all 600 messages: a machine that stalls must not refuse any
        "block_detectors": tuple(
            tuple(np.flatnonzero(blocks == block).tolist()) for block in range(T + 1)
        ),
        "n_observables": 1,
        "dem_text": experiment()[0],
        "primary": "pymatching",
        "predecoders": (PREDECODER,),
        "fallback": "pymatching",
        "mode": "decide",
        "deadline_ps": 2 * PS_PER_S,
        "primary_deadline_ps": PS_PER_S,
        "fallback_pred": ((0, PS_PER_MS),),
        "breakages": tuple(Breakage(reason=r, first=at) for r, at in BROKEN.items()),
        "mtu_bytes": MTU,
    }
    return NodeConfig.create(**{**fields, **changes})


def plan(first: int, start_ps: int, period_ps: int) -> Plan:
    """Shots from ``first`` on in blocks, one frame every ``period_ps``."""
    shots = experiment()[1][first:]
    sizes = np.bincount(detector_rounds(CODE, T))
    n, r = len(shots), len(sizes)
    counters = np.arange(n * (r + 1), dtype=np.int64).reshape(n, r + 1)
    t_send_ps = start_ps + counters[:, :r] * period_ps
    stamps = ptp_from_ns_array(t_send_ps // 1000)
    numbers = (counters + first * (r + 1)).astype(np.uint64)
    enqueue = build_enqueue_batch(
        split_blocks(shots, sizes), sizes, counters=numbers[:, :r], ptp_timestamps=stamps,
        board_mask=1,
    )  # fmt: skip
    get = build_get_batch(numbers[:, r], stamps[:, -1], return_size=1, board_mask=1)
    return Plan(first, enqueue, get, t_send_ps)


def test_whole_shots_and_rounds_are_answered_by_the_full_chain_or_its_fallback() -> None:
    """One session: 10 whole shots in two packets each, then 50 in blocks; six are broken."""
    model, shots = experiment()
    chain = decoded(build_decoder("pymatching", model, predecoder=PREDECODER))
    plain = decoded(build_decoder("pymatching", model)).predictions_b8
    broken = np.isin(np.arange(len(shots)), list(BROKEN.values()))
    right = np.where(broken[:, None], plain, chain.predictions_b8)
    assert (chain.predictions_b8 != plain).any(), "who answers must be seen in the answers"
    bits = np.unpackbits(shots[:WHOLE], axis=1, count=N, bitorder="little")
    with RackClient(config(predecode=True)) as rack:
        answers = [rack.predecode(row) for row in bits]
        packets = rack.counters()["link.tx"]
        (got,) = rack.stream([plan(WHOLE, monotonic_ps() + 50 * PS_PER_MS, 300 * PS_PER_US)])
        prints, counters = rack.fingerprints(), rack.close()
    for shot, (status, answer) in enumerate(answers):
        assert (status, answer) == (Status.OK, Correction(right[shot, 0], not broken[shot]))
    assert packets == 2 * WHOLE
    away = broken[WHOLE:]
    assert np.array_equal(got.path, np.where(away, Answerer.FALLBACK, Answerer.PRIMARY))
    assert np.array_equal(got.prediction_b8, right[WHOLE:])
    for reason, shot in BROKEN.items():
        assert shot < WHOLE or got.reason[shot - WHOLE] == reason
    assert got.primary_failed.tolist() == got.reason.tolist()
    assert chain.predecoded is not None
    left = np.where(away, -1, chain.predecoded.residual_events[WHOLE:])
    assert np.array_equal(got.residual_events, left)
    assert np.array_equal(got.backend, np.where(away, Backend.NONE, Backend.ORT_CPU))
    assert np.array_equal(got.precision, np.where(away, Precision.NA, Precision.FP32))
    assert counters["predecode"] == WHOLE
    assert counters["shots_fallback"] == counters["decoder_errors"] == len(BROKEN)
    assert counters["shots_primary"] == len(shots) - len(BROKEN)
    assert counters["lost"] == counters["gaps"] == counters["duplicate"] == 0
    assert "weights_sha256" in prints["primary"]
    assert "weights_sha256" not in prints["fallback"]


def test_a_backend_that_this_machine_lacks_is_refused_before_any_shot() -> None:
    backend = Backend.TENSORRT
    asked = PredecoderConfig(
        *(5, T, "X", "XV"), weights=str(WEIGHTS), backend=backend, precision=Precision.FP16
    )
    with pytest.raises(NodeError, match=f"(?i){backend.name}") as info:
        RackClient(config(predecoders=(asked,)))
    assert info.value.exit_code == 3
