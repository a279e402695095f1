"""Feeder of a live run: a process that samples, models the rack and builds the frames ahead.

Stim holds the GIL, and so does numpy for most of this work: done beside the sender it would show
as lateness of the rounds. A feeder hands over chunks through a pipe; a small thread in the parent
keeps a few of them ready.
"""

from __future__ import annotations

import contextlib
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from typing import Self

import numpy as np

from hil.device.families import Models
from hil.device.measurements import measurement_layout
from hil.device.sampler import BlockCutter, ShotBatch, StimSampler, event_counts
from hil.errors import HilError, RigError
from hil.node.processes import signal_when_parent_dies
from hil.rack.bulk import BulkExecutor
from hil.rack.pipeline import Pipeline
from hil.rack.plan import WorkloadSource
from hil.rack.timeline import I64, U8, Workload
from hil.run.parts import Decoders
from hil.timebase import PS_PER_MS, PS_PER_NS
from hil.wire.rpc_batch import (
    build_enqueue_batch,
    build_get_batch,
    ptp_from_ns_array,
    split_blocks,
)

MODELLED_HOPS = frozenset({"acquire", "packetize", "apply"})
"""Hops that are models even in a live run; all others are measured."""

_CHUNK_WALL_PS = 100 * PS_PER_MS
_CHUNKS_AHEAD = 4
_JOIN_S = 5.0
_MAIN = "import sys; from hil.run.feeder import main; main(int(sys.argv[1]))"


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive shots ready to be sent.

    Attributes:
        batch: their detection events and truth.
        work: samples of the modelled stages (rack, apply); zero elsewhere.
        intended_ps, formed_ps: T0 and T1, int64 [n, r], scenario time.
        send_ps: instant each frame is handed to the MAC, int64 [n, r], scenario time.
        enqueue: uint8 [n, r, L], complete messages; ``get``: uint8 [n, Lg].
        events: int64 [n], detection events per shot.
        expected_b8: uint8 [n, ceil(O/8)], answers of our own decoder, where they were asked for.
    """

    batch: ShotBatch
    work: Workload
    intended_ps: I64
    formed_ps: I64
    send_ps: I64
    enqueue: U8
    get: U8
    events: I64
    expected_b8: U8 | None = None


@dataclass(frozen=True)
class FeedPlan:
    """All that the feeder process needs; travels by pickle.

    ``decoders``: decode every shot here too, for a comparison (``Chunk.expected_b8``).
    """

    models: Models
    source: WorkloadSource
    pipeline: Pipeline
    n_shots: int
    pace: int
    board_mask: int
    decoders: Decoders | None = None

    @property
    def measurements(self) -> bool:
        """Whether frames carry raw measurements."""
        return self.source.scenario.system.links.up.payload == "measurements"

    def block_bits(self) -> I64:
        """int64 [r]: bits of each block on the wire."""
        code = self.models[0]
        return measurement_layout(code).block_bits if self.measurements else code.block_bits

    @property
    def chunk_shots(self) -> int:
        """Shots per chunk: about 100 ms of wall time, 4..256."""
        shots = _CHUNK_WALL_PS // (self.pipeline.shot_period_ps * self.pace)
        return max(4, min(256, shots))

    def chunks(self, wall_start_ps: int) -> Iterator[Chunk]:
        """Make all chunks; ``wall_start_ps`` is the monotonic instant of scenario time 0."""
        cutter = BlockCutter(self.models[0])
        rack = BulkExecutor(self.pipeline)
        sampler = StimSampler(
            self.models, self.source.scenario.run.seed, measurements=self.measurements
        )
        block_bits = self.block_bits()
        for batch in sampler.batches(self.n_shots):
            blocks = cutter.event_counts(batch.detectors_b8)
            work = self.source.with_faults(
                self.source.rack_only(batch.batch, batch.first_shot, batch.n_shots, blocks),
                only=MODELLED_HOPS,
            )
            for start in range(0, batch.n_shots, self.chunk_shots):
                stop = min(start + self.chunk_shots, batch.n_shots)
                part = batch.part(start, stop)
                bits = self._wire_bits(part, cutter, block_bits)
                yield self._chunk(
                    part, work.part(start, stop), rack, bits, block_bits, wall_start_ps
                )

    def _wire_bits(self, batch: ShotBatch, cutter: BlockCutter, block_bits: I64) -> U8:
        """uint8 [n, r, bytes]: what travels, block by block."""
        if batch.measurements_b8 is None:
            return cutter.cut(batch.detectors_b8)
        return split_blocks(batch.measurements_b8, block_bits)

    def _chunk(
        self,
        batch: ShotBatch,
        work: Workload,
        rack: BulkExecutor,
        bits_b8: U8,
        block_bits: I64,
        wall_start_ps: int,
    ) -> Chunk:
        intended, formed, send = rack.send_times(work)
        envelope = self.source.scenario.system.links.up.envelope
        n, r = intended.shape
        counters = np.arange(n * (r + 1), dtype=np.uint64).reshape(n, r + 1) + np.uint64(
            batch.first_shot * (r + 1)
        )
        stamps = ptp_from_ns_array((wall_start_ps + intended * self.pace) // PS_PER_NS)
        valid_until = (intended[:, -1] + self.pipeline.deadline_ps) // (
            self.pipeline.round_period_ps
        )
        enqueue = build_enqueue_batch(
            bits_b8,
            block_bits,
            counters=counters[:, :r],
            ptp_timestamps=stamps,
            envelope=envelope,
            epoch=batch.epoch,
            board_mask=self.board_mask,
            valid_until_round=(valid_until & 0xFFFFFFFF)[:, None],
        )
        get = build_get_batch(
            counters[:, r],
            stamps[:, -1],
            return_size=self.models[0].n_observables,
            envelope=envelope,
            epoch=batch.epoch,
            board_mask=self.board_mask,
            valid_until_round=valid_until & 0xFFFFFFFF,
        )
        return Chunk(
            batch, work, intended, formed, send, enqueue, get, event_counts(batch.detectors_b8),
            self._expected(batch),
        )  # fmt: skip

    def _expected(self, batch: ShotBatch) -> U8 | None:
        if self.decoders is None:
            return None
        return self.decoders.primary.decode_batch(batch.detectors_b8, batch.shots).predictions_b8


class Feeder:
    """The feeder process and the thread that keeps chunks ready. A context manager."""

    def __init__(self, plan: FeedPlan) -> None:
        self._pipe, child = Pipe(duplex=True)
        self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            [sys.executable, "-c", _MAIN, str(child.fileno())],
            pass_fds=[child.fileno()],
            stdin=subprocess.DEVNULL,
            process_group=0,  # Ctrl-C is for the run, which ends us
        )
        child.close()
        self._pipe.send(plan)
        self._ready: queue.Queue[Chunk | BaseException | None] = queue.Queue(_CHUNKS_AHEAD)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._receive, daemon=True, name="hil-feeder-pipe")

    def warm_up(self) -> None:
        """Wait until the process has compiled, sampled and framed a first chunk for nothing."""
        answer = self._receive_one()
        if isinstance(answer, BaseException):
            raise answer

    def start(self, wall_start_ps: int) -> None:
        """Begin; scenario time 0 is at this instant of the monotonic clock."""
        self._pipe.send(wall_start_ps)
        self._thread.start()

    def chunks(self) -> Iterator[Chunk]:
        """All chunks in order.

        Raises:
            RigError: the feeder process died; errors it raised are raised here.
        """
        while True:
            chunk = self._ready.get()
            if chunk is None:
                return
            if isinstance(chunk, BaseException):
                raise chunk
            yield chunk

    def close(self) -> None:
        """End process and thread."""
        self._stop.set()
        self._process.kill()
        self._process.wait(_JOIN_S)
        if self._thread.is_alive():
            self._thread.join(_JOIN_S)
        self._pipe.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _receive_one(self) -> Chunk | BaseException | None:
        try:
            received: Chunk | BaseException | None = self._pipe.recv()
        except (EOFError, OSError):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_JOIN_S)
            return RigError(
                "the feeder process, which samples and models the rack, ended early",
                where=f"feeder pid {self._process.pid}",
                got=f"exit code {self._process.returncode}",
                fix="see its message on standard error; a negative code is a signal",
            )
        return received

    def _receive(self) -> None:
        while not self._stop.is_set():
            chunk = self._receive_one()
            while not self._stop.is_set():
                try:
                    self._ready.put(chunk, timeout=0.2)
                    break
                except queue.Full:
                    continue
            if chunk is None or isinstance(chunk, BaseException):
                return


def main(descriptor: int) -> None:
    """Body of the feeder process; ends when the parent closes the pipe or dies."""
    signal_when_parent_dies(signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends us
    with Connection(descriptor) as pipe:
        try:
            plan: FeedPlan = pipe.recv()
            next(plan.chunks(0))  # compiles and loads everything once, off the clock
            pipe.send(None)
            wall_start_ps = pipe.recv()
            for chunk in plan.chunks(wall_start_ps):
                pipe.send(chunk)
            pipe.send(None)
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return
        except HilError as error:
            pipe.send(error)
