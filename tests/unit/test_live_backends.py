"""What the node says of its pre-decoder becomes columns, and another backend is a mismatch."""

from __future__ import annotations

from pathlib import Path as FilePath
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gpu_decoder.ising.config import PredecoderConfig
from gpu_decoder.protocol import Backend, Precision, PredecodeRecord, Reason
from gpu_decoder.runtime.protocol import EngineError
from hil.device.sampler import StimSampler
from hil.errors import DecoderError
from hil.node.exchange import Exchange
from hil.rack.timeline import Path
from hil.run.live import LiveRun, predecoded, told_here
from hil.run.live_config import measure_predictions
from hil.run.parts import build_circuits
from hil.run.record import Predecoded
from hil.scenario.load import load_scenario

ASKED = PredecoderConfig(5, 5, "X", "XV", weights="w")


def exchange(backend: Backend, precision: Precision) -> Exchange:
    """Three shots; the last one is not answered by the primary."""
    columns = dict.fromkeys(Exchange.__dataclass_fields__, np.zeros(3, np.int64))
    columns |= {
        "backend": np.array([backend, backend, 0], np.uint8),
        "precision": np.array([precision, precision, 0], np.uint8),
        "residual_events": np.array([4, 0, -1], np.int32),
        "path": np.array([Path.PRIMARY, Path.PRIMARY, Path.FALLBACK], np.uint8),
    }
    return Exchange(**columns)


def columns_of(backend: Backend, precision: Precision) -> Predecoded:
    got = exchange(backend, precision)
    found = predecoded((ASKED,), got.path == Path.PRIMARY, got)
    assert found is not None
    return found


def test_what_was_asked_for_and_what_ran() -> None:
    found = columns_of(Backend.ORT_CPU, Precision.FP32)
    assert found.backend_requested.tolist() == [Backend.ORT_CPU] * 2 + [Backend.NONE]
    assert found.precision_executed.tolist() == [Precision.FP32] * 2 + [Precision.NA]
    assert found.events_left.tolist() == [4, 0, -1]
    assert not found.substituted.any()


@pytest.mark.parametrize(
    ("backend", "precision"),
    [(Backend.OPENVINO, Precision.FP32), (Backend.ORT_CPU, Precision.BF16)],
)
def test_another_backend_or_precision_is_seen_on_every_answer(
    backend: Backend, precision: Precision
) -> None:
    assert columns_of(backend, precision).substituted.tolist() == [True, True, False]


def test_a_run_without_a_predecoder_has_no_such_columns() -> None:
    got = exchange(Backend.NONE, Precision.NA)
    assert predecoded((), got.path == Path.PRIMARY, got) is None


@pytest.mark.parametrize("sent", [True, False])
def test_what_ran_here_after_the_node_died_is_told_too(sent: bool) -> None:
    record = PredecodeRecord(
        *(Backend.ORT_CPU, Backend.OPENVINO, Precision.FP32, Precision.BF16), np.array([6, 7])
    )
    node = columns_of(Backend.ORT_CPU, Precision.FP32) if sent else None
    gone = np.array([False, True, True])
    found = told_here(node, record, gone)
    there = Backend.ORT_CPU if sent else Backend.NONE
    assert found.backend_executed.tolist() == [there, Backend.OPENVINO, Backend.OPENVINO]
    assert found.events_left.tolist() == [4 if sent else -1, 6, 7]
    assert found.substituted.tolist() == [False, True, True]


class Dead:
    """A broken peer: a pre-decoder whose device is gone."""

    def of(self, _shot: int) -> Dead:
        return self

    def decode_one(self, _row: Any) -> None:
        raise EngineError("no device", Reason.DEVICE_LOST)

    def decode_batch(self, _rows: Any, _shots: Any) -> None:
        raise EngineError("no device", Reason.DEVICE_LOST)


def test_a_pre_decoder_that_fails_outside_the_node_is_an_error_of_the_rig(
    scenarios: FilePath,
) -> None:
    scenario = load_scenario(scenarios / "ising_d5.yaml").scenario
    models, dead = build_circuits(scenario), SimpleNamespace(primary=Dead())
    with pytest.raises(DecoderError, match="fails before the first shot") as caught:
        measure_predictions(scenario, models, dead)  # type: ignore[arg-type]
    assert caught.value.exit_code == 3
    decoder = SimpleNamespace(on_node_lost="in_process")
    run: Any = SimpleNamespace(
        decoders=dead, scenario=SimpleNamespace(system=SimpleNamespace(decoder=decoder))
    )
    chunk: Any = SimpleNamespace(batch=next(StimSampler(models, 1).batches(3)))
    nothing: Any = None
    with pytest.raises(DecoderError, match="fails in process too") as caught:
        LiveRun._with_lost_node(run, chunk, nothing, nothing, np.array([False, True, True]), {})
    assert caught.value.where == "shots 1 to 2"
