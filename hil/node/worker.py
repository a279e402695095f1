"""Decode worker: one process, one decoder per model of the device, one shot at a time.

The node sends jobs over a pipe and never more than one at a time, so that every decision about
the next job stays with the policy. PyMatching holds the GIL while it decodes, hence a process.
The first message from the node is a pickled ``WorkerSetup``, the first one back is JSON (what is
ready, or an error); then ``JOB`` + packed detectors in, ``DONE`` + prediction out.

What a decoder raises, or gives back that cannot be an answer, becomes the reason of its shot: the
``reason`` that the error carries; ``output_invalid`` where matching refused what it was given; else
``predecoder_error``.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from typing import TYPE_CHECKING, Final

import numpy as np

from gpu_decoder.protocol import Reason, U8Array
from hil.errors import NodeError
from hil.node.processes import signal_when_parent_dies
from hil.node.shots import Chain, Start
from hil.timebase import PS_PER_MS, PS_PER_NS, monotonic_ps

if TYPE_CHECKING:
    from gpu_decoder.ising.config import PredecoderConfig
    from gpu_decoder.turns import TurnDecoders

JOB: Final = struct.Struct("<qqB")
"""Job header: shot, extra time in ps inside the stamps (injected), ``Reason`` (injected)."""

DONE: Final = struct.Struct("<qqqBBBi")
"""Answer header: shot, start and end in monotonic ps, ``Reason`` for which there is no answer (then
its text follows), backend and precision of the pre-decoder, events it left (-1: there is none)."""

NO_CHAIN: Final = -1
"""Stands for the events left by a pre-decoder where there is none."""

_WARM_UP_SHOTS: Final = 64
_WARM_UP_SEED: Final = 1


class BrokenOnPurposeError(Exception):
    """The fault that a scenario asked for (``reason``)."""

    def __init__(self, what: str, reason: Reason) -> None:
        super().__init__(f"{what}: {reason.name.lower()}")
        self.reason = reason


class OutputInvalidError(ValueError):
    """What a decoder gave back cannot be an answer."""


@dataclass(frozen=True, slots=True)
class WorkerSetup:
    """What a worker must build: one decoder per model; shots of the models take turns."""

    kind: str
    dem_texts: Sequence[str]
    n_detectors: int
    n_observables: int
    predecoders: Sequence[PredecoderConfig] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back from a worker: a prediction or, if ``failed`` says so, an error."""

    shot: int
    start_ps: int
    end_ps: int
    prediction: bytes
    failed: Reason
    error: str
    chain: Chain | None


class WorkerProcess:
    """The node's handle of one decode worker.

    Args:
        setup: what to build.

    ``wait_ready`` must be called once before the first job.
    """

    def __init__(self, setup: WorkerSetup) -> None:
        self._connection, child = Pipe(duplex=True)
        self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            [sys.executable, "-m", "hil.node.worker", str(child.fileno()), str(os.getpid())],
            pass_fds=[child.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        child.close()
        self._kind = setup.kind
        self.busy = False
        with contextlib.suppress(OSError):  # dead already: wait_ready says so
            self._connection.send(setup)

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def fileno(self) -> int:
        """Descriptor that becomes readable with an answer or with the worker's death."""
        return self._connection.fileno()

    def wait_ready(self, timeout_s: float) -> dict[str, str]:
        """Wait until the decoder is built and warm; returns its fingerprint and ``kind`` code.

        Raises:
            NodeError: the worker did not build its decoder, died, or took too long.
        """
        where = f"decode worker {self._kind}"
        if not self._connection.poll(timeout_s):
            raise NodeError("not ready in time", where=where, allowed=f"{timeout_s:g} s")
        try:
            reply: dict[str, dict[str, str]] = json.loads(self._connection.recv_bytes())
        except (EOFError, OSError):
            raise self._died("died while it started") from None
        if "error" in reply:
            raise NodeError("cannot build its decoder", where=where, got=str(reply["error"]))
        return reply["ready"]

    def start(self, job: Start) -> None:
        """Hand over one shot; the worker must be idle.

        Raises:
            NodeError: the worker died.
        """
        self.busy = True
        head = JOB.pack(job.shot, job.extra_ps, job.fails)
        try:
            self._connection.send_bytes(head + job.detectors_b8)
        except OSError:
            raise self._died("died") from None

    def receive(self) -> Answer:
        """Take one answer (``fileno`` is readable).

        Raises:
            NodeError: the worker died.
        """
        try:
            data = self._connection.recv_bytes()
        except (EOFError, OSError):
            raise self._died("died") from None
        self.busy = False
        shot, start_ps, end_ps, code, backend, precision, events = DONE.unpack_from(data)
        rest, failed = data[DONE.size :], Reason(code)
        if failed is not Reason.NONE:
            return Answer(shot, start_ps, end_ps, b"", failed, rest.decode(), None)
        chain = Chain(backend, precision, events) if events >= 0 else None
        return Answer(shot, start_ps, end_ps, rest, failed, "", chain)

    def _died(self, what: str) -> NodeError:
        code = self._process.wait()
        return NodeError(what, where=f"decode worker {self._kind}", got=f"exit {code}")

    def close(self) -> None:
        """End of file for the worker, then kill what is still there, and reap."""
        self._connection.close()
        try:
            self._process.wait(timeout=0.3)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def run(connection: Connection) -> None:
    """Build, warm up, then decode until the pipe ends."""
    setup: WorkerSetup = connection.recv()
    try:
        decoder = _build(setup)
        _warm_up(decoder, setup)
    except Exception as error:  # noqa: BLE001 - whatever it is, the node must be told
        connection.send_bytes(json.dumps({"error": f"{type(error).__name__}: {error}"}).encode())
        return
    gc.collect()
    gc.freeze()
    gc.disable()
    ready = decoder.fingerprint() | {"kind": str(int(decoder.kind))}
    connection.send_bytes(json.dumps({"ready": ready}).encode())
    while True:
        connection.send_bytes(decode(decoder, connection.recv_bytes()))


def _build(setup: WorkerSetup) -> TurnDecoders:
    from gpu_decoder.turns import build_turns

    decoder = build_turns(setup.kind, setup.dem_texts, predecoders=setup.predecoders)
    found = (decoder.n_detectors, decoder.n_observables)
    if found != (setup.n_detectors, setup.n_observables):
        raise NodeError(
            "the detector error model does not fit the shot",
            got=f"{found[0]} detectors, {found[1]} observables",
            allowed=f"{setup.n_detectors} detectors, {setup.n_observables} observables",
        )
    return decoder


def _warm_up(decoders: TurnDecoders, setup: WorkerSetup) -> None:
    """Decode some typical shots, so that the first real one finds caches and memory in place."""
    import stim

    for decoder, text in zip(decoders.decoders, setup.dem_texts, strict=True):
        sampler = stim.DetectorErrorModel(text).compile_sampler(seed=_WARM_UP_SEED)
        detectors, _, _ = sampler.sample(_WARM_UP_SHOTS, bit_packed=True)
        for row in np.ascontiguousarray(detectors):
            decoder.decode_one(row)


def decode(decoders: TurnDecoders, job: bytes) -> bytes:
    """Do a job (``JOB`` + detectors): ``DONE`` + the answer, or why there is none."""
    shot, extra_ps, fails = JOB.unpack_from(job)
    detectors_b8 = np.frombuffer(job, np.uint8, offset=JOB.size)
    failed, chain = Reason.NONE, Chain(0, 0, NO_CHAIN)
    start_ps = monotonic_ps()
    try:
        answer, chain = _answer(decoders, shot, detectors_b8, Reason(fails))
    except Exception as error:  # noqa: BLE001 - whatever it is, the shot must be settled
        answer, failed = f"{type(error).__name__}: {error}".encode(), reason_of(error)
    if extra_ps:
        hold_until_ps(monotonic_ps() + extra_ps)
    return DONE.pack(shot, start_ps, monotonic_ps(), failed, *chain) + answer


def _answer(
    decoders: TurnDecoders, shot: int, detectors_b8: U8Array, fails: Reason
) -> tuple[bytes, Chain]:
    """Decode one shot and check the answer; ``fails``: break as told.

    Raises:
        BrokenOnPurposeError: told to.
        OutputInvalidError: the answer cannot be one.
    """
    if fails not in (Reason.NONE, Reason.OUTPUT_INVALID):
        raise BrokenOnPurposeError("injected fault", fails)
    decoder, chain = decoders.of(shot), Chain(0, 0, NO_CHAIN)
    if decoders.predecoded:  # its record is wanted too
        decoded = decoder.decode_batch(detectors_b8.reshape(1, -1))
        prediction, record = decoded.predictions_b8[0], decoded.predecoded
        if record is not None:
            executed = (int(record.backend_executed), int(record.precision_executed))
            chain = Chain(*executed, int(record.residual_events[0]))
    else:
        prediction = decoder.decode_one(detectors_b8)
    if fails is Reason.OUTPUT_INVALID:
        prediction = np.append(prediction, np.uint8(0xFF))
    return checked(prediction, decoder.n_observables), chain


def checked(prediction: U8Array, n_observables: int) -> bytes:
    """The bytes of an answer.

    Raises:
        OutputInvalidError: it is not uint8 [ceil(O/8)], or an unused bit is set.
    """
    size, spare = -(-n_observables // 8), -n_observables % 8
    if prediction.shape != (size,) or prediction.dtype != np.uint8:
        raise OutputInvalidError(
            f"the decoder answered {prediction.dtype} {list(prediction.shape)}, "
            f"allowed: uint8 [{size}]"
        )
    if spare and int(prediction[-1]) >> (8 - spare):
        raise OutputInvalidError(f"a bit behind the {n_observables} observables is set")
    return prediction.tobytes()


def reason_of(error: Exception) -> Reason:
    """Why a shot has no answer, by what its decoder raised."""
    reason = getattr(error, "reason", None)
    if isinstance(reason, Reason):
        return reason
    return Reason.OUTPUT_INVALID if isinstance(error, ValueError) else Reason.PREDECODER_ERROR


def hold_until_ps(instant_ps: int) -> None:
    """Return at ``instant_ps``: sleep while it is far, spin for the last millisecond."""
    far_ps = instant_ps - monotonic_ps() - PS_PER_MS
    if far_ps > 0:
        time.sleep(far_ps / 1e12)
    instant_ns = instant_ps // PS_PER_NS
    while time.monotonic_ns() < instant_ns:
        pass


def main(arguments: list[str]) -> int:
    """Entry of the process: ``DESCRIPTOR PARENT_PID``."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal_when_parent_dies(signal.SIGKILL)
    if os.getppid() != int(arguments[1]):
        return 0
    with Connection(int(arguments[0])) as connection:
        try:
            run(connection)
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return 0
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
