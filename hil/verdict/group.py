"""Shots of one group: what is derived from the columns of a batch, and its sums.

A *group* holds the shots that are judged together (clean, warm-up, disturbed). Hops are the
differences of successive stamps of a shot's last block, so that they add up to its latency.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gpu_decoder.protocol import Reason
from hil.errors import RigError, UsageError
from hil.timebase import MISSING_PS
from hil.trace.schema import Dq, Status
from hil.verdict.accumulate import BatchTable
from hil.verdict.histogram import Histogram

I64 = NDArray[np.int64]
Bools = NDArray[np.bool_]

HOPS: Final = {
    "acquire": ("t_intended_ps", "t_syndrome_ps"),
    "packetize": ("t_syndrome_ps", "t_tx_ps"),
    "uplink": ("t_tx_ps", "t_rx_ps"),
    "deliver": ("t_rx_ps", "t_visible_ps"),
    "queue": ("t_visible_ps", "t_decode_start_ps"),
    "decode": ("t_decode_start_ps", "t_decode_end_ps"),
    "reply": ("t_decode_end_ps", "t_reply_tx_ps"),
    "downlink": ("t_reply_tx_ps", "t_reply_rx_ps"),
    "apply": ("t_reply_rx_ps", "t_applied_ps"),
}
"""Hop -> (from, to); in this order they add up to the end-to-end latency."""
END_TO_END: Final = "end_to_end"
LATENCIES: Final = (*HOPS, END_TO_END)
RATES: Final = ("miss", "fallback", "unanswered", "failed")
GROUPS: Final = ("clean", "warmup", "disturbed")
SCOPES: Final = {
    "clean": ("clean",),
    "all": GROUPS,
    "warmup": ("warmup",),
    "disturbed": ("disturbed",),
}
"""Scope of a figure -> the groups it covers."""
PATHS: Final = ("primary", "fallback", "unanswered")

_UNANSWERED: Final = np.zeros(256, np.bool_)
_UNANSWERED[[int(s) for s in (Status.TIMEOUT, Status.DROPPED, Status.VOID)]] = True


def latency_name(metric: str) -> str:
    """Which of `LATENCIES` a metric is a quantile of; unknown names come back as they are.

    The reaction time (last round to correction in effect) is the end-to-end latency: in sliding
    windows the earlier rounds have been decoded by then.
    """
    return END_TO_END if metric == "reaction_time" else metric.removeprefix("latency.")


def watch_name(metric: str, limit: int) -> str:
    """Name of the column that marks samples of ``metric`` above ``limit`` ps."""
    return f"{latency_name(metric)} > {limit}"


def groups_of(scope: str) -> tuple[str, ...]:
    """Groups that a scope consists of."""
    if scope not in SCOPES:
        raise UsageError("no such scope", got=scope, allowed=", ".join(SCOPES))
    return SCOPES[scope]


@dataclass(frozen=True, slots=True)
class Batch:
    """Derived columns of ``n`` shots, [n] each.

    Attributes:
        position: shot number, int64.
        latency: end to end in ps, int64, ``MISSING_PS`` where unanswered or not stamped.
        hops: hop -> duration in ps, int64, ``MISSING_PS`` where it did not happen.
        answered: an answer was applied and its latency is known.
        columns: rate or watch name -> bool.
        truth: the true observables are known.
        reason: codes of `gpu_decoder.protocol.Reason`, uint8.
    """

    position: I64
    latency: I64
    hops: dict[str, I64]
    answered: Bools
    columns: dict[str, Bools]
    truth: Bools
    reason: NDArray[np.uint8]

    def take(self, chosen: Bools) -> Batch:
        """The rows where ``chosen`` is true."""
        return Batch(
            self.position[chosen],
            self.latency[chosen],
            {name: values[chosen] for name, values in self.hops.items()},
            self.answered[chosen],
            {name: values[chosen] for name, values in self.columns.items()},
            self.truth[chosen],
            self.reason[chosen],
        )


def derive(
    position: I64,
    shots: Mapping[str, NDArray[np.generic]],
    windows: Mapping[str, I64],
    deadline_ps: int,
    watch: Mapping[str, tuple[int, ...]],
) -> Batch:
    """Compute what the groups count; checks that latency, slack and hops agree.

    Raises:
        RigError: slack is not deadline - latency, or applied - intended is not the latency.
    """
    status, reason = shots["status"].astype(np.uint8), shots["fallback"].astype(np.uint8)
    latency, slack = shots["latency_ps"].astype(np.int64), shots["slack_ps"].astype(np.int64)
    unanswered = _UNANSWERED[status]
    stamped = latency != MISSING_PS
    answered = stamped & ~unanswered
    if not bool((slack + latency == deadline_ps)[answered].all()):
        raise RigError("slack is not deadline - latency", where="/shots/slack_ps")
    truth = (shots["dq_mask"].astype(np.uint32) & Dq.NO_TRUTH.mask) == 0
    columns = {
        "miss": unanswered | (answered & (slack < 0)),
        "fallback": (reason != int(Reason.NONE)) & ~unanswered,
        "unanswered": unanswered,
        "failed": shots["failed"].astype(np.bool_) & truth,
    }
    hops = _hops(windows)
    if hops and not _adds_up(windows, latency, answered):
        raise RigError("hops do not add up to the latency", where="/shots/latency_ps")
    latency = np.where(answered, latency, MISSING_PS) if unanswered.any() else latency
    for metric, limits in watch.items():
        name = latency_name(metric)
        for limit in limits:
            above = (
                (latency if name == END_TO_END else hops[name]) > limit
                if (name == END_TO_END or name in hops)
                else np.zeros(position.shape, np.bool_)
            )
            columns[watch_name(metric, limit)] = above | unanswered if name == END_TO_END else above
    return Batch(position, latency, hops, answered, columns, truth, reason)


def _hops(windows: Mapping[str, I64]) -> dict[str, I64]:
    if not windows:
        return {}
    gaps = {
        name: column == MISSING_PS
        for name, column in windows.items()
        if column.shape[0] and int(column.min()) == MISSING_PS
    }
    out = {}
    for hop, (start, stop) in HOPS.items():
        duration = windows[stop] - windows[start]
        for end in (start, stop):
            if end in gaps:
                duration[gaps[end]] = MISSING_PS
        out[hop] = duration
    return out


def _adds_up(windows: Mapping[str, I64], latency: I64, answered: Bools) -> bool:
    total = windows["t_applied_ps"] - windows["t_intended_ps"]
    return bool((total == latency)[answered].all())


class Group:
    """Sums, histograms and batch table of the shots of one group."""

    __slots__ = (
        "failed_by_path",
        "histograms",
        "reasons",
        "shots",
        "shots_by_path",
        "sums",
        "table",
        "unstamped",
        "with_truth",
    )

    def __init__(self, columns: tuple[str, ...]) -> None:
        self.shots = 0
        self.with_truth = 0
        self.unstamped = 0
        self.sums: dict[str, int] = dict.fromkeys(columns, 0)
        self.shots_by_path = dict.fromkeys(PATHS, 0)
        self.failed_by_path = dict.fromkeys(PATHS, 0)
        self.reasons = {path: np.zeros(len(Reason), np.int64) for path in PATHS[1:]}
        self.histograms = {name: Histogram() for name in LATENCIES}
        self.table = BatchTable(("rows", "answered", "answered_position", "latency", *columns))

    def update(self, batch: Batch) -> None:
        """Add a batch."""
        n = int(batch.position.shape[0])
        unanswered = batch.columns["unanswered"]
        self.shots += n
        self.with_truth += int(np.count_nonzero(batch.truth))
        self.unstamped += n - int(np.count_nonzero(batch.answered | unanswered))
        tabled = {}
        for name, column in batch.columns.items():
            events = int(np.count_nonzero(column))
            self.sums[name] += events
            if events:
                tabled[name] = column
        self._by_path(batch)
        for name, duration in (*batch.hops.items(), (END_TO_END, batch.latency)):
            self.histograms[name].update(_present(duration))
        latency, where = batch.latency, batch.position
        if not batch.answered.all():
            latency, where = np.where(batch.answered, (latency, where), 0)
        self.table.update(
            batch.position,
            {
                "rows": np.ones(n, np.bool_),
                "answered": batch.answered,
                "answered_position": where,
                "latency": latency,
                **tabled,
            },
        )

    def _by_path(self, batch: Batch) -> None:
        failed, lost = batch.columns["failed"], batch.columns["unanswered"]
        second = batch.columns["fallback"]
        truth = batch.truth
        for path, on_path in (("fallback", second), ("unanswered", lost)):
            if on_path.any():
                self.shots_by_path[path] += int(np.count_nonzero(on_path & truth))
                self.failed_by_path[path] += int(np.count_nonzero(on_path & failed))
                self.reasons[path] += np.bincount(batch.reason[on_path], minlength=len(Reason))
        self.shots_by_path["primary"] = self.with_truth - sum(
            self.shots_by_path[path] for path in PATHS[1:]
        )
        self.failed_by_path["primary"] = self.sums["failed"] - sum(
            self.failed_by_path[path] for path in PATHS[1:]
        )


def _present(duration: I64) -> I64:
    if duration.shape[0] == 0 or int(duration.min()) != MISSING_PS:
        return duration
    present: I64 = duration[duration != MISSING_PS]
    return present
