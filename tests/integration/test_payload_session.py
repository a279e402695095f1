"""The same shots as detection events and as raw measurements, through the node's state machine."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from gpu_decoder.turns import build_turns
from hil.device.circuits import CodeCircuit, surface_memory
from hil.device.measurements import measurement_layouts
from hil.device.sampler import BlockCutter, StimSampler
from hil.node.config import DetectorMap, NodeConfig
from hil.node.session import Session
from hil.node.shots import Decode, Start
from hil.timebase import PS_PER_MS
from hil.wire.rpc import EnvelopeKind
from hil.wire.rpc_batch import build_enqueue_batch, build_get_batch, split_blocks

SHOTS, SLOTS = 80, 1024


def config(models: tuple[CodeCircuit, ...], **changes: object) -> NodeConfig:
    code = models[0]
    edges = np.concatenate([[0], np.cumsum(code.block_bits)])
    fields: dict[str, object] = {
        "rack_address": "127.0.0.2",
        "node_address": "127.0.0.1",
        "ring_slots": SLOTS,
        "block_detectors": tuple(tuple(code.wire_order[a:b].tolist()) for a, b in pairwise(edges)),
        "n_observables": 1,
        "dem_text": code.dem_text,
        "more_dem_texts": tuple(model.dem_text for model in models[1:]),
        "primary": "pymatching",
        "mode": "measure",
        "deadline_ps": PS_PER_MS,
    }
    return NodeConfig.create(**{**fields, **changes})


def decoded_by(
    made: NodeConfig, bits_b8: np.ndarray, sizes: np.ndarray, envelope: EnvelopeKind
) -> np.ndarray:
    """What the session hands to the decoder: uint8 [n, ceil(D/8)]."""
    n, r, _ = bits_b8.shape
    counters = np.arange(n * (r + 1), dtype=np.uint64).reshape(n, r + 1)
    stamps = np.full((n, r), 1 << 32 | 250, np.uint64)
    enqueue = build_enqueue_batch(
        bits_b8,
        sizes,
        counters=counters[:, :r],
        ptp_timestamps=stamps,
        envelope=envelope,
        board_mask=1,
    )
    get = build_get_batch(
        counters[:, r], stamps[:, 0], return_size=1, envelope=envelope, board_mask=1
    )
    session, found, now_ps = Session(made), [], 0
    for shot in range(n):
        for block, message in enumerate([*enqueue[shot], get[shot]]):
            now_ps += 1000
            slot = int(counters[shot, block]) % SLOTS
            actions = session.message(memoryview(message.tobytes()), slot, now_ps, now_ps)
            found += [a.detectors_b8 for a in actions if isinstance(a, Start)]
        session.primary_done(shot, Decode(now_ps, now_ps, b"\0"), now_ps)
        session.reply_sent(shot, now_ps)
    assert session.counters()["shots_primary"] == n
    return np.frombuffer(b"".join(found), np.uint8).reshape(n, -1)


@pytest.mark.parametrize("bases", ["X", "Z", "ZX"])
def test_the_decoder_sees_the_same_events_whatever_the_payload_and_envelope(bases: str) -> None:
    models = tuple(surface_memory(distance=5, rounds=5, basis=b, p=0.01) for b in bases)
    layouts, cutter = measurement_layouts(models), BlockCutter(models[0])
    batch = next(StimSampler(models, 5, measurements=True).batches(SHOTS))
    assert batch.measurements_b8 is not None
    sizes = layouts[0].block_bits
    record = split_blocks(batch.measurements_b8, sizes)
    maps = tuple(DetectorMap(rows=m.rows, inverted=m.inverted) for m in layouts)
    measured = {
        "payload": "measurements",
        "block_measurements": tuple(sizes.tolist()),
        "detector_maps": maps,
    }
    plain = cutter.cut(batch.detectors_b8)
    for envelope in ("hil", "nvidia"):
        whole = {"envelope": envelope}
        events = decoded_by(config(models, **whole), plain, cutter.block_bits, envelope)
        formed = decoded_by(config(models, **whole, **measured), record, sizes, envelope)
        assert np.array_equal(events, batch.detectors_b8)
        assert np.array_equal(formed, batch.detectors_b8)
    decoder = build_turns("pymatching", [model.dem_text for model in models])
    answers = decoder.decode_batch(formed, batch.shots).predictions_b8
    errors = np.count_nonzero(answers != batch.observables_b8)
    assert batch.observables_b8.any()
    assert errors < np.count_nonzero(batch.observables_b8), "decoding helps"
