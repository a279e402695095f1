"""The isolated-pair rule: nothing is lost, and it is what its one sentence says."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_decoder.ising.circuit import memory_circuit
from gpu_decoder.ising.config import PredecoderConfig, build_predecoder
from gpu_decoder.ising.geometry import geometry
from gpu_decoder.ising.noise import IsingScalar
from gpu_decoder.ising.pair_rule import PairRule
from gpu_decoder.ising.pipeline import IsingDecoder
from gpu_decoder.ising.predecoder import Predecoded
from gpu_decoder.protocol import Backend, Precision, U8Array
from hil.seeds import generator


@lru_cache
def rule() -> PairRule:
    circuit = memory_circuit(geometry(3, "XV"), 3, "X", IsingScalar(0.01))
    return PairRule(str(circuit.detector_error_model(decompose_errors=True)))


def pack(bits: U8Array) -> U8Array:
    return np.packbits(bits, axis=1, bitorder="little")


def unpack(answer: Predecoded, columns: int) -> U8Array:
    return np.unpackbits(answer.residual_b8, axis=1, count=columns, bitorder="little")


def by_hand(found: PairRule, bits: U8Array) -> tuple[int, set[int]]:
    """Flip and residual of one shot, straight from the definition."""
    fired = set(np.flatnonzero(bits).tolist())
    near: dict[int, list[tuple[int, int]]] = {node: [] for node in fired}
    for (a, b), flip in zip(found.ends.tolist(), found.flips.tolist(), strict=True):
        if a in fired and b in fired:
            near[a].append((b, flip))
            near[b].append((a, flip))
    flips, left = 0, set(fired)
    for node in fired:
        if len(near[node]) == 1 and len(near[near[node][0][0]]) == 1:
            left.discard(node)
            flips += near[node][0][1] if node < near[node][0][0] else 0
    return flips & 1, left


@given(st.integers(0, 2**32), st.integers(0, 20), st.floats(0, 0.5))
@settings(max_examples=120, deadline=None)
def test_as_defined(seed: int, n: int, density: float) -> None:
    n_detectors = rule().n_detectors
    bits = (generator(seed, "pairs").random((n, n_detectors)) < density).astype(np.uint8)
    packed = pack(bits)
    before = packed.copy()
    answer = rule().predecode(packed)
    np.testing.assert_array_equal(packed, before)  # the caller's
    residual = unpack(answer, n_detectors)
    for row, pre_l, left in zip(bits, answer.pre_l, residual, strict=True):
        assert (int(pre_l), set(np.flatnonzero(left).tolist())) == by_hand(rule(), row)


@given(st.integers(0, 2**32), st.integers(1, 20))
@settings(max_examples=50, deadline=None)
def test_removed_edges_explain_what_is_gone(seed: int, n: int) -> None:
    random = generator(seed, "pairs")
    bits = (random.random((n, rule().n_detectors)) < 0.15).astype(np.uint8)
    answer = rule().predecode(pack(bits))
    gone, flips = np.zeros_like(bits), np.zeros(n, np.uint8)
    for shot, edge in zip(*rule().isolated(bits), strict=True):
        gone[shot, rule().ends[edge]] ^= 1
        flips[shot] ^= rule().flips[edge]
    np.testing.assert_array_equal(unpack(answer, rule().n_detectors) ^ gone, bits)
    np.testing.assert_array_equal(answer.pre_l, flips)
    order = random.permutation(n)  # rows do not see each other
    again = rule().predecode(pack(bits[order]))
    np.testing.assert_array_equal(again.residual_b8, answer.residual_b8[order])
    np.testing.assert_array_equal(again.pre_l, answer.pre_l[order])


def test_by_example() -> None:
    found = PairRule(
        """
        error(0.1) D0 D1 L0
        error(0.1) D1 D2
        error(0.1) D3 D4
        error(0.2) D3 D4 L0
        error(0.1) D4 D5 ^ D6
        error(0.1) D5
        detector D7
        """
    )
    assert (found.backend, found.precision) == (Backend.NONE, Precision.NA)
    cases = {
        (): (0, ()),
        (0, 1): (1, ()),
        (0, 2): (0, (0, 2)),  # not neighbours
        (0, 1, 2): (0, (0, 1, 2)),  # the middle one has two
        (3, 4): (1, ()),  # parallel edges: the more probable one flips
        (0, 1, 3, 4): (0, ()),
        (4, 5): (0, ()),
        (5,): (0, (5,)),  # beside the boundary: stays
        (6, 7): (0, (6, 7)),  # in no edge between two detectors
    }
    bits = np.zeros((len(cases), 8), np.uint8)
    for row, fired in zip(bits, cases, strict=True):
        row[list(fired)] = 1
    answer = found.predecode(pack(bits))
    residual = unpack(answer, 8)
    for (fired, (flip, left)), pre_l, row in zip(
        cases.items(), answer.pre_l, residual, strict=True
    ):
        assert (pre_l, tuple(np.flatnonzero(row))) == (flip, left), fired
    assert found.fingerprint().keys() == {"predecoder", "predecoder_dem_sha256"}


def test_behind_the_interface_of_all_decoders() -> None:
    circuit = memory_circuit(geometry(3, "XV"), 3, "X", IsingScalar(0.01))
    model = str(circuit.detector_error_model(decompose_errors=True))
    config = PredecoderConfig(
        distance=3, rounds=3, basis="X", orientation="XV", rule="isolated_pair",
        backend=Backend.NONE, precision=Precision.NA,
    )  # fmt: skip
    decoder = IsingDecoder(model, build_predecoder(config, model))
    detectors, truth = circuit.compile_detector_sampler(seed=3).sample(
        400, separate_observables=True, bit_packed=True
    )
    answer = decoder.decode_batch(detectors)
    assert answer.predecoded is not None
    assert answer.predecoded.residual_events.sum() < np.bitwise_count(detectors).sum()
    assert (answer.predictions_b8 != truth).mean() < 0.2
    for row, one in zip(detectors[:50], answer.predictions_b8[:50], strict=True):
        np.testing.assert_array_equal(decoder.decode_one(row), one)


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match=r"has shape \(1, 9\), allowed \[n, 3\]"):
        rule().predecode(np.zeros((1, 9), np.uint8))
    with pytest.raises(ValueError, match="2 observables, allowed: 1"):
        PairRule("error(0.1) D0 L1")
    empty = PairRule("error(0.1) D0 L0")  # no pairs at all
    assert empty.predecode(np.ones((2, 1), np.uint8)).residual_b8.tolist() == [[1], [1]]
