"""Streams of the loop itself: rounds, shots, syndromes, decodes.

Source of names, types and meanings: the trace schema of the project; what was added to it is
listed in ``docs/trace.md``.
"""

from __future__ import annotations

from typing import Final

from gpu_decoder.protocol import Backend, GlobalDecoder, Precision, Reason
from hil.trace.column import (
    NO_FIRST_ROW,
    Column,
    enum,
    flag,
    instant,
    observables,
    planned,
    span,
    stream,
    unsigned,
    unsigned_or_missing,
)
from hil.trace.vocabulary import BASIS, TIME_SOURCE, Dq, Status, names_of

_SHOT = unsigned("shot", "u4", "shot number, ascending")
_EPOCH = unsigned("epoch", "u4", "calibration epoch")
_STATUS = enum("status", names_of(Status), "fate of the window", 0)
_FALLBACK = enum("fallback", names_of(Reason), "why the requested chain did not answer", 0)
_DQ = Column(
    name="dq_mask", dtype="u4", long_name="data quality bits", flags=names_of(Dq), default=0
)
_LATENCY = "t_applied - t_intended of the last block of a window; one clock"
_SLACK = "deadline - t_applied; negative = missed"

ROUNDS: Final = stream(
    "rounds",
    "one row per block of a shot: n_rounds rounds and the final data readout",
    _SHOT,
    unsigned("round", "u4", "round within the shot from 0; n_rounds is the final data readout"),
    _EPOCH,
    unsigned("board_mask", "u4", "bit b: part of board b arrived in time"),
    planned("t_intended_ps", "T0 scheduled end of the round"),
    instant("t_syndrome_ps", "rack", "T1 all boards merged"),
    instant("t_tx_ps", "rack", "T2 first bit leaves the rack"),
    instant("t_rx_ps", "nic", "T3 last bit at the decoder's network port"),
    instant("t_visible_ps", "host", "T4 decoder has seen the payload"),
    instant("t_decode_start_ps", "host", "T5 window taken by a decoder"),
    instant("t_pre_end_ps", "host", "T6 pre-decoder done"),
    instant("t_decode_end_ps", "host", "T7 answer ready"),
    instant("t_reply_tx_ps", "host", "T8 correction leaves the decoder"),
    instant("t_reply_rx_ps", "rack", "T9 correction arrived at the rack"),
    instant("t_applied_ps", "rack", "T10 correction checked and in effect"),
    span("latency_ps", _LATENCY),
    _STATUS,
    _DQ,
    signal="latency_ps",
)

SHOTS: Final = stream(
    "shots",
    "one row per shot, at every record level",
    _SHOT,
    _EPOCH,
    unsigned_or_missing("noise_state", "u4", "index of the injected truth, simulation only"),
    unsigned("batch", "u4", "sampler batch: with index, regenerates the shot from the seed tree"),
    unsigned("index", "u4", "place in the sampler batch"),
    enum("basis", BASIS, "basis of the memory experiment"),
    Column(
        name="first_round_row",
        dtype="u8",
        long_name="first row of the shot in /rounds",
        sentinel=NO_FIRST_ROW,
        default=NO_FIRST_ROW,
        row_of="rounds",
    ),
    unsigned("n_rounds", "u4", "rounds of the shot without the final data readout"),
    planned("t_start_intended_ps", "scheduled start of the shot"),
    Column(
        name="detectors_b8",
        dtype="u1",
        long_name="detection events of the whole shot, stim b8 in detector order",
        units="bit",
        width="shot_detectors",
    ),
    observables("obs_true_b8", "true observable flips"),
    observables("obs_pred_b8", "observable flips of the answer that was applied, 0 if none"),
    observables("obs_ref_b8", "reference decoder on the same syndromes", optional=True),
    flag("failed", "obs_true differs from obs_pred; false with bit no_truth if unknown", None),
    span("latency_ps", _LATENCY),
    span("slack_ps", _SLACK),
    _FALLBACK,
    _STATUS,
    _DQ,
    signal="latency_ps",
)

SYNDROMES: Final = stream(
    "syndromes",
    "row-aligned with /rounds",
    unsigned("n_bits", "u2", "detectors of this block"),
    Column(
        name="detectors_b8",
        dtype="u1",
        long_name="detection events of the block, stim b8 in detector_slot order",
        units="bit",
        width="round_detectors",
    ),
)

_PRE = "pre-decoder"
DECODES: Final = stream(
    "decodes",
    "one row per answered window; a window answered twice has two rows",
    _SHOT,
    unsigned("window_first", "u4", "first round of the window"),
    unsigned("window_last", "u4", "last round of the window"),
    unsigned("request_id", "u4", "echoed by the decoder, unique within 2^32"),
    unsigned("epoch", "u4", "calibration epoch asked for"),
    unsigned("epoch_echo", "u4", "calibration epoch used by the decoder"),
    enum("backend_requested", names_of(Backend), f"runtime of the {_PRE} asked for", 0),
    enum("backend_executed", names_of(Backend), f"runtime of the {_PRE} that ran", 0),
    enum("precision_requested", names_of(Precision), f"precision of the {_PRE} asked for", 0),
    enum("precision_executed", names_of(Precision), f"precision of the {_PRE} that ran", 0),
    enum("global_requested", names_of(GlobalDecoder), "global decoder asked for"),
    enum("global_executed", names_of(GlobalDecoder), "global decoder that ran"),
    _FALLBACK,
    planned(
        "deadline_ps", "absolute deadline of the shot: T0 of its last block + decoder.deadline"
    ),
    span("slack_ps", _SLACK),
    instant("t_pre_start_ps", "host", "pre-decoder started"),
    instant("t_pre_end_ps", "host", "pre-decoder done"),
    instant("t_glob_start_ps", "host", "global decoder started"),
    instant("t_glob_end_ps", "host", "global decoder done"),
    enum("time_source", TIME_SOURCE, "where the decode times come from"),
    unsigned_or_missing("events_in", "u4", f"detection events before the {_PRE}"),
    unsigned_or_missing("events_out", "u4", f"detection events after the {_PRE}"),
    observables("pre_l_b8", f"logical frame of the {_PRE}", optional=True),
    observables("obs_pred_b8", "flips the window commits; their XOR is the shot's answer"),
    Column(
        name="weight",
        dtype="f4",
        long_name="matching weight of the (residual) syndrome",
        sentinel=float("nan"),
        default=float("nan"),
    ),
    flag("converged", "iterative decoders: converged"),
    unsigned("iters", "u2", "iterative decoders: iterations", 0),
    unsigned_or_missing("queue_depth", "u2", "windows waiting when this one was taken", "measured"),
    unsigned("device", "u1", "decoder device", 0),
    Column(
        name="sm_clock_mhz",
        dtype="u2",
        long_name="device clock when the window was taken",
        units="MHz",
        sentinel=2**16 - 1,
        default=2**16 - 1,
        volatile="measured",
    ),
    Column(
        name="throttle", dtype="u1", long_name="throttle reasons", default=0, volatile="measured"
    ),
    signal="slack_ps",
)
