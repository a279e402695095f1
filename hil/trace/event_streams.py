"""Streams of what happens around the loop, of bytes, and of the judgement."""

from __future__ import annotations

from typing import Final

from hil.trace.column import (
    NO_ROW,
    Column,
    enum,
    flag,
    instant,
    real,
    row_reference,
    span,
    stream,
    text,
    unsigned,
    unsigned_or_missing,
)
from hil.trace.vocabulary import (
    CALIB_KIND,
    EPOCH_REASON,
    FAULT_PHASE,
    LOG_LEVEL,
    PACKET_DIR,
    PACKET_KIND,
    VERDICT,
)

PACKETS: Final = stream(
    "packets",
    "one row per frame event on a link",
    instant("t_ps", "link", "time at that link end"),
    unsigned("link", "u1", "row of /meta/links"),
    enum("dir", PACKET_DIR, "up: rack to decoder"),
    enum("kind", PACKET_KIND, "what happened to the frame"),
    unsigned("opcode", "u1", "raw BTH opcode"),
    unsigned_or_missing("psn", "u4", "packet sequence number, 24 bit"),
    unsigned("seq", "u4", "application counter, low 32 bit"),
    unsigned("request_id", "u4", "request of the RPC"),
    Column(name="len", dtype="u4", long_name="bytes of the UDP payload", units="B"),
    row_reference("round_row", "rounds", "row of /rounds that the frame carries"),
    unsigned("payload_crc", "u4", "CRC-32 of the RPC payload", 0),
)

EPOCHS: Final = stream(
    "epochs",
    "one row per calibration epoch",
    unsigned("epoch", "u4", "epoch number"),
    Column(
        name="parent", dtype="i8", long_name="epoch it came from", sentinel=NO_ROW, default=NO_ROW
    ),
    instant("t_activated_ps", "rack", "switch instant"),
    unsigned("first_shot", "u4", "first shot of the epoch"),
    enum("reason", EPOCH_REASON, "why the epoch began"),
    text("params_sha256", 64, "SHA-256 of the believed parameters", None),
    text("dem_sha256", 64, "SHA-256 of the detector error model", None),
    text("matcher_id", 64, "identity of the matcher"),
    text("predecoder_sha256", 64, "SHA-256 of the pre-decoder file"),
    text("noise_sha256", 64, "SHA-256 of the noise description"),
    unsigned("n_detectors", "u4", "detectors"),
    unsigned("n_observables", "u2", "observables"),
    row_reference("calib_row", "calib", "row of /calib that caused it"),
    row_reference("blob_params", "blob_index", "row of /blob_index with the parameters"),
    row_reference("blob_dem", "blob_index", "row of /blob_index with the detector error model"),
)

CALIB: Final = stream(
    "calib",
    "the chain of calibration events",
    instant("t_ps", "rack", "time of the event"),
    enum("kind", CALIB_KIND, "what happened"),
    row_reference("cause_row", "calib", "row of /calib that caused this one"),
    unsigned("epoch", "u4", "calibration epoch"),
    text("target", 32, "what was looked at"),
    text("param", 32, "parameter"),
    real("before", "value before"),
    real("after", "value after"),
    real("residual", "residual of the experiment"),
    text("status", 32, "state after the event"),
    text("backend", 32, "analyst backend"),
    text("model", 64, "analyst model"),
    flag("stand_in", "the analyst was a stand-in"),
    span("latency_ps", "time that the step took"),
    row_reference("blob", "blob_index", "row of /blob_index with image, request and raw reply"),
    text("text", 96, "one line for humans"),
)

FAULTS: Final = stream(
    "faults",
    "injected faults and who noticed",
    instant("t_ps", "rack", "time of the phase"),
    text("id", 32, "name of the fault in the scenario", None),
    text("kind", 24, "kind of the fault", None),
    text("target", 64, "place of the fault"),
    enum("phase", FAULT_PHASE, "begin, end, or one frame that suffers"),
    real("value", "size of the fault in its own unit"),
    text("caught_by", 32, "detector that noticed it"),
    instant("t_caught_ps", "rack", "time it was noticed"),
    unsigned_or_missing("shots_to_catch", "u4", "shots until it was noticed", "measured"),
    unsigned_or_missing("frame", "u8", "number of the frame: up message counter, down shot"),
)

LOGS: Final = stream(
    "logs",
    "log lines; the full text is a JSONL attachment",
    instant("t_ps", "logger", "time of the line"),
    unsigned("clock_id", "u1", "clock of t_ps: 0 rack, 1 nic, 2 host", 0),
    enum("level", LOG_LEVEL, "severity"),
    text("logger", 32, "logger name"),
    text("text", 256, "message, UTF-8", None),
    flag("truncated", "the message was longer"),
    row_reference("round_row", "rounds", "row of /rounds that it is about"),
    in_content=False,
)

BLOBS: Final = stream(
    "blobs",
    "bytes of things born during the run",
    Column(name="data", dtype="u1", long_name="concatenated blobs", units="B"),
)

BLOB_INDEX: Final = stream(
    "blob_index",
    "one row per blob",
    Column(name="offset", dtype="u8", long_name="first byte in /blobs", units="B", row_of="blobs"),
    Column(name="length", dtype="u8", long_name="bytes", units="B"),
    text("sha256", 64, "SHA-256 of the bytes", None),
    text("name", 64, "name of the blob", None),
    text("mime", 32, "media type"),
)

EXPECT: Final = stream(
    "expect",
    "one row per expectation and sweep point",
    text("id", 32, "name of the expectation", None),
    text("metric", 48, "metric", None),
    text("stat", 8, "statistic of the metric"),
    text("unit", 8, "unit of the values"),
    text("point", 64, "sweep point"),
    real("limit_max", "upper limit"),
    real("limit_min", "lower limit"),
    real("marginal", "marginal band inside the limit"),
    real("measured", "measured value", "measured"),
    real("ci_low", "lower confidence bound", "measured"),
    real("ci_high", "upper confidence bound", "measured"),
    real("confidence", "confidence per look"),
    Column(name="looks", dtype="u1", long_name="looks taken", default=1, volatile="measured"),
    Column(name="n", dtype="u8", long_name="sample size", default=0, volatile="measured"),
    Column(
        name="episodes",
        dtype="u4",
        long_name="independent episodes in the sample",
        sentinel=2**32 - 1,
        default=2**32 - 1,
        volatile="measured",
    ),
    real("clock_u", "clock uncertainty added to the value", "measured"),
    enum("verdict", VERDICT, "verdict", None, "measured"),
    flag("marginal_hit", "inside the marginal band", 0, "measured"),
    Column(
        name="reason",
        dtype="S160",
        long_name="why, for humans",
        default=b"",
        volatile="measured",
    ),
    final_only=True,
)

SUMMARY: Final = stream(
    "summary",
    "one group per hop (and end_to_end): distribution of its durations",
    *(
        Column(name=name, dtype=dtype, long_name=text, units=units, volatile="measured")
        for name, dtype, text, units in (
            ("edges_ps", "i8", "bin edges", "ps"),
            ("counts", "u8", "durations per bin", "1"),
            ("values_ps", "i8", "value at the quantile", "ps"),
            ("low_ps", "i8", "lower confidence bound of the quantile", "ps"),
            ("high_ps", "i8", "upper confidence bound of the quantile", "ps"),
        )
    ),
    signal="counts",
    final_only=True,
)
SUMMARY_SCALES: Final = {
    "edges_ps": "edge",
    "counts": "bin",
    "values_ps": "quantile",
    "low_ps": "quantile",
    "high_ps": "quantile",
}
