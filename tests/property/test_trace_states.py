"""The writer as a state machine: any appends, commits, crashes; recovery gives the ledger exactly.

The live file is driven without its thread, so that every step is where Hypothesis put it. A crash
is a copy of the file as it lies on the disk, without a close.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

from trace_cases import META, N_ROUNDS, STREAMS_USED, assert_same, expected, make_record, one_fault

from hil.trace import layout
from hil.trace.live import LiveFile
from hil.trace.reader import open_trace
from hil.trace.recover import recover
from hil.trace.schema import Record
from hil.trace.validate import validate_trace

COMMIT_SHOTS = 8


class Writer(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="trace-states-"))
        self.taken: list[Record] = []
        self.shots = 0
        self.overflow = 0
        self.crashes = 0

    @initialize(level=st.sampled_from(["rounds", "shots"]))
    def create(self, level: str) -> None:
        original = layout.commit_shots
        layout.commit_shots = lambda *_: COMMIT_SHOTS  # small chunks: many of them per example
        try:
            self.live = LiveFile(
                self.folder / "t.part.h5", META, record_level=level, streams=STREAMS_USED,
                n_rounds=N_ROUNDS, measured=False,
            )  # fmt: skip
        finally:
            layout.commit_shots = original

    @rule(n=st.integers(1, 30), keep=st.integers(1, 9), gap=st.sampled_from([0, 0, 0, 5]))
    def append(self, n: int, keep: int, gap: int) -> None:
        record = make_record(self.shots + gap, n, keep=keep, packets=n % 2 == 0)
        self.shots += n + gap
        self.overflow += gap
        self.taken.append(record)
        self.live.take(record)

    @rule()
    def append_without_shots(self) -> None:
        self.taken.append(one_fault())
        self.live.take(one_fault())

    @rule()
    def commit_whole(self) -> None:
        self.live.commit_whole(overflow=self.overflow)
        shots = self.live._sinks["shots"].rows
        assert shots % COMMIT_SHOTS == 0 or self.irregular
        waiting = sum(len(r["shots"]["shot"]) for r in self.live._pending if "shots" in r)
        assert waiting < COMMIT_SHOTS

    irregular = False

    @rule()
    def commit_all(self) -> None:
        self.irregular = True
        self.live.commit(overflow=self.overflow)
        assert not self.live.pending

    @precondition(lambda self: self.crashes < 2)
    @rule()
    def crash_and_recover(self) -> None:
        self.crashes += 1
        part = self.folder / f"crash{self.crashes}.part.h5"
        shutil.copy(self.live.path, part)
        rows = {name: sink.rows for name, sink in self.live._sinks.items()}
        final = recover(part)
        self.compare(final, rows)
        report = validate_trace(final)
        assert report.ok, report.refused

    def compare(self, path: Path, rows: dict[str, int]) -> None:
        want = expected(self.taken)
        with open_trace(path) as trace:
            for name, n in rows.items():
                assert trace.rows(name) == n
                if n:
                    head = {c: v[:n] for c, v in want[name].items()}
                    assert {len(v) for v in head.values()} == {n}
                    assert_same({name: trace.stream(name)}, {name: head})
            whole = trace.stream("shots", ["shot", "first_round_row"])
            kept = whole["first_round_row"] != np.uint64(2**64 - 1)
            assert trace.rows("rounds") == kept.sum() * (N_ROUNDS + 1)

    def teardown(self) -> None:
        if hasattr(self, "live"):
            self.live.close(overflow=self.overflow)
            rows = {name: sink.rows for name, sink in self.live._sinks.items()}
            whole = {name: len(next(iter(c.values()))) for name, c in expected(self.taken).items()}
            assert {n: r for n, r in rows.items() if r} == {n: r for n, r in whole.items() if r}
            final = recover(self.live.path)
            self.compare(final, rows)
            with open_trace(final) as trace:
                assert trace.overflow == self.overflow
        shutil.rmtree(self.folder)


TestWriter = Writer.TestCase
TestWriter.settings = settings(
    max_examples=8,
    stateful_step_count=14,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
