"""The rack's side of a live exchange: sends frames on time, books replies, never waits for one.

Open loop: a frame leaves when its instant has come, whatever has or has not been answered. One
thread, one loop; between two sends it sleeps in ``select`` or, on request, spins.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, Final, Self

import numpy as np

from hil.errors import NodeError, UsageError
from hil.link.endpoint import Endpoint, Prepared
from hil.link.fault_plan import LinkPlan
from hil.link.soft_roce import Tap
from hil.node.config import Launch, NodeConfig, Peer
from hil.node.endpoints import cable, needs_cable, open_endpoint, reply_slot_bytes
from hil.node.exchange import U8, Exchange, NodeLostError, Plan, concatenate
from hil.node.ledger import Batch, Ledger
from hil.node.process import NodeProcess
from hil.node.remote import Attach, NodeHandle
from hil.node.stamps import NoStamps, StampReader, create_stamp_file
from hil.timebase import MISSING_PS, PS_PER_MS, PS_PER_NS, PS_PER_S, PS_PER_US, monotonic_ps
from hil.wire.predecode import Correction, Predecode, build_predecode, parse_correction
from hil.wire.rpc import Status, pad, ptp_from_ns

__all__ = ["Exchange", "NodeLostError", "Plan", "RackClient"]

REPLY_SLOTS: Final = 1024
SEND_BATCH: Final = 4
"""Frames that may leave in a row, when late, before replies get their turn."""

POLL_BATCH: Final = 16
POLL_PS: Final = 150 * PS_PER_US
SPIN_PS: Final = 30 * PS_PER_US
"""When spinning: no sleep in the last 150 us before an instant, only the clock in the last 30."""

IN_PLACE_PS: Final = 100 * PS_PER_US
"""So short an uplink delay is spun away on the spot."""

_HOUSEKEEPING_PS: Final = 20 * PS_PER_MS
_LATE_PS: Final = PS_PER_MS


@dataclass(slots=True)
class _Outgoing:
    """A plan that is being sent: a cursor over its messages, in the order of their counters."""

    batch: Batch
    enqueue: Prepared
    get: Prepared
    shot: int = 0
    block: int = 0


class RackClient:
    """A rack's connection to its node, its own process or another's. Use as a context manager.

    Start it from a thread that lives as long as the connection.

    Args:
        config: the exchange.
        start_timeout_s: limit for the node's start, decoders built and warm.
        wrap: puts faults around the rack's endpoint.
        tap: is shown every frame that the rack sends or receives.
        answer_faults: what the port of the node does to answers on their way out.
        attach: finds a node that runs already (``hil.node.remote``); it keeps its stamps.
            ``None``: a process of our own is started.

    Raises:
        LinkError: an address is taken or not loopback.
        NodeError: the node did not start.
    """

    def __init__(
        self,
        config: NodeConfig,
        *,
        start_timeout_s: float = 120.0,
        wrap: Callable[[Endpoint], Endpoint] | None = None,
        tap: Tap | None = None,
        answer_faults: LinkPlan | None = None,
        attach: Attach | None = None,
    ) -> None:
        self._config = config
        self._answer_faults = answer_faults
        self._cable: socket.socket | None = None
        self._ledger = Ledger(config)
        self._held: deque[tuple[int, Prepared, int]] = deque()  # due, frames, index
        self._late_sends = 0
        self._node_counters: dict[str, int] = {}
        self._stack = contextlib.ExitStack()
        try:
            self._open(wrap, tap)
            self._node = self._started(start_timeout_s) if attach is None else self._found(attach)
            self._stack.callback(self._node.close)
            self._endpoint.connect(self._node.peer)
        except BaseException:
            self._stack.close()
            raise

    def _open(self, wrap: Callable[[Endpoint], Endpoint] | None, tap: Tap | None) -> None:
        config = self._config
        mine = None
        if needs_cable(config):
            mine, self._cable = cable()
            self._stack.enter_context(self._cable)
        self._endpoint: Endpoint = open_endpoint(config, "rack", tap, mine)
        self._stack.callback(self._endpoint.close)
        if wrap is not None:
            self._endpoint = wrap(self._endpoint)
        self._memory = self._endpoint.register(REPLY_SLOTS, reply_slot_bytes(config))
        self._stride = self._endpoint.address().stride

    def _found(self, attach: Attach) -> NodeHandle:
        self._stamps: StampReader | NoStamps = NoStamps(self._config.prediction_bytes)
        return attach(self._endpoint.address())

    def _started(self, timeout_s: float) -> NodeHandle:
        config = self._config
        n_frames = config.stamp_shots * config.n_blocks
        path = create_stamp_file(n_frames, config.stamp_shots, config.prediction_bytes)
        try:
            self._stamps = StampReader(path)
            self._stack.callback(self._stamps.close)
            stamps = os.open(path, os.O_RDWR)
        finally:
            path.unlink()  # at once: a kill while the node starts must leave nothing behind
        try:
            launch = Launch(
                config=config,
                peer=Peer(**asdict(self._endpoint.address())),
                stamp_path=f"/proc/self/fd/{stamps}",
                parent_pid=os.getpid(),
                cable=None if self._cable is None else self._cable.fileno(),
                answer_faults=self._answer_faults,
            )
            inherited = (stamps,) if self._cable is None else (stamps, self._cable.fileno())
            return NodeProcess(launch, timeout_s=timeout_s, pass_fds=inherited)
        finally:
            os.close(stamps)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # -- public -------------------------------------------------------------------------------

    @property
    def node_pid(self) -> int:
        """Process id of the node."""
        return self._node.pid

    @property
    def worker_pids(self) -> list[int]:
        """Process ids of the decode workers."""
        return list(self._node.worker_pids)

    def fingerprints(self) -> dict[str, dict[str, str]]:
        """What really answers: fingerprint of the ``primary`` and of the ``fallback`` decoder."""
        return self._node.fingerprints

    def counters(self) -> dict[str, int]:
        """Counts of the rack side: frames, replies by fate, ``link.*`` of the endpoint."""
        link = {f"link.{name}": count for name, count in self._endpoint.counters().items()}
        return {**self._ledger.count, "late_sends": self._late_sends, **link}

    def close(self) -> dict[str, int]:
        """End the node in good order and reap it; returns the node's counters.

        Empty if the node died. Closing twice returns the same.
        """
        node = getattr(self, "_node", None)
        if node is not None and not self._node_counters:
            self._node_counters = node.end(self._ledger.next_counter)
        self._stack.close()
        return self._node_counters

    def stream(self, plans: Iterable[Plan], *, spin: bool = False) -> Iterator[Exchange]:
        """Send all plans on time and yield one exchange per plan, in order.

        While the caller holds the iterator, and while ``plans`` makes its next item, nothing is
        sent and no reply is stamped.

        Args:
            plans: what to send; shots are consecutive.
            spin: do not sleep in the last 150 us before a send instant (wants a core).

        Raises:
            NodeLostError: the node died, or the connection to it (RC); ``partial`` carries what
                is known.
            UsageError: a plan does not fit.
            LinkError: the network refused a frame.
        """
        source = iter(plans)
        outgoing = self._pull(source)
        housekeeping_ps = 0
        while outgoing is not None or self._held or self._ledger.batches:
            self._wait(self._next_send_ps(outgoing), spin=spin)
            self._send_held()
            if outgoing is not None and self._send_due(outgoing):
                outgoing = self._pull(source)
            drained = self._take_replies()
            now_ps = monotonic_ps()
            if drained and now_ps > housekeeping_ps:  # nothing waits that could still settle a shot
                housekeeping_ps = now_ps + _HOUSEKEEPING_PS
                self._ledger.declare_overdue(now_ps)
                if not self._node.is_alive():
                    raise self._lost("the decoder node died", self._node.epitaph())
            yield from self._finished(now_ps)

    def predecode(self, detectors: U8) -> tuple[Status, Correction | None]:
        """Send one whole shot and wait for its answer; not while a stream is under way.

        Args:
            detectors: uint8 [D], 0 or 1.

        Returns:
            The status of the reply and, if that is 0, the correction.

        Raises:
            NodeLostError: the node died.
            NodeError: no reply within ``answer_timeout_ps``.
            RpcError: ``detectors`` are no bits.
            UsageError: the node takes no whole shots (``NodeConfig.predecode``).
        """
        if not self._config.predecode:
            raise UsageError("the node takes no whole shots", fix="set predecode of its NodeConfig")
        stamp = ptp_from_ns(monotonic_ps() // PS_PER_NS)
        number = self._ledger.whole_shot()
        message = Predecode(number & 0xFFFFFFFF, stamp, detectors.tobytes())
        slot = number % self._config.ring_slots
        self._endpoint.post_write_imm(pad(build_predecode(message)), slot)
        until_ps = monotonic_ps() + self._config.answer_timeout_ps
        while monotonic_ps() < until_ps:
            self._wait(until_ps, spin=False)
            for completion in self._endpoint.poll(POLL_BATCH):
                at = completion.slot * self._stride
                data = bytes(self._memory[at : at + completion.length])
                self._endpoint.release(completion.slot)
                response, correction = parse_correction(data)
                if (response.request_id, response.ptp_timestamp) == message[:2]:
                    return Status(response.status), correction
        raise NodeError("no answer to a predecode in time", where=f"shot {number}")

    # -- sending ------------------------------------------------------------------------------

    def _pull(self, source: Iterator[Plan]) -> _Outgoing | None:
        plan = next(source, None)
        if plan is None:
            return None
        batch = self._ledger.open(plan)
        n, r = plan.t_send_ps.shape
        per_shot, slots = self._config.messages_per_shot, self._config.ring_slots
        counters = (plan.first_shot + np.arange(n))[:, None] * per_shot + np.arange(r + 1)
        rows = plan.enqueue.reshape(n * r, -1)
        enqueue = self._endpoint.prepare(rows, (counters[:, :r] % slots).reshape(-1))
        return _Outgoing(batch, enqueue, self._endpoint.prepare(plan.get, counters[:, r] % slots))

    def _next_send_ps(self, outgoing: _Outgoing | None) -> int | None:
        timers = [self._held[0][0]] if self._held else []
        if outgoing is not None:
            timers.append(int(outgoing.batch.plan.t_send_ps[outgoing.shot, outgoing.block]))
        return min(timers, default=None)

    def _wait(self, until_ps: int | None, *, spin: bool) -> None:
        """Sleep until a reply, the node's end, or the instant ``until_ps`` (exact if spinning)."""
        exact = spin or bool(self._held)
        now_ps = monotonic_ps()
        wait_ps = _HOUSEKEEPING_PS if until_ps is None else until_ps - now_ps
        if exact:
            wait_ps -= POLL_PS
        timer_ps = self._endpoint.next_timer_ps()
        if timer_ps is not None:
            wait_ps = min(wait_ps, timer_ps - now_ps)
        wait_s = min(max(0, wait_ps), _HOUSEKEEPING_PS) / PS_PER_S
        heard = self._endpoint.fileno()
        listen: list[Any] = [self._node] if heard is None else [heard, self._node]
        wait_s = wait_s if heard is not None else 0.0  # a device must be polled
        readable, _, _ = select.select(listen, (), (), wait_s)
        if self._node in readable:
            raise self._lost("the decoder node died", self._node.epitaph())
        if self._endpoint.error:
            raise self._lost("the connection to the decoder node is dead", self._endpoint.error)
        if exact and until_ps is not None:
            self._spin_until(until_ps)

    def _spin_until(self, instant_ps: int) -> None:
        """Watch the clock to a near ``instant_ps``, and replies while there is time for one."""
        left_ps = instant_ps - monotonic_ps()
        while 0 < left_ps < POLL_PS:
            if left_ps > SPIN_PS:
                self._take_replies()
            left_ps = instant_ps - monotonic_ps()

    def _send_due(self, outgoing: _Outgoing) -> bool:
        """Send what is due, a few frames at most; returns True when the plan is sent."""
        times, blocks = outgoing.batch.plan.t_send_ps, self._config.n_blocks
        for _ in range(SEND_BATCH):
            shot, block = outgoing.shot, outgoing.block
            wanted_ps, now_ps = int(times[shot, block]), monotonic_ps()
            if now_ps < wanted_ps:
                return False
            self._late_sends += now_ps - wanted_ps > _LATE_PS
            self._emit(outgoing, shot, block)
            if block < blocks - 1:
                outgoing.block += 1
                continue
            self._emit(outgoing, shot, blocks)
            outgoing.shot, outgoing.block = shot + 1, 0
            if outgoing.shot == len(times):
                return True
        return False

    def _emit(self, outgoing: _Outgoing, shot: int, block: int) -> None:
        """Stamp T2 and send one message, or hold it back for the injected uplink delay."""
        blocks = self._config.n_blocks
        frames, index = (outgoing.enqueue, shot * blocks + block)
        if block == blocks:
            frames, index = outgoing.get, shot
        number = outgoing.batch.plan.first_shot + shot
        delay_ps = self._config.delays.of("uplink", number)
        t_tx_ps = monotonic_ps()
        self._ledger.sent(outgoing.batch, shot, block, t_tx_ps)
        if self._held or delay_ps > IN_PLACE_PS:
            self._held.append((monotonic_ps() + delay_ps, frames, index))
            return
        due_ps = monotonic_ps() + delay_ps
        while delay_ps and monotonic_ps() < due_ps:
            pass
        self._endpoint.post(frames, index)

    def _send_held(self) -> None:
        while self._held and self._held[0][0] <= monotonic_ps():
            _, frames, index = self._held.popleft()
            self._endpoint.post(frames, index)

    # -- receiving ----------------------------------------------------------------------------

    def _take_replies(self) -> bool:
        """Book the replies that are there; returns False if there may be more."""
        completions = self._endpoint.poll(POLL_BATCH)
        for completion in completions:
            if completion.busy:  # cannot be: every slot is released at once
                continue
            at = completion.slot * self._stride
            data = self._memory[at : at + completion.length]
            self._ledger.reply(data, completion.t_rx_ps)
            self._endpoint.release(completion.slot)
        return len(completions) < POLL_BATCH

    def _finished(self, now_ps: int) -> Iterator[Exchange]:
        batches = self._ledger.batches
        while batches and batches[0].done_ps != MISSING_PS:
            waited_ps = now_ps - batches[0].done_ps
            ready = self._ledger.complete(batches[0], self._stamps)
            if not ready and waited_ps < self._config.answer_timeout_ps:
                return
            yield self._ledger.close(batches[0], self._stamps)

    def _lost(self, what: str, why: str) -> NodeLostError:
        """The error that tells of the node's end, with everything that came before it."""
        self._take_replies()
        parts = [
            self._ledger.close(batch, self._stamps, node_lost=True)
            for batch in list(self._ledger.batches)
        ]
        return NodeLostError(
            what,
            where=self._node.name,
            got=why,
            partial=concatenate(parts) if parts else None,
        )
