"""Stamp file, configuration, decode worker and process entry of the node."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from multiprocessing import Pipe
from pathlib import Path

import numpy as np
import pytest
import stim
import typer

from gpu_decoder.build import build_decoder
from gpu_decoder.protocol import Reason
from gpu_decoder.runtime.protocol import EngineError
from hil.cli.node import serve
from hil.errors import NodeError, UsageError
from hil.node import worker
from hil.node.config import Delays, NodeConfig
from hil.node.endpoints import slot_bytes
from hil.node.server import main
from hil.node.shots import Start
from hil.node.stamps import StampReader, StampWriter, create_stamp_file
from hil.node.worker import (
    OutputInvalidError,
    WorkerProcess,
    WorkerSetup,
    checked,
    hold_until_ps,
    reason_of,
)
from hil.timebase import MISSING_PS, PS_PER_MS, PS_PER_US, monotonic_ps

FIELDS: dict[str, object] = {
    "rack_address": "127.0.0.2",
    "node_address": "127.0.0.1",
    "ring_slots": 8,
    "block_detectors": ((0,), (1, 2)),
    "n_observables": 9,
    "dem_text": "",
    "primary": "pymatching",
    "mode": "decide",
    "deadline_ps": 100,
}
DECIDE = {"fallback": "pymatching", "primary_deadline_ps": 50, "fallback_pred": ((0, 1),)}


@pytest.fixture
def stamps() -> Iterator[tuple[StampWriter, StampReader]]:
    path = create_stamp_file(8, 4, 2)
    writer, reader = StampWriter(path), StampReader(path)
    path.unlink()
    yield writer, reader
    writer.close()
    reader.close()


def test_rows_are_found_by_their_full_number(stamps: tuple[StampWriter, StampReader]) -> None:
    writer, reader = stamps
    writer.frame(3, 30, 31)
    writer.frame(12, 120, 121)
    rows, there = reader.frames(np.array([3, 4, 12, 20]))
    assert there.tolist() == [True, False, True, False], "20 shares the row of 12 and 4"
    assert rows["t_visible_ps"][there].tolist() == [31, 121]


def test_a_row_of_a_later_generation_is_missing_never_wrong(
    stamps: tuple[StampWriter, StampReader],
) -> None:
    writer, reader = stamps
    writer.shot(1, {"t_reply_tx_ps": 5, "path": 1})
    writer.shot(5, {"t_reply_tx_ps": 9})
    rows, there = reader.shots(np.array([1, 5]))
    assert there.tolist() == [False, True]
    assert rows["path"][1] == 0, "no field of the earlier generation shines through"
    assert rows["primary_end_ps"][1] == MISSING_PS


def test_a_half_written_row_is_missing(stamps: tuple[StampWriter, StampReader]) -> None:
    writer, reader = stamps
    seen: list[bool] = []

    class Spy(dict[str, object]):
        def get(self, key: str, default: object = None) -> object:  # type: ignore[override]
            seen.append(bool(reader.shots(np.array([2]))[1][0]))
            return super().get(key, default)

    for _ in range(2):
        writer.shot(2, Spy(path=1))
    assert reader.shots(np.array([2]))[1].all()
    assert len(seen) > 20
    assert not any(seen)


def test_predictions_travel_as_bytes(stamps: tuple[StampWriter, StampReader]) -> None:
    writer, reader = stamps
    writer.shot(0, {"primary_prediction_b8": np.array([1, 2], np.uint8)})
    rows, _ = reader.shots(np.array([0]))
    assert rows["primary_prediction_b8"].tolist() == [[1, 2]]
    assert rows["fallback_prediction_b8"].tolist() == [[0, 0]]


def test_a_stamp_file_that_does_not_fit_is_refused_and_removed() -> None:
    with pytest.raises(NodeError, match="no room") as caught:
        create_stamp_file(1 << 50, 1 << 50, 1)
    assert not Path(caught.value.where).exists()


def test_a_foreign_file_is_not_a_stamp_file(tmp_path: Path) -> None:
    path = tmp_path / "stamps"
    path.write_bytes(bytes(4096))
    with pytest.raises(NodeError, match="not a stamp file"):
        StampReader(path)


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"rack_address": "10.0.0.1"}, "rack_address"),
        ({"node_address": "localhost"}, "node_address"),
        ({"node_address": "127.0.0.2"}, "node_address"),
        ({"primary": "oracle"}, "primary"),
        ({"fallback": "oracle"}, "fallback"),
        ({"ring_slots": 4097}, "ring_slots"),
        ({"epoch": 1 << 32}, "epoch"),
        ({"block_detectors": ((0,), (0, 1))}, "block_detectors"),
        ({"block_detectors": ((0, 1), ())}, "block_detectors"),
        ({"block_detectors": ()}, "block_detectors"),
        ({**DECIDE, "primary_deadline_ps": 100}, "primary_deadline_ps"),
        ({**DECIDE, "primary_deadline_ps": None}, "primary_deadline_ps"),
        ({**DECIDE, "fallback_pred": ()}, "fallback_pred"),
        ({"surprise": 1}, "surprise"),
        ({"delays": {"from_shot": {"apply": 1}}}, "delays.from_shot.apply"),
    ],
)
def test_a_bad_configuration_names_the_field(changes: dict[str, object], where: str) -> None:
    with pytest.raises(UsageError) as caught:
        NodeConfig.create(**{**FIELDS, **changes})
    assert caught.value.where.startswith(where)


def test_a_configuration_survives_json() -> None:
    made = NodeConfig.create(**{**FIELDS, **DECIDE, "delays": {"stalls_ps": {3: 5}}})
    assert NodeConfig.from_json(made.model_dump_json()) == made
    assert (made.n_detectors, made.n_blocks, made.messages_per_shot) == (3, 2, 3)
    assert made.prediction_bytes == 2
    assert slot_bytes(made) == 128
    with pytest.raises(UsageError):
        NodeConfig.from_json("{}")


def test_delays_begin_at_their_shot() -> None:
    delays = Delays(queue_ps=7, reply_ps=5, from_shot={"queue": 3})
    assert [delays.of("queue", shot) for shot in (2, 3)] == [0, 7]
    assert [delays.of("reply", shot) for shot in (0, 9)] == [5, 5]
    assert delays.of("uplink", 9) == 0


@pytest.mark.parametrize("line", ["", "no json", "{}"])
def test_a_bad_launch_line_ends_the_process_with_3(
    line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(line) == 3
    out = capsys.readouterr()
    assert "error" in json.loads(out.out)
    assert out.err


def test_the_command_reads_its_launch_line_from_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "launch.json"
    path.write_text("{}")
    with pytest.raises(typer.Exit) as stop:
        serve(config=str(path))
    assert stop.value.exit_code == 3
    assert "config" in json.loads(capsys.readouterr().out)["error"]
    with pytest.raises(UsageError, match="cannot be read"):
        serve(config=str(tmp_path / "missing"))


def model() -> str:
    circuit = stim.Circuit.generated(
        "repetition_code:memory", distance=3, rounds=2, before_measure_flip_probability=0.1
    )
    return str(circuit.detector_error_model(decompose_errors=True))


def test_a_worker_decodes_stalls_reports_and_ends_with_its_pipe() -> None:
    setup = WorkerSetup("pymatching", (model(),), 6, 1)
    worker = WorkerProcess(setup)
    try:
        ready = worker.wait_ready(60)
        assert (ready["decoder"], ready["kind"]) == ("pymatching", "1")
        truth = build_decoder("pymatching", model())
        for shot, byte in enumerate((0b000001, 0b000011, 0b100000)):
            extra_ps = shot * 3 * PS_PER_MS
            worker.start(
                Start(fallback=False, shot=shot, detectors_b8=bytes([byte]), extra_ps=extra_ps)
            )
            assert worker.busy
            answer = worker.receive()
            assert not worker.busy
            assert (answer.shot, answer.error) == (shot, "")
            assert answer.prediction == truth.decode_one(np.array([byte], np.uint8)).tobytes()
            assert answer.end_ps - answer.start_ps >= extra_ps
        worker.start(Start(fallback=False, shot=9, detectors_b8=b"\0\0", extra_ps=0))
        answer = worker.receive()
        assert (answer.shot, answer.prediction) == (9, b"")
        assert "ValueError" in answer.error
    finally:
        begun = time.monotonic()
        worker.close()
    assert time.monotonic() - begun < 2.0
    with pytest.raises(NodeError, match="died"):
        worker.receive()


def test_holding_ends_on_the_instant() -> None:
    wanted_ps = monotonic_ps() + 1500 * PS_PER_US
    hold_until_ps(wanted_ps)
    assert monotonic_ps() >= wanted_ps // 1000 * 1000


def test_a_worker_breaks_as_it_is_told_and_serves_the_next_shot() -> None:
    worker = WorkerProcess(WorkerSetup("pymatching", (model(),), 6, 1))
    try:
        worker.wait_ready(60)
        for shot, reason in enumerate((Reason.FORCED, Reason.OUTPUT_INVALID, Reason.NONE)):
            worker.start(Start(False, shot, b"\x03", 0, reason))
            answer = worker.receive()
            assert (answer.shot, answer.failed) == (shot, reason)
            assert bool(answer.prediction) == (reason is Reason.NONE)
            assert answer.chain is None
    finally:
        worker.close()


@pytest.mark.parametrize(
    "prediction",
    [
        np.zeros(2, np.uint8),
        np.zeros((1, 1), np.uint8),
        np.zeros(1, np.int64),
        np.array([0b100], np.uint8),
    ],
    ids=["two bytes", "two axes", "another type", "a bit behind the observables"],
)
def test_what_cannot_be_an_answer_is_none(prediction: np.ndarray) -> None:
    with pytest.raises(OutputInvalidError):
        checked(prediction, 2)


def test_the_reason_of_an_error() -> None:
    assert reason_of(EngineError("no engine", Reason.ENGINE_MISSING)) is Reason.ENGINE_MISSING
    assert reason_of(ValueError("no perfect matching")) is Reason.OUTPUT_INVALID
    assert reason_of(RuntimeError("the runtime broke")) is Reason.PREDECODER_ERROR


def test_a_decoder_that_fails_while_it_warms_up_is_refused_with_its_text(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> None:
        raise EngineError("no device", Reason.DEVICE_LOST)

    monkeypatch.setattr(worker, "_warm_up", fail)
    here, there = Pipe()
    here.send(WorkerSetup("pymatching", ("error(0.1) D0 L0",), 1, 1))
    worker.run(there)
    assert json.loads(here.recv_bytes()) == {"error": "EngineError: no device"}
