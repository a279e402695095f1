"""Repetition code with flips of the data only: the logical error rate in closed form."""

from __future__ import annotations

import math

import pytest

from gpu_decoder.build import build_decoder
from hil.device.families import build_models
from hil.device.sampler import StimSampler
from hil.scenario.model import QpuSpec

FALSE_ALARM_RATE = 6.0e-7  # three cases, two-sided tail of |z| < 5.2
Z_LIMIT = 5.2
SHOTS = 200_000
P = 0.15


def exact(distance: int, p: float) -> float:
    """One round, perfect checks: matching is a majority vote over flips of 2p/3 per qubit.

    A depolarised qubit is flipped by X and Y. With an even distance a tie is as often right as
    wrong, since a set of flips and its complement have the same syndrome and the same weight.
    """
    q = 2 * p / 3
    flips = [math.comb(distance, k) * q**k * (1 - q) ** (distance - k) for k in range(distance + 1)]
    ties = flips[distance // 2] / 2 if distance % 2 == 0 else 0.0
    return sum(flips[distance // 2 + 1 :]) + ties


@pytest.mark.parametrize("distance", [3, 4, 5])
def test_matches_closed_form(distance: int) -> None:
    noise = {
        "model": "stim4",
        "after_clifford_depolarization": 0.0,
        "before_round_data_depolarization": P,
        "before_measure_flip_probability": 0.0,
        "after_reset_flip_probability": 0.0,
    }
    circuit = {
        "family": "stim_generated", "task": "repetition_code:memory", "distance": distance,
        "rounds": 1,
    }  # fmt: skip
    (code,) = build_models(
        QpuSpec.model_validate(
            {
                "circuit": circuit,
                "noise": noise,
                "round_period_ps": 10**6,
                "shot_period_ps": 10**9,
            }
        )
    )
    decoder = build_decoder("pymatching", code.dem_text)
    failures = 0
    for batch in StimSampler(code, 20260702).batches(SHOTS):
        predicted = decoder.decode_batch(batch.detectors_b8).predictions_b8
        failures += int((predicted != batch.observables_b8).any(axis=1).sum())
    want = exact(distance, P)
    z = (failures - SHOTS * want) / math.sqrt(SHOTS * want * (1 - want))
    assert abs(z) < Z_LIMIT
    wrong = exact(distance, 1.1 * P)  # the test would see 10 % more noise
    assert abs(failures - SHOTS * wrong) / math.sqrt(SHOTS * wrong) > Z_LIMIT
