"""Small traces for the tests of ``hil.trace``: every batch is a function of its first shot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from hil.trace.column import Column
from hil.trace.meta import TraceMeta
from hil.trace.recover import TraceExtras
from hil.trace.schema import MISSING_PS, NO_FIRST_ROW, STREAMS, Dq, Record, block, code
from hil.trace.writer import TraceWriter

N_ROUNDS = 2
BLOCKS = N_ROUNDS + 1
BLOCK_BITS = (3, 12, 3)
ROUND_PS = 1_000_000
SHOT_PS = 10_000_000
DEADLINE_PS = 9_000_000


def make_meta(**changes: Any) -> TraceMeta:
    n = sum(BLOCK_BITS)
    values: dict[str, Any] = {
        "level": "mil",
        "scenario_yaml": "schema: hil-scenario/1\n",
        "resolved": {"run": {"seed": 7}},
        "decoder": {"primary": "pymatching_corr", "window": {"mode": "shot"}},
        "noise": {"model": "stim_uniform", "p": 0.003},
        "params": {"p": 0.003},
        "circuit_stim": "H 0\nM 0\nDETECTOR rec[-1]",
        "dem": "error(0.1) D0 L0",
        "n_detectors": n,
        "n_observables": 1,
        "detector_coords": np.arange(3.0 * n).reshape(n, 3),
        "detector_round": np.repeat(np.arange(BLOCKS), BLOCK_BITS).astype(np.uint16),
        "detector_slot": np.concatenate([np.arange(b) for b in BLOCK_BITS]).astype(np.uint16),
        "round_period_ps": ROUND_PS,
        "shot_period_ps": SHOT_PS,
        "seeds": {"run": 7},
        "requested": {"primary": "pymatching_corr"},
        "executed": {"primary": "pymatching_corr"},
        "fingerprint": {"pymatching": "2"},
        "argv": ["hil", "run"],
        "host": {"name": "bench"},
        "software": {"hil": "0"},
        "git": {"dirty": False},
        "links": [{"name": "up", "mtu_bytes": 4096}, {"name": "down", "mtu_bytes": 4096}],
        "boards": [{"name": "readout0"}],
        "run_id": "00000000-0000-4000-8000-000000000000",
        "created_utc": "2026-01-01T00:00:00.000Z",
    }
    return TraceMeta(**(values | changes))


STREAMS_USED = ("decodes", "faults", "packets", "rounds", "shots", "syndromes")
META = make_meta()
WIDTHS = META.widths


def make_record(first_shot: int, n: int, *, keep: int = 1, packets: bool = True) -> Record:
    """Valid batch of ``n`` shots; every ``keep``-th one has rows in /rounds."""
    rng = np.random.default_rng([first_shot, n])
    shot = np.arange(first_shot, first_shot + n)
    kept = shot[shot % keep == 0] - first_shot
    latency = rng.integers(1_000_000, 8_000_000, n)
    t0 = shot[:, None] * SHOT_PS + (np.arange(BLOCKS) + 1) * ROUND_PS
    applied = t0[:, -1] + latency
    true = (rng.random((n, 1)) < 0.3).astype(np.uint8)
    pred = (rng.random((n, 1)) < 0.3).astype(np.uint8)
    first = np.full(n, NO_FIRST_ROW, dtype=np.uint64)
    first[kept] = np.arange(len(kept)) * BLOCKS
    record: Record = {
        "shots": block(
            "shots", n, WIDTHS, shot=shot, epoch=0, batch=first_shot, index=np.arange(n),
            basis=0, n_rounds=N_ROUNDS, t_start_intended_ps=shot * SHOT_PS,
            detectors_b8=rng.integers(0, 256, (n, WIDTHS.shot_detectors)),
            obs_true_b8=true, obs_pred_b8=pred, failed=(true != pred)[:, 0],
            first_round_row=first, latency_ps=latency,
            slack_ps=DEADLINE_PS - latency,
        ),
    }  # fmt: skip
    if len(kept):
        record |= _kept_rows(rng, kept, shot, t0, applied, pred)
    if packets:
        rows = 2
        record["packets"] = block(
            "packets", rows, WIDTHS, t_ps=shot[0] * SHOT_PS, link=0, dir=0,
            kind=code("packets", "kind", "tx"), opcode=0x2B, psn=np.arange(rows), seq=first_shot,
            request_id=first_shot, len=64, round_row=[0 if len(kept) else -1, -1],
        )  # fmt: skip
    return record


def _kept_rows(
    rng: np.random.Generator, kept: Any, shot: Any, t0: Any, applied: Any, pred: Any
) -> Record:
    m = len(kept)

    def row(per_shot: Any) -> Any:
        return np.repeat(np.asarray(per_shot)[kept], BLOCKS)

    times = t0[kept].ravel()
    latency = np.full((m, BLOCKS), MISSING_PS)
    latency[:, -1] = applied[kept] - t0[kept, -1]
    return {
        "rounds": block(
            "rounds", m * BLOCKS, WIDTHS, shot=row(shot), round=np.tile(np.arange(BLOCKS), m),
            epoch=0, board_mask=1, t_intended_ps=times, t_syndrome_ps=times + 100,
            t_tx_ps=times + 200, t_rx_ps=times + 300, t_visible_ps=times + 400,
            t_decode_start_ps=row(t0[:, -1] + 500), t_decode_end_ps=row(applied - 300),
            t_reply_tx_ps=row(applied - 200), t_reply_rx_ps=row(applied - 100),
            t_applied_ps=row(applied), latency_ps=latency.ravel(),
        ),
        "syndromes": block(
            "syndromes", m * BLOCKS, WIDTHS, n_bits=np.tile(BLOCK_BITS, m),
            detectors_b8=rng.integers(0, 256, (m * BLOCKS, WIDTHS.round_detectors)),
        ),
        "decodes": block(
            "decodes", m, WIDTHS, shot=shot[kept], window_first=0, window_last=N_ROUNDS,
            request_id=shot[kept], epoch=0, epoch_echo=0, global_requested=2, global_executed=2,
            deadline_ps=t0[kept, -1] + DEADLINE_PS, time_source=1, obs_pred_b8=pred[kept],
            slack_ps=t0[kept, -1] + DEADLINE_PS - applied[kept],
        ),
    }  # fmt: skip


def make_writer(path: Path, *, level: str = "rounds", **options: Any) -> TraceWriter:
    meta = options.pop("meta", META)
    options = {"n_rounds": N_ROUNDS, "measured": False, "streams": STREAMS_USED} | options
    return TraceWriter.create(path, meta, level=level, **options)


def write_trace(
    path: Path, records: list[Record], *, level: str = "rounds", **options: Any
) -> Path:
    extras = options.pop("extras", TraceExtras())
    with make_writer(path, level=level, **options) as writer:
        for record in records:
            writer.append(record)
        return writer.close("success", extras)


def expected(records: list[Record]) -> Record:
    """All rows as the trace must hold them: references counted from the start of the trace."""
    out: dict[str, dict[str, list[Any]]] = {"epochs": {k: [v] for k, v in _epoch0().items()}}
    rows = dict.fromkeys(STREAMS, 0) | {"epochs": 1}
    for record in records:
        for stream, columns in record.items():
            for name, values in columns.items():
                moved = _moved(STREAMS[stream].columns[name], values, rows)
                out.setdefault(stream, {}).setdefault(name, []).append(moved)
        for stream, columns in record.items():
            rows[stream] += len(next(iter(columns.values())))
    return {s: {c: np.concatenate(v) for c, v in cs.items()} for s, cs in out.items()}


def _moved(column: Column, values: Any, rows: dict[str, int]) -> Any:
    if column.row_of is None:
        return values
    moved = values + values.dtype.type(rows[column.row_of])
    return moved if column.sentinel is None else np.where(values == column.sentinel, values, moved)


def _epoch0() -> dict[str, Any]:
    return META.first_epoch()


def one_fault(phase: str = "begin") -> Record:
    return {
        "faults": block(
            "faults", 1, WIDTHS, id="stall", kind="decoder_stall",
            phase=code("faults", "phase", phase), t_ps=5, value=2.0,
        )
    }  # fmt: skip


def assert_same(got: Record, want: Record) -> None:
    """Equal streams, columns, dtypes and values; streams without rows may be absent."""
    assert {s for s in want if len(next(iter(want[s].values())))} <= set(got)
    for stream, columns in want.items():
        assert set(got[stream]) == set(columns), stream
        for name, values in columns.items():
            assert got[stream][name].dtype == values.dtype, (stream, name)
            np.testing.assert_array_equal(got[stream][name], values, err_msg=f"/{stream}/{name}")


OVERFLOW_BIT = Dq.RECORDER_OVERFLOW.mask
