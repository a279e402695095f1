"""Going on with a virtual run that was interrupted or killed.

Everything but decoding is made again from the seeds: syndromes, durations, stamps, fates. Answers
of shots that the earlier trace holds are read from it in place of decoding and pass through the
same recorder, writer and metrics, so the resumed trace has the ``content_id`` of a run that nobody
interrupted. The earlier file is set aside as ``earlier.h5`` (``earlier.part.h5`` if it was not
closed) and removed once the new trace has committed more shots: a kill during a resumed run loses
nothing, and it can be resumed again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final, Self

import numpy as np

from gpu_decoder.protocol import DecodedBatch, Reason
from gpu_decoder.turns import TurnDecoders
from hil.device.sampler import ShotBatch
from hil.errors import TraceError, UsageError
from hil.rack.timeline import Status
from hil.run.record import Driven
from hil.trace.content import manifest_path
from hil.trace.ledger import is_held
from hil.trace.meta import TraceMeta, canonical_json, sha256_text
from hil.trace.paths import PART_SUFFIX
from hil.trace.reader import Trace, open_trace

UNFINISHED: Final = ("running", "aborted", "recovered")
"""Exit statuses of a trace whose run can go on."""

DECIDING: Final = ("hil", "numpy", "pymatching", "stim")
"""Packages whose version decides what is taken over: syndromes and answers of matching alone."""

TRACE_NAMES: Final = ("trace.part.h5", "trace.h5", "earlier.part.h5", "earlier.h5")
"""Files of a folder that may hold shots of an earlier run."""

_COLUMNS: Final = ("shot", "detectors_b8", "obs_pred_b8", "status", "fallback")


class Earlier:
    """Answers of an earlier run, by shot. A context manager.

    Attributes:
        path: the trace set aside.
        n_shots: shots that it holds.
        reused: shots whose answer was taken from it so far.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._trace: Trace | None = open_trace(path)
        self.n_shots = self._trace.rows("shots")
        self.reused = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._close()

    def primary(self, batch: ShotBatch, decoder: TurnDecoders) -> DecodedBatch:
        """Answers of the primary to a batch: read where they are known, else decoded.

        Known are shots that the primary answered. Others (fallback, unanswered) are few. Sliding
        windows and shots behind a pre-decoder are decoded again: what they cost depends on the
        events that each window saw, or that the pre-decoder left, which only decoding tells.

        Raises:
            TraceError: the earlier trace holds other syndromes: it is of another machine type.
        """
        if self._trace is None or batch.first_shot >= self.n_shots:
            return decoder.decode_batch(batch.detectors_b8, batch.shots)
        end = min(self.n_shots, batch.first_shot + batch.n_shots)
        rows = self._trace.stream("shots", _COLUMNS, batch.first_shot, end)
        n = end - batch.first_shot
        same = np.array_equal(rows["shot"], np.arange(batch.first_shot, end))
        if not same or not np.array_equal(rows["detectors_b8"], batch.detectors_b8[:n]):
            raise TraceError(
                "the earlier trace holds other syndromes than this run makes",
                where=str(self.path),
                got=f"shots {batch.first_shot} to {end - 1} differ",
                fix="resume on the type of machine that began the run, or begin a new one",
            )
        if decoder.sliding or decoder.predecoded:
            return decoder.decode_batch(batch.detectors_b8, batch.shots)
        known = np.isin(rows["status"], (Status.OK, Status.LATE))
        known &= rows["fallback"] == Reason.NONE
        open_rows = np.concatenate([np.flatnonzero(~known), np.arange(n, batch.n_shots)])
        decoded = decoder.decode_batch(
            np.ascontiguousarray(batch.detectors_b8[open_rows]), batch.shots[open_rows]
        )
        answers = np.empty((batch.n_shots, decoded.predictions_b8.shape[1]), dtype=np.uint8)
        answers[:n][known] = rows["obs_pred_b8"][known]
        answers[open_rows] = decoded.predictions_b8
        self.reused += int(known.sum())
        return DecodedBatch(answers, decoded.carried_b8, None, decoder.kind)

    def until_overtaken(
        self, batches: Iterable[Driven], flush: Callable[[], None]
    ) -> Iterator[Driven]:
        """Pass batches on; remove the earlier trace when more than it holds is committed.

        Args:
            batches: of the resumed run; each one is appended before the next one is asked for.
            flush: commits what was appended.
        """
        done = 0
        for driven in batches:
            yield driven
            done += driven.batch.n_shots
            if self._trace is not None and done >= self.n_shots:
                flush()
                self._close()
                self.path.unlink()

    def _close(self) -> None:
        if self._trace is not None:
            self._trace.close()
            self._trace = None


def set_aside(directory: Path, meta: TraceMeta) -> Earlier | None:
    """The earlier run of a folder, checked and out of the new trace's way.

    Of several files (a resumed run was killed) the one with most shots counts; the others hold a
    part of it, or nothing yet, and are removed. ``None``: the run was killed before its first
    commit, and the only file, which cannot be read, is kept as ``unreadable.part.h5``.

    Raises:
        UsageError: there is nothing to resume, the run has ended or still goes on, or it is not
            the run that the scenario describes now. Nothing has been changed then.
    """
    present = [directory / name for name in TRACE_NAMES if (directory / name).exists()]
    found = {path: _shots(path, meta) for path in present}
    if not found:
        raise UsageError(
            "nothing to resume",
            where=str(directory),
            allowed="a folder with trace.part.h5 (killed) or trace.h5 (interrupted)",
            fix="leave --resume out to begin a new run",
        )
    best = max(found, key=lambda path: found[path])
    if found[best] < 0:
        for path in found:
            path.replace(directory / f"unreadable{PART_SUFFIX}")
        return None
    live = best.name.endswith(PART_SUFFIX)
    aside = directory / (f"earlier{PART_SUFFIX}" if live else "earlier.h5")
    if best != aside:
        best.replace(aside)
    for path in found:
        if path not in (best, aside):
            path.unlink()
    manifest_path(directory / "trace.h5").unlink(missing_ok=True)
    return Earlier(aside)


def _shots(path: Path, meta: TraceMeta) -> int:
    """Committed shots of a candidate; -1 if it never got so far as to hold any."""
    if path.name.endswith(PART_SUFFIX) and is_held(path):
        raise UsageError(
            "the run of this folder is still going on",
            where=str(path),
            fix="wait for its end, or end it",
        )
    try:
        trace = open_trace(path)
    except TraceError:
        if path.name.endswith(PART_SUFFIX):
            return -1  # killed before its first commit
        raise
    with contextlib.closing(trace):
        if trace.exit_status not in UNFINISHED:
            raise UsageError(
                "the run of this folder has ended",
                where=str(path),
                got=f"exit status {trace.exit_status}",
                allowed="a run that was interrupted or killed",
                fix="leave --resume out and choose another --out",
            )
        _demand_same(trace, meta)
        return trace.rows("shots")


def _demand_same(trace: Trace, meta: TraceMeta) -> None:
    """Refuse a trace of another scenario, circuit, model or version."""
    was, software = trace.meta, trace.meta["software"]
    pairs = {
        "scenario (resolved)": (canonical_json(was["resolved"]), canonical_json(meta.resolved)),
        "circuit": (was["circuit_sha256"], sha256_text(meta.circuit_stim)),
        "detector error model": (trace.epoch(0)["dem_sha256"], sha256_text(meta.dem)),
        **{
            name: (str(software.get(name, "unknown")), str(meta.software[name]))
            for name in DECIDING
        },
    }
    for what, (then, now) in pairs.items():
        if then != now:
            raise UsageError(
                f"not the run that was interrupted: {what} differs",
                where=str(trace.path),
                got=_difference(was["resolved"], meta.resolved) if "scenario" in what else now,
                allowed="as when the run began" if "scenario" in what else then,
                fix="give the same scenario, --bind, --seed and --set, or begin a new run",
            )


def _difference(was: object, now: object, path: str = "") -> str:
    """First place where two JSON values differ: ``run.seed 5, was 4``."""
    if isinstance(was, dict) and isinstance(now, dict):
        for key in sorted({*was, *now}):
            if was.get(key) != now.get(key):
                return _difference(was.get(key), now.get(key), f"{path}.{key}".lstrip("."))
    return f"{path} {now!r}, was {was!r}"
