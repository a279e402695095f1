"""One shot inside the node: what has arrived, who works on it, how it was settled; and the actions.

A shot is *settled* as soon as it has an ``Outcome`` (an answer or a declared non-answer, exactly
one), and *closed* when its reply has been sent and no worker is busy with it any more.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gpu_decoder.protocol import Reason
from hil.timebase import MISSING_PS
from hil.wire.rpc import Status

NO_REPLY: Final = -1000
"""Status code of a shot whose request never got a reply: declared by the rack."""


class Answerer(IntEnum):
    """Who answered a shot (trace column ``path``)."""

    PRIMARY = 0
    FALLBACK = 1
    UNANSWERED = 2


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a shot was settled. ``prediction`` is empty where it is declared unanswered."""

    path: Answerer
    reason: Reason
    status: Status
    prediction: bytes = b""


class Chain(NamedTuple):
    """The pre-decoder of one decode as it ran: codes, and the events that it left to matching."""

    backend: int
    precision: int
    residual_events: int


@dataclass(frozen=True, slots=True)
class Decode:
    """Result of one decode: stamps in ps and the prediction, empty if there is none.

    ``failed`` says why there is none. ``chain``: what the pre-decoder was, ``None`` without one.
    """

    start_ps: int
    end_ps: int
    prediction: bytes
    failed: Reason = Reason.NONE
    chain: Chain | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """The request of a shot that waits for its reply; ``whole``: a predecode."""

    request_id: int
    ptp_timestamp: int
    valid_until_round: int
    whole: bool = False


@dataclass(slots=True, eq=False)
class Shot:
    """State of one shot."""

    number: int
    bits: NDArray[np.uint8]  # one byte per bit on the wire; per detector once it is whole
    received: int = 0  # bit k: block k is in
    slots: list[int] = field(default_factory=list)
    t0_last_ps: int = 0
    n_events: int = -1
    queue_depth: int = 0
    asked: Asked | None = None
    reply_made: bool = False
    reply_tx_ps: int = MISSING_PS
    outcome: Outcome | None = None
    primary: Decode | None = None
    fallback: Decode | None = None
    busy_workers: int = 0
    recorded: bool = False

    def row(self, executed_primary: int, executed_fallback: int) -> dict[str, object]:
        """The shot's row of the stamp file (``hil.node.stamps.shot_dtype``)."""
        values: dict[str, object] = {
            "n_events": self.n_events,
            "residual_events": -1,
            "queue_depth": min(self.queue_depth, 0xFFFF),
            "t_reply_tx_ps": self.reply_tx_ps,
        }
        for name, decode, code in (
            ("primary", self.primary, executed_primary),
            ("fallback", self.fallback, executed_fallback),
        ):
            if decode is None:
                continue
            if name == "primary":
                values["primary_failed"] = int(decode.failed)
            if name == "primary" and decode.chain is not None:
                values |= decode.chain._asdict()
            values[f"{name}_start_ps"] = decode.start_ps
            values[f"{name}_end_ps"] = decode.end_ps
            if decode.prediction:
                values[f"executed_{name}"] = code
                values[f"{name}_prediction_b8"] = np.frombuffer(decode.prediction, np.uint8)
        if self.outcome is not None:
            values["path"] = int(self.outcome.path)
            values["reason"] = int(self.outcome.reason)
            answer = {Answerer.PRIMARY: self.primary, Answerer.FALLBACK: self.fallback}.get(
                self.outcome.path
            )
            if answer is not None:
                values["t_decode_start_ps"] = answer.start_ps
                values["t_decode_end_ps"] = answer.end_ps
        return values


@dataclass(frozen=True, slots=True)
class Reply:
    """Send ``data``. ``shot`` >= 0: this is the answer of that shot, report when it was sent."""

    data: bytes
    shot: int = -1


@dataclass(frozen=True, slots=True)
class Start:
    """Give ``detectors_b8`` of ``shot`` to an idle worker (``fallback`` or primary).

    ``extra_ps`` and ``fails`` are injected faults: a stall, and how the decoder breaks.
    """

    fallback: bool
    shot: int
    detectors_b8: bytes
    extra_ps: int
    fails: Reason = Reason.NONE


@dataclass(frozen=True, slots=True)
class Hold:
    """The window of ``shot`` is complete: call ``eligible`` so much later (injected delay)."""

    shot: int
    delay_ps: int


@dataclass(frozen=True, slots=True)
class Release:
    """These memory slots may be written again."""

    slots: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class StampFrame:
    """Publish the stamps of a syndrome frame."""

    counter: int
    t_rx_ps: int
    t_visible_ps: int


@dataclass(frozen=True, slots=True)
class StampShot:
    """Publish the row of a closed shot."""

    shot: int
    row: dict[str, object]


Action: TypeAlias = Reply | Start | Hold | Release | StampFrame | StampShot
