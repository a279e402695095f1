"""``hil rack stream``: the rack alone, towards any node: frames on time, replies booked, a summary.

What a node keeps to itself (its stamps, who answered) stays unknown here: figures are those that a
rack can measure, on its own clock.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from hil.device.sampler import event_counts
from hil.errors import HilError
from hil.node import setup
from hil.node.client import Exchange, Plan, RackClient
from hil.node.config import NodeConfig
from hil.node.remote import Attach
from hil.node.shots import NO_REPLY
from hil.rack.plan import WorkloadSource, build_pipeline
from hil.run.feeder import Chunk, Feeder, FeedPlan
from hil.run.interrupt import Interrupt
from hil.run.lab import Lab
from hil.run.live import prompt_threads
from hil.run.live_config import check_live
from hil.run.parts import board_mask
from hil.timebase import MISSING_PS, PS_PER_MS, PS_PER_NS, monotonic_ps
from hil.verdict.histogram import Histogram
from hil.verdict.sender import SenderLateness
from hil.wire.rpc import Status

_LEAD_PS: Final = 300 * PS_PER_MS
_QUANTILES: Final = (0.5, 0.9, 0.99, 0.999)


@dataclass
class Tally:
    """What a rack knows of an exchange; memory does not grow with its length.

    Attributes:
        shots, answered: sent; replied to with status 0.
        failed: answers that differ from the truth in any observable.
        compared, unlike: answers compared with those of our own decoder; that differ.
        statuses: replies by status name, ``NO_REPLY`` where none came in time.
        latency: T9 minus the intended end of the shot's last block, answered shots.
        lateness: of the sender.
    """

    lateness: SenderLateness
    shots: int = 0
    answered: int = 0
    failed: int = 0
    compared: int = 0
    unlike: int = 0
    events: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    latency: Histogram = field(default_factory=Histogram)

    def add(self, chunk: Chunk, got: Exchange, wall_start_ps: int, pace: int) -> None:
        """Book the exchange of one chunk."""
        good = got.status_code == Status.OK
        self.shots += chunk.batch.n_shots
        self.answered += int(good.sum())
        self.events += int(event_counts(chunk.batch.detectors_b8).sum())
        codes, counts = np.unique(got.status_code, return_counts=True)
        for code, count in zip(codes.tolist(), counts.tolist(), strict=True):
            self.statuses[_name(code)] += count
        truth = chunk.batch.observables_b8
        self.failed += int((got.prediction_b8 != truth).any(axis=1)[good].sum())
        if chunk.expected_b8 is not None:
            self.compared += int(good.sum())
            self.unlike += int((got.prediction_b8 != chunk.expected_b8).any(axis=1)[good].sum())
        intended_ps = wall_start_ps + chunk.intended_ps[:, -1] * pace
        self.latency.update((got.t_reply_rx_ps - intended_ps)[good])
        sent = got.t_tx_ps != MISSING_PS
        planned_ps = wall_start_ps + chunk.send_ps * pace
        self.lateness.update((got.t_tx_ps - planned_ps)[sent])


@dataclass
class Streamed:
    """A stream that is over.

    Attributes:
        tally: what the rack saw.
        rack, node: counters of both ends; the node's are empty where it told none.
        fingerprints: of the decoders that answered, where the node told.
        lost: why it ended early, empty if it did not.
    """

    tally: Tally
    config: NodeConfig
    pace: int
    rack: dict[str, int] = field(default_factory=dict)
    node: dict[str, int] = field(default_factory=dict)
    fingerprints: dict[str, dict[str, str]] = field(default_factory=dict)
    lost: str = ""

    @property
    def complete(self) -> bool:
        """Every shot was answered, and as our own decoder would where that was asked for."""
        tally = self.tally
        return not self.lost and tally.answered == tally.shots > 0 and not tally.unlike

    def summary(self, scenario: str) -> dict[str, Any]:
        """As JSON data; durations in ns, T9 minus the intended end of the shot."""
        tally, latency = self.tally, self.tally.latency
        figures: dict[str, float | int] = {"n": latency.count}
        if latency.count:
            for q in _QUANTILES:
                rank = max(1, int(np.ceil(q * latency.count)))
                figures[f"p{100 * q:g}"] = latency.order_statistic(rank)[1] // PS_PER_NS
            figures |= {"min": latency.minimum // PS_PER_NS, "max": latency.maximum // PS_PER_NS}
        answers: dict[str, int] = {"failed": tally.failed, "correct": tally.answered - tally.failed}
        if tally.compared:
            answers |= {"compared": tally.compared, "unlike_own_decoder": tally.unlike}
        return {
            "format": "hil.stream/1",
            "scenario": scenario,
            "pace": self.pace,
            "complete": self.complete,
            "ended_early": self.lost,
            "shots": tally.shots,
            "answered": tally.answered,
            "answers": answers,
            "detection_events": tally.events,
            "statuses": dict(sorted(tally.statuses.items())),
            "latency_ns": figures,
            "sender": {k.removeprefix("sender."): v for k, v in tally.lateness.counts().items()}
            | {"held": tally.lateness.held},
            "decoders": self.fingerprints,
            "exchange": setup.facts(self.config),
            "rack": self.rack,
            "node": self.node,
        }


def stream(
    lab: Lab,
    config: NodeConfig,
    attach: Attach,
    interrupt: Interrupt,
    *,
    verify: bool = False,
    progress: Callable[[int, int], None] = lambda _done, _all: None,
) -> Streamed:
    """Send all shots of a scenario to a node that runs already.

    Args:
        lab: the scenario and what was built of it.
        config: the exchange.
        attach: finds the node.
        interrupt: ends the stream early.
        verify: compare each answer with that of our own decoder (in the feeder, off the clock).
        progress: called with (shots done, shots wanted).

    Raises:
        HilError: the node cannot be reached, or what keeps a live run from starting.
    """
    scenario, pace = lab.scenario, lab.loaded.profile.rack.pace
    largest = int(lab.models[0].block_bits.max())
    pipeline = build_pipeline(scenario, largest, way_back_pred_ps=0)
    check_live(scenario, pipeline)
    shots, source = scenario.run.shots, WorkloadSource(scenario)
    feed = FeedPlan(
        lab.models, source, pipeline, shots, pace, board_mask(scenario),
        decoders=lab.decoders if verify else None,
    )  # fmt: skip
    qpu = scenario.system.qpu
    late = SenderLateness.for_deadline(scenario.system.decoder.deadline_ps, qpu.round_period_ps)
    result = Streamed(Tally(late), config, pace)
    with (
        prompt_threads(),
        Feeder(feed) as feeder,  # it gets ready while the node does
        RackClient(config, attach=attach) as client,
    ):
        feeder.warm_up()
        result.fingerprints = client.fingerprints()
        try:
            _exchange(client, feeder, result, interrupt, shots, progress)
        except HilError as error:
            result.lost = error.message
        result.rack = client.counters()
        result.node = client.close()
    if interrupt:
        result.lost = f"interrupted by {interrupt.name}"
    return result


def _exchange(
    client: RackClient,
    feeder: Feeder,
    result: Streamed,
    interrupt: Interrupt,
    wanted: int,
    progress: Callable[[int, int], None],
) -> None:
    tally, pace = result.tally, result.pace
    wall_start_ps = monotonic_ps() + _LEAD_PS
    feeder.start(wall_start_ps)
    sent: deque[Chunk] = deque()

    def plans() -> Iterator[Plan]:
        for chunk in feeder.chunks():
            if interrupt:
                return
            sent.append(chunk)
            send_ps = wall_start_ps + chunk.send_ps * pace
            yield Plan(chunk.batch.first_shot, chunk.enqueue, chunk.get, send_ps)

    for got in client.stream(plans(), spin=result.config.spin):
        tally.add(sent.popleft(), got, wall_start_ps, pace)
        progress(tally.shots, wanted)


def _name(code: int) -> str:
    if code == NO_REPLY:
        return "NO_REPLY"
    return Status(code).name if code in set(Status) else f"STATUS_{code}"
