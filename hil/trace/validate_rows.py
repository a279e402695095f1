"""Rules on the rows of a trace: one function per rule, vectorised, block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, TypeAlias

import numpy as np

from hil.errors import TraceError
from hil.trace.column import Array, Block
from hil.trace.findings import BadRows, Validation
from hil.trace.reader import Trace
from hil.trace.schema import MISSING_PS, NO_FIRST_ROW, STREAMS, Dq

Rule: TypeAlias = Callable[[Trace, Validation], None]

ROWS: Final = 65_536
_RACK: Final = ("t_intended_ps", "t_syndrome_ps", "t_tx_ps", "t_reply_rx_ps", "t_applied_ps")
_HOST: Final = (
    "t_visible_ps", "t_decode_start_ps", "t_pre_end_ps", "t_decode_end_ps", "t_reply_tx_ps",
)  # fmt: skip
_BACKENDS: Final = ("backend", "precision", "global")


def _blocks(trace: Trace, stream: str, *columns: str) -> Iterator[tuple[int, Block]]:
    for first in range(0, trace.rows(stream), ROWS):
        yield first, trace.stream(stream, columns, first, first + ROWS)


def _has(trace: Trace, stream: str) -> bool:
    return stream in trace.streams


def _step_free(dq_mask: Array) -> Array:
    free: Array = (dq_mask & Dq.CLOCK_STEP.mask) == 0
    return free


def shots_ascend(trace: Trace, report: Validation) -> None:
    """Shot numbers of /shots rise strictly; those of other streams never fall."""
    for stream in trace.streams:
        if stream not in STREAMS or "shot" not in STREAMS[stream].columns:
            continue
        bad, before = BadRows(), -1
        for first, rows in _blocks(trace, stream, "shot"):
            shot = rows["shot"].astype(np.int64)
            previous = np.concatenate([[before], shot[:-1]])
            falls = shot <= previous if stream == "shots" else shot < previous
            bad.add(falls, first, shot=shot, after=previous)
            before = int(shot[-1])
        if bad.count:
            report.refuse("shots-ascend", f"/{stream}/shot", "shots not ascending", bad.text)


def rounds_ascend(trace: Trace, report: Validation) -> None:
    """Within a shot the rounds of /rounds rise strictly."""
    if not _has(trace, "rounds"):
        return
    bad, last = BadRows(), (-1, -1)
    for first, rows in _blocks(trace, "rounds", "shot", "round"):
        shot, number = rows["shot"].astype(np.int64), rows["round"].astype(np.int64)
        same = shot == np.concatenate([[last[0]], shot[:-1]])
        previous = np.concatenate([[last[1]], number[:-1]])
        bad.add(same & (number <= previous), first, round=number, after=previous)
        last = int(shot[-1]), int(number[-1])
    if bad.count:
        report.refuse("rounds-ascend", "/rounds/round", "rounds not ascending", bad.text)


def windows_in_shot(trace: Trace, report: Validation) -> None:
    """Windows of /decodes lie inside their shot; within a shot they do not go back."""
    if not _has(trace, "decodes"):
        return
    bad, last = BadRows(), (-1, -1)
    for first, rows in _blocks(trace, "decodes", "shot", "window_first", "window_last"):
        shot, begin, end = (rows[c].astype(np.int64) for c in rows)
        before = np.concatenate([[last[1]], begin[:-1]])
        back = (shot == np.concatenate([[last[0]], shot[:-1]])) & (begin < before)
        outside = (end < begin) | (end > trace.n_rounds)
        bad.add(back | outside, first, window_first=begin, window_last=end)
        last = int(shot[-1]), int(begin[-1])
    if bad.count:
        report.refuse(
            "windows", "/decodes/window_first", "windows outside their shot or out of order",
            bad.text, f"rounds 0 to {trace.n_rounds}, ascending within a shot",
        )  # fmt: skip


def one_epoch_per_shot(trace: Trace, report: Validation) -> None:
    """Rows of a shot in /rounds and /decodes carry the epoch of the shot in /shots."""
    shots = trace.stream("shots", ["shot", "epoch"])
    for stream in ("rounds", "decodes"):
        if not _has(trace, stream):
            continue
        bad, orphans = BadRows(), BadRows()
        for first, rows in _blocks(trace, stream, "shot", "epoch"):
            at = np.searchsorted(shots["shot"], rows["shot"])
            at = np.minimum(at, max(0, len(shots["shot"]) - 1))
            known = (
                shots["shot"][at] == rows["shot"]
                if len(shots["shot"])
                else np.zeros(len(rows["shot"]), bool)
            )
            orphans.add(~known, first, shot=rows["shot"])
            if len(shots["shot"]):
                expected = shots["epoch"][at]
                differs = known & (rows["epoch"] != expected)
                bad.add(differs, first, shot=rows["shot"], epoch=rows["epoch"], expected=expected)
        if bad.count:
            report.refuse(
                "one-epoch", f"/{stream}/epoch", "a shot lies in two epochs", bad.text,
                "one epoch per shot",
            )  # fmt: skip
        if orphans.count:
            report.refuse("orphan-rows", f"/{stream}/shot", "no such shot in /shots", orphans.text)


def first_rows(trace: Trace, report: Validation) -> None:
    """``first_round_row`` points to the first row of that shot in /rounds, or to none."""
    bad = BadRows()
    n = trace.rows("rounds") if _has(trace, "rounds") else 0
    for first, rows in _blocks(trace, "shots", "shot", "first_round_row"):
        row = rows["first_round_row"]
        given = row != NO_FIRST_ROW
        wrong = given & (row >= n)
        here = np.flatnonzero(given & ~wrong)
        if here.size:
            low, high = int(row[here].min()), int(row[here].max())
            window = trace.stream("rounds", ["shot"], max(0, low - 1), high + 1)["shot"]
            at = (row[here] - np.uint64(max(0, low - 1))).astype(np.int64)
            wrong[here] = window[at] != rows["shot"][here]
            inner = at > 0
            wrong[here[inner]] |= window[at[inner] - 1] == rows["shot"][here[inner]]
        bad.add(wrong, first, shot=rows["shot"], first_round_row=row)
    if bad.count:
        report.refuse(
            "first-row", "/shots/first_round_row", "does not point to the shot's first row",
            bad.text, f"a row of that shot below {n}, or {NO_FIRST_ROW} for none",
        )  # fmt: skip


def intended_on_grid(trace: Trace, report: Validation) -> None:
    """Intended times are exactly those of the schedule: they never move when a system is slow."""
    t0, period = int(trace.attrs["t0_ps"]), int(trace.attrs["shot_period_ps"])
    cadence = int(trace.attrs["round_period_ps"])
    plans = (
        ("shots", "t_start_intended_ps", ("shot",)),
        ("rounds", "t_intended_ps", ("shot", "round")),
    )
    for stream, column, keys in plans:
        if not _has(trace, stream):
            continue
        bad = BadRows()
        for first, rows in _blocks(trace, stream, column, *keys):
            expected = t0 + rows["shot"].astype(np.int64) * period
            if "round" in rows:
                expected += (rows["round"].astype(np.int64) + 1) * cadence
            bad.add(rows[column] != expected, first, got=rows[column], expected=expected)
        if bad.count:
            report.refuse(
                "grid", f"/{stream}/{column}", "not on the grid of the schedule", bad.text
            )


def times_ordered(trace: Trace, report: Validation) -> None:
    """Along one clock the stamps of a row do not decrease, nor do T1 and T2 from row to row."""
    if not _has(trace, "rounds"):
        return
    within = {pair: BadRows() for chain in (_RACK, _HOST) for pair in _pairs(chain)}
    across = {name: BadRows() for name in ("t_syndrome_ps", "t_tx_ps")}
    last = dict.fromkeys(across, MISSING_PS)
    for first, rows in _blocks(trace, "rounds", *_RACK, *_HOST, "dq_mask"):
        steady = _step_free(rows["dq_mask"])
        for (a, b), bad in within.items():
            both = (rows[a] != MISSING_PS) & (rows[b] != MISSING_PS) & steady
            bad.add(both & (rows[b] < rows[a]), first, **{b: rows[b], a: rows[a]})
        for name, bad in across.items():
            time = np.where(steady, rows[name], MISSING_PS)
            highest = np.maximum.accumulate(np.concatenate([[last[name]], time]))
            falls = (time != MISSING_PS) & (time < highest[:-1])
            bad.add(falls, first, got=time, after=highest[:-1])
            last[name] = int(highest[-1])
    for (a, b), bad in within.items():
        if bad.count:
            report.refuse(
                "times-ordered", f"/rounds/{b}", f"earlier than {a} of the same row", bad.text
            )
    for name, bad in across.items():
        if bad.count:
            report.refuse("times-ordered", f"/rounds/{name}", "times decrease", bad.text)


def _pairs(chain: tuple[str, ...]) -> list[tuple[str, str]]:
    """All pairs, so that a missing stamp in between hides nothing."""
    return [(a, b) for i, a in enumerate(chain) for b in chain[i + 1 :]]


def latency_adds_up(trace: Trace, report: Validation) -> None:
    """``latency_ps`` is ``t_applied - t_intended`` wherever it is given."""
    if not _has(trace, "rounds"):
        return
    bad = BadRows()
    columns = ("latency_ps", "t_applied_ps", "t_intended_ps")
    for first, rows in _blocks(trace, "rounds", *columns):
        given = rows["latency_ps"] != MISSING_PS
        whole = rows["t_applied_ps"] - rows["t_intended_ps"]
        bad.add(given & (rows["latency_ps"] != whole), first, got=rows["latency_ps"], sum=whole)
    if bad.count:
        report.refuse("latency-sum", "/rounds/latency_ps", "not t_applied - t_intended", bad.text)


def failed_is_true(trace: Trace, report: Validation) -> None:
    """``failed`` says whether the applied answer differs from the truth, where it is known."""
    bad = BadRows()
    for first, rows in _blocks(trace, "shots", "obs_true_b8", "obs_pred_b8", "failed", "dq_mask"):
        known = (rows["dq_mask"] & Dq.NO_TRUTH.mask) == 0
        differs = (rows["obs_true_b8"] != rows["obs_pred_b8"]).any(axis=1) & known
        bad.add(rows["failed"] != differs, first, failed=rows["failed"], expected=differs)
    if bad.count:
        report.refuse("failed", "/shots/failed", "not obs_true != obs_pred", bad.text)


def enums_named(trace: Trace, report: Validation) -> None:
    """Every value of an enum column has a name."""
    for stream in trace.streams:
        for column in trace.columns(stream):
            members = trace.enum_members(stream, column)
            if not members or not trace.rows(stream):
                continue
            named = np.zeros(256, dtype=bool)
            named[list(members.values())] = True
            bad = BadRows()
            for first, rows in _blocks(trace, stream, column):
                bad.add(~named[rows[column]], first, value=rows[column])
            if bad.count:
                names = ", ".join(members)
                where = f"/{stream}/{column}"
                report.refuse("enum-name", where, "value without a name", bad.text, names)


def note_answers(trace: Trace, report: Validation) -> None:
    """Report fallback rows, substituted backends, epoch echoes that differ, holdover."""
    fallback = holdover = lost = 0
    for _, rows in _blocks(trace, "shots", "fallback", "dq_mask"):
        fallback += int(np.count_nonzero(rows["fallback"]))
        holdover += int(np.count_nonzero(rows["dq_mask"] & Dq.HOLDOVER.mask))
        lost += int(np.count_nonzero(rows["dq_mask"] & Dq.RECORDER_OVERFLOW.mask))
    if fallback:
        report.note("fallback", "/shots/fallback", "shots not answered as requested", str(fallback))
    if holdover:
        report.note("holdover", "/shots/dq_mask", "shots in clock holdover", str(holdover))
    if lost:
        report.note("overflow", "/shots/dq_mask", "shots that follow lost rows", str(lost))
    if _has(trace, "decodes"):
        _note_decodes(trace, report)


def _note_decodes(trace: Trace, report: Validation) -> None:
    substituted = echoes = 0
    names = [f"{part}_{end}" for part in _BACKENDS for end in ("requested", "executed")]
    for _, rows in _blocks(trace, "decodes", *names, "epoch", "epoch_echo"):
        differs = np.zeros(len(rows["epoch"]), dtype=bool)
        for part in _BACKENDS:
            differs |= rows[f"{part}_requested"] != rows[f"{part}_executed"]
        substituted += int(differs.sum())
        echoes += int((rows["epoch"] != rows["epoch_echo"]).sum())
    if substituted:
        report.note("backend-mismatch", "/decodes", "requested is not executed", str(substituted))
    if echoes:
        report.note("epoch-echo", "/decodes/epoch_echo", "decoder used another epoch", str(echoes))


RULES: Final[tuple[Rule, ...]] = (
    shots_ascend,
    rounds_ascend,
    windows_in_shot,
    one_epoch_per_shot,
    first_rows,
    intended_on_grid,
    times_ordered,
    latency_adds_up,
    failed_is_true,
    enums_named,
    note_answers,
)


def check_rows(trace: Trace, report: Validation) -> None:
    """Run all rules; a rule whose columns are missing or damaged is skipped.

    Missing and damaged columns are refused elsewhere, by name.
    """
    for rule in RULES:
        try:
            rule(trace, report)
        except TraceError as error:
            if report.ok:  # cannot happen while structure and chunks are checked first
                report.refuse("unreadable", error.where, error.what, error.got)
