"""Process main of the decoder node: socket, decode workers, stamps and clock around a ``Session``.

One thread, one loop: results of workers first, then frames, then what was held back, then timers.
Standard input carries the launch line and stays open: its end means that the rack is gone.
Standard output carries one JSON line when ready and one with all counters at the end.
"""

from __future__ import annotations

import contextlib
import gc
import heapq
import itertools
import json
import os
import select
import signal
import socket
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any, Final, TextIO

from hil.errors import HilError, LinkError, NodeError
from hil.link.endpoint import Completion, Endpoint, PeerAddress
from hil.link.faults import Faulty
from hil.link.message_numbers import AnswerNumbers
from hil.node.config import Launch
from hil.node.endpoints import open_endpoint, slot_bytes
from hil.node.processes import signal_when_parent_dies
from hil.node.session import Session
from hil.node.shots import Action, Decode, Hold, Release, Reply, StampFrame, StampShot, Start
from hil.node.stamps import StampWriter
from hil.node.worker import WorkerProcess, WorkerSetup
from hil.timebase import PS_PER_S, PS_PER_US, monotonic_ps
from hil.wire.rpc import GET_CORRECTIONS

FRAMES_IN_A_ROW: Final = 4
"""Frames served before workers and timers get their turn."""

POLL_PS: Final = 150 * PS_PER_US
"""The loop does not sleep into the last part of a wait: the kernel wakes it too late."""

SPIN_PS: Final = 30 * PS_PER_US
"""In the very last part it watches nothing but the clock."""

IN_PLACE_PS: Final = 100 * PS_PER_US
"""So short a hold is spun away on the spot: the way through the loop would add to it."""

_IDLE_S: Final = 0.25
_WORKER_START_S: Final = 120.0


def is_get(header: bytes) -> bool:
    """Whether a message with this header asks for corrections."""
    return int.from_bytes(header[4:8], "little") == GET_CORRECTIONS


class Server:
    """A running node.

    Args:
        launch: configuration, the rack's receiver and the stamp file.
    """

    def __init__(self, launch: Launch) -> None:
        config = launch.config
        self._config = config
        self._delays = config.delays
        self._stack = contextlib.ExitStack()
        self._hold: list[tuple[int, int, Callable[[], None]]] = []
        self._order = itertools.count()
        try:
            self._stamps = StampWriter(launch.stamp_path)
            self._stack.callback(self._stamps.close)
            end = None if launch.cable is None else socket.socket(fileno=launch.cable)
            self._endpoint: Endpoint = open_endpoint(config, "node", end=end)
            self._stack.callback(self._endpoint.close)
            if launch.answer_faults is not None:
                numbers = AnswerNumbers(config.messages_per_shot)
                self._endpoint = Faulty(self._endpoint, launch.answer_faults, numbers)
            self._memory = self._endpoint.register(config.ring_slots, slot_bytes(config))
            self._endpoint.connect(PeerAddress(**launch.peer.model_dump()))
            self._stride = self._endpoint.address().stride
            self._start_workers()
        except BaseException:
            self._stack.close()
            raise
        self._session = Session(config, self._executed)

    def _start_workers(self) -> None:
        config = self._config
        kinds = [(config.primary, False)] * config.primary_workers
        if config.fallback is not None:
            kinds += [(config.fallback, True)] * config.fallback_workers
        self._workers: dict[WorkerProcess, bool] = {}
        dem_texts = (config.dem_text, *config.more_dem_texts)
        for kind, fallback in kinds:
            setup = WorkerSetup(
                kind,
                dem_texts,
                config.n_detectors,
                config.n_observables,
                () if fallback else config.predecoders,
            )
            worker = WorkerProcess(setup)
            self._stack.callback(worker.close)
            self._workers[worker] = fallback
        self.fingerprints: dict[str, dict[str, str]] = {}
        codes = [0, 0]
        for worker, fallback in self._workers.items():
            ready = worker.wait_ready(_WORKER_START_S)
            codes[fallback] = int(ready.pop("kind"))
            self.fingerprints["fallback" if fallback else "primary"] = ready
        self._executed = (codes[0], codes[1])

    def ready_line(self) -> str:
        """What the rack must know: receiver, fingerprints and process ids, as JSON."""
        return json.dumps(
            {
                "ready": {
                    "peer": asdict(self._endpoint.address()),
                    "fingerprints": self.fingerprints,
                    "worker_pids": [worker.pid for worker in self._workers],
                }
            }
        )

    def run(self, control: int, parent_pid: int) -> int | None:
        """Serve until the control descriptor ends; returns the rack's next counter if it said so.

        Raises:
            NodeError: a decode worker died.
            LinkError: the network refused a reply, or the connection is in error (RC).
        """
        said = b""
        workers = list(self._workers)
        heard = self._endpoint.fileno()
        listen: list[Any] = [*(() if heard is None else (heard,)), control, *workers]
        while True:
            timeout_s = self._pause_s() if heard is not None else 0.0  # a device must be polled
            while self._hold and self._hold[0][0] <= monotonic_ps():
                heapq.heappop(self._hold)[2]()
            readable, _, _ = select.select(listen, (), (), timeout_s)
            for worker in workers:
                if worker in readable:
                    self._take_result(worker)
            for _ in range(FRAMES_IN_A_ROW):
                completions = self._endpoint.poll(1)  # one: its stamp T3 is taken here
                if not completions:
                    break
                self._take_frame(completions[0])
            self._do(self._session.tick(monotonic_ps()))
            if self._endpoint.error:
                raise LinkError("connection to the rack is in error", got=self._endpoint.error)
            if control in readable:
                more = os.read(control, 4096)
                said += more
                if not more:
                    return json.loads(said)["end"] if said.strip() else None
            if not readable and os.getppid() != parent_pid:
                return None

    def finish(self, next_counter: int | None) -> dict[str, int]:
        """Declare what is open; returns all counters of session and link."""
        self._do(self._session.finish(next_counter))
        link = {f"link.{name}": count for name, count in self._endpoint.counters().items()}
        return self._session.counters() | link

    def close(self) -> None:
        """End the workers, close socket and stamp file."""
        self._stack.close()

    # -- the loop -----------------------------------------------------------------------------

    def _pause_s(self) -> float:
        """How long to wait for descriptors; an instant that is very near is waited for here."""
        timers = [self._hold[0][0]] if self._hold else []
        wanted = (self._session.next_timer_ps(), self._endpoint.next_timer_ps())
        timers += [timer_ps for timer_ps in wanted if timer_ps is not None]
        if not timers:
            return 0.0 if self._config.spin else _IDLE_S
        due_ps = min(timers)
        wait_ps = due_ps - monotonic_ps()
        if wait_ps < SPIN_PS:
            while monotonic_ps() < due_ps:
                pass
            return 0.0
        return 0.0 if self._config.spin else min(_IDLE_S, max(0, wait_ps - POLL_PS) / PS_PER_S)

    def _later(self, delay_ps: int, call: Callable[[], None]) -> None:
        """Call ``call`` after ``delay_ps``; holds of one hop end in the order of their begin."""
        due_ps = monotonic_ps() + delay_ps
        if delay_ps <= IN_PLACE_PS and not self._hold:
            while monotonic_ps() < due_ps:
                pass
            call()
        else:
            heapq.heappush(self._hold, (due_ps, next(self._order), call))

    def _take_result(self, worker: WorkerProcess) -> None:
        answer = worker.receive()
        if answer.error:
            sys.stderr.write(f"shot {answer.shot}: {answer.error}\n")
        result = Decode(
            answer.start_ps, answer.end_ps, answer.prediction, answer.failed, answer.chain
        )
        done = self._session.fallback_done if self._workers[worker] else self._session.primary_done
        self._do(done(answer.shot, result, monotonic_ps()))

    def _take_frame(self, completion: Completion) -> None:
        if completion.busy:
            self._do(self._session.refused(completion.header, completion.slot, monotonic_ps()))
            return
        delay_ps = 0
        # Deliver is a hop of rounds: a request is held only so as not to overtake a held round.
        if self._delays.deliver_ps and (self._hold or not is_get(completion.header)):
            delay_ps = self._delays.of("deliver", self._session.shot_of(completion.header))
        if delay_ps:
            self._later(delay_ps, lambda: self._deliver(completion))
        else:
            self._deliver(completion)

    def _deliver(self, completion: Completion) -> None:
        at = completion.slot * self._stride
        data = self._memory[at : at + completion.length]
        visible_ps = monotonic_ps()
        self._do(self._session.message(data, completion.slot, completion.t_rx_ps, visible_ps))

    def _do(self, actions: Iterable[Action]) -> None:
        for action in actions:
            match action:
                case Reply():
                    self._reply(action)
                case Release():
                    for slot in action.slots:
                        self._endpoint.release(slot)
                case StampFrame():
                    self._stamps.frame(action.counter, action.t_rx_ps, action.t_visible_ps)
                case Start():
                    self._start(action)
                case Hold():
                    self._hold_window(action)
                case StampShot():
                    self._stamps.shot(action.shot, action.row)

    def _hold_window(self, held: Hold) -> None:
        def release() -> None:
            self._do(self._session.eligible(held.shot, monotonic_ps()))

        self._later(held.delay_ps, release)

    def _start(self, job: Start) -> None:
        for worker, fallback in self._workers.items():
            if fallback == job.fallback and not worker.busy:
                worker.start(job)
                return
        raise NodeError("no idle worker for a decode", where=f"shot {job.shot}")

    def _reply(self, reply: Reply) -> None:
        """Send now, or hold a shot's answer back for its injected reply delay."""
        if reply.shot < 0:
            self._endpoint.post_send(reply.data)
            return
        delay_ps = self._delays.of("reply", reply.shot)
        if delay_ps:
            self._later(delay_ps, lambda: self._send_answer(reply))
        else:
            self._send_answer(reply)

    def _send_answer(self, reply: Reply) -> None:
        """Stamp T8, then send, or hold the frame back for its injected downlink delay."""
        t_reply_tx_ps = monotonic_ps()
        delay_ps = self._delays.of("downlink", reply.shot)
        if delay_ps:
            self._later(delay_ps, lambda: self._endpoint.post_send(reply.data))
        else:
            self._endpoint.post_send(reply.data)
        self._do(self._session.reply_sent(reply.shot, t_reply_tx_ps))


def serve(launch: Launch, control: int, out: TextIO) -> dict[str, int]:
    """Run a node until its parent ends it; returns the counters.

    Args:
        launch: what to run.
        control: descriptor whose end of file ends the node.
        out: gets the READY line.
    """
    server = Server(launch)
    try:
        gc.collect()
        gc.freeze()
        out.write(server.ready_line() + "\n")
        out.flush()
        next_counter = server.run(control, launch.parent_pid)
        return server.finish(next_counter)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        server.close()


def main(line: str, control: int = 0) -> int:
    """Entry of the process after the launch line has been read; returns the exit code."""
    try:
        launch = Launch.model_validate_json(line)
        _obey_signals(launch.parent_pid)
        counters = serve(launch, control, sys.stdout)
    except (HilError, ValueError) as error:
        sys.stdout.write(json.dumps({"error": str(error)}) + "\n")
        sys.stderr.write(f"{error}\n")
        return HilError.exit_code
    with contextlib.suppress(OSError):  # nobody may be left to read it
        sys.stdout.write(json.dumps({"counters": counters}) + "\n")
        sys.stdout.flush()
    return 0


def read_launch(control: int = 0) -> str:
    """The first line of descriptor ``control``, unbuffered: what follows is left to the loop."""
    line = bytearray()
    while not line.endswith(b"\n"):
        byte = os.read(control, 1)
        if not byte:
            break
        line += byte
    return line.decode()


def _obey_signals(parent_pid: int) -> None:
    """SIGTERM ends the node; so does the parent's death, also where standard input stays open."""

    def orphaned(*_: object) -> None:
        if os.getppid() != parent_pid:  # Linux also tells when only a thread of it has ended
            raise SystemExit(HilError.exit_code)

    def terminated(*_: object) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the rack decides; it ends us through stdin
    signal.signal(signal.SIGTERM, terminated)
    signal.signal(signal.SIGUSR1, orphaned)
    signal_when_parent_dies(signal.SIGUSR1)
    orphaned()
