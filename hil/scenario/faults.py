"""What goes wrong, as frozen data: faults of hops, decoders and links, and who must notice.

Which detector sees which fault is stated here, because a scenario is refused that names one that
cannot; how a detector reads a run stands in :mod:`hil.verdict.detectors`.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal, TypeAlias

from pydantic import Discriminator, Field, Tag, model_validator

from gpu_decoder.protocol import Reason
from hil.scenario.fields import DurationPs, PeriodPs, SizeBytes, Spec, problem
from hil.scenario.system import Hop

Detector: TypeAlias = Literal[
    "seq_gap",
    "seq_dup",
    "seq_inversion",
    "e2e_crc",
    "nic_icrc",
    "frame_len",
    "psn_window",
    "retx_cluster",
    "rnr_count",
    "pause_time",
    "stream_id",
    "link_gap",
]
"""Detectors of links."""

Transport: TypeAlias = Literal["uc", "rc"]

LinkTarget: TypeAlias = Literal["links.up", "links.down"]


class AtSpec(Spec):
    """When a fault begins."""

    shot: int = Field(ge=0, description="Index of the shot.")


class BurstSpec(Spec):
    """Part of a period in which a fault is on."""

    shots: int = Field(ge=1, description="Shots with the fault, from the start of each period.")
    every: int = Field(ge=2, description="Length of a period in shots.")

    @model_validator(mode="after")
    def _part(self) -> BurstSpec:
        if self.shots >= self.every:
            raise problem(
                "E205",
                "a burst takes its whole period",
                got=f"shots {self.shots}, every {self.every}",
                allowed="shots < every",
                fix="lower shots, or remove burst",
            )
        return self


class DelayFault(Spec):
    """A pure delay on one hop, from a shot to the end of the run, or in bursts."""

    kind: Literal["delay"] = Field(description="Kind of fault.")
    target: Hop = Field(description="Hop that becomes longer.")
    value_ps: DurationPs = Field(alias="value", description="Added time.")
    at: AtSpec = Field(default=AtSpec(shot=0), description="First delayed shot.")
    burst: BurstSpec | None = Field(
        default=None, description="Only some shots of each period; absent: all."
    )


class StallFault(Spec):
    """One decode of the primary decoder takes longer by ``value``."""

    kind: Literal["decoder_stall"] = Field(description="Kind of fault.")
    target: Literal["primary"] = Field(default="primary", description="Decoder that stalls.")
    value_ps: DurationPs = Field(alias="value", description="Added time.")
    at: AtSpec = Field(description="Shot whose decode stalls.")


BREAKS: Final[dict[str, Reason]] = {
    "backend_fail": Reason.PREDECODER_ERROR,
    "output_invalid": Reason.OUTPUT_INVALID,
    "engine_missing": Reason.ENGINE_MISSING,
    "engine_mismatch": Reason.ENGINE_MISMATCH,
    "device_lost": Reason.DEVICE_LOST,
    "forced": Reason.FORCED,
}
"""Kinds of fault that break a decode of the primary, and the reason that each gives."""


class BreakFault(Spec):
    """The primary decoder breaks on some shots in a row and gives no answer for them."""

    kind: Literal[
        "backend_fail",
        "output_invalid",
        "engine_missing",
        "engine_mismatch",
        "device_lost",
        "forced",
    ] = Field(description="Kind of fault.")
    target: Literal["primary"] = Field(default="primary", description="Decoder that breaks.")
    at: AtSpec = Field(description="First shot that it breaks on.")
    shots: int = Field(default=1, ge=1, description="How many shots in a row.")

    @property
    def reason(self) -> Reason:
        """Why there is no answer."""
        return BREAKS[self.kind]


class LinkAtSpec(Spec):
    """When a fault of a link begins: one of the three."""

    shot: int | None = Field(default=None, ge=0, description="Index of the shot.")
    round: int | None = Field(
        default=None, ge=0, description="Round of the run, final readouts included, from 0."
    )
    time_ps: DurationPs | None = Field(
        default=None, alias="time", description="Scenario time from the start of the run."
    )

    @model_validator(mode="after")
    def _one(self) -> LinkAtSpec:
        stated = [name for name in ("shot", "round", "time_ps") if getattr(self, name) is not None]
        if len(stated) != 1:
            raise problem(
                "E201",
                "a fault begins at one instant",
                got=" and ".join(name.removesuffix("_ps") for name in stated) or "nothing",
                allowed="one of shot, round, time",
                fix="write one of them",
            )
        return self

    def first_due_ps(self, round_period_ps: int, shot_period_ps: int, n_blocks: int) -> int:
        """Frames that are due from this scenario time on may suffer."""
        if self.time_ps is not None:
            return self.time_ps
        if self.round is not None:
            shot, block = divmod(self.round, n_blocks)
            return shot * shot_period_ps + (block + 1) * round_period_ps
        return (self.shot or 0) * shot_period_ps


class LossBurstSpec(Spec):
    """Gilbert-Elliott: losses come in bursts."""

    frames: float = Field(gt=1, le=1e6, description="Mean length of the bad state in frames.")
    loss: float = Field(
        default=1.0, gt=0, le=1, description="Share of frames lost in the bad state."
    )


Rate = Annotated[
    float,
    Field(gt=0, le=1, allow_inf_nan=False, description="Share of the frames that suffer."),
]


class _OnLink(Spec):
    """What faults of links have in common."""

    target: LinkTarget = Field(
        description="links.up: messages of rounds and requests; links.down: answers."
    )
    at: LinkAtSpec = Field(
        default=LinkAtSpec(shot=0), description="When it begins; by the frames' intended time."
    )
    for_ps: PeriodPs | None = Field(
        default=None, alias="for", description="How long; absent: to the end of the run."
    )
    caught_by: Detector | None = Field(
        default=None, description="Detector that must fire, or the run is a FAIL."
    )


class LossFault(_OnLink):
    """Frames never leave."""

    kind: Literal["loss"] = Field(description="Kind of fault.")
    p: Rate
    burst: LossBurstSpec | None = Field(
        default=None, description="In bursts of the same mean rate; absent: each on its own."
    )

    @model_validator(mode="after")
    def _possible(self) -> LossFault:
        if self.burst is None:
            return self
        bad = self.p / self.burst.loss
        if bad >= 1 or bad / (1 - bad) / self.burst.frames > 1:
            raise problem(
                "E205",
                "bursts cannot be so short at this rate of loss",
                got=f"p {self.p}, burst.frames {self.burst.frames}, burst.loss {self.burst.loss}",
                allowed="b / (1 - b) <= burst.frames with b = p / burst.loss < 1",
                fix="raise burst.frames, lower p, or remove burst",
            )
        return self


class DuplicateFault(_OnLink):
    """Frames are sent twice."""

    kind: Literal["duplicate"] = Field(description="Kind of fault.")
    p: Rate
    after: int = Field(
        default=0, ge=0, le=1024, description="Frames after which the copy goes; 0: at once."
    )


class ReorderFault(_OnLink):
    """Frames are overtaken by later ones."""

    kind: Literal["reorder"] = Field(description="Kind of fault.")
    p: Rate
    window: int = Field(ge=1, le=1024, description="Overtaken by 1 to so many frames.")


class SpoilFault(_OnLink):
    """One wrong bit behind the end-to-end CRC (bit_flip), on the wire (icrc), or another QP."""

    kind: Literal["bit_flip", "icrc", "wrong_qp"] = Field(description="Kind of fault.")
    p: Rate


class TruncateFault(_OnLink):
    """Frames lose their end; the ICRC fits what is left."""

    kind: Literal["truncate"] = Field(description="Kind of fault.")
    p: Rate
    value_bytes: SizeBytes = Field(alias="value", le=4096, description="Bytes that are cut off.")

    @model_validator(mode="after")
    def _seen(self) -> TruncateFault:
        if self.value_bytes < 4 or self.value_bytes % 4:
            raise problem(
                "E205",
                "a cut is made of whole words",
                got=f"{self.value_bytes}B",
                allowed="4B, 8B, 12B ...",
                fix="write a multiple of 4B",
                at="value",
            )
        return self


class PauseFault(_OnLink):
    """The port lets nothing out for a while, then all of it at once."""

    kind: Literal["pause"] = Field(description="Kind of fault.")
    value_ps: PeriodPs = Field(alias="value", description="How long.")
    every_ps: PeriodPs | None = Field(
        default=None, alias="every", description="Begin to begin; absent: once."
    )

    @model_validator(mode="after")
    def _apart(self) -> PauseFault:
        if self.every_ps is not None and self.every_ps < 2 * self.value_ps:
            raise problem(
                "E205",
                "pauses run into each other",
                got=f"value {self.value_ps} ps, every {self.every_ps} ps",
                allowed="every >= 2 x value",
                fix="raise every",
                at="every",
            )
        return self


LinkFault: TypeAlias = (
    LossFault | DuplicateFault | ReorderFault | SpoilFault | TruncateFault | PauseFault
)
LINK_FAULTS: Final = (
    LossFault,
    DuplicateFault,
    ReorderFault,
    SpoilFault,
    TruncateFault,
    PauseFault,
)

NAMED: Final[dict[str, Detector]] = {
    "loss": "seq_gap",
    "duplicate": "seq_dup",
    "reorder": "seq_inversion",
    "bit_flip": "e2e_crc",
    "icrc": "nic_icrc",
    "truncate": "frame_len",
    "wrong_qp": "stream_id",
    "pause": "pause_time",
}
"""Kind of a fault of a link -> the detector that sees every one of them on UC."""

_GAPS: Final[dict[Detector, str]] = {
    "seq_gap": "a frame that a check refuses is missing",
    "link_gap": "many missing in a row are a silent link",
}
_SIDE_EFFECTS: Final[dict[str, dict[Detector, str]]] = {
    "loss": {"link_gap": "many missing in a row are a silent link"},
    "duplicate": {"psn_window": "a copy later than the memory of the audit is stale"},
    "reorder": {},
    "bit_flip": _GAPS,
    "icrc": _GAPS,
    "truncate": _GAPS,
    "wrong_qp": _GAPS,
    "pause": {},
}
RESENT: Final[dict[Detector, str]] = {
    "retx_cluster": "the connection sends again what did not arrive in order and in time",
    "seq_dup": "what is sent again may have arrived already",
    "rnr_count": "what comes late and all at once may find no free receive",
}
"""What a reliable connection may do under any fault, those of decoders and hops included."""


def named_detector(kind: str, transport: Transport) -> Detector:
    """The detector that sees every fault of this kind.

    A reliable connection repairs loss and order: there only what it sends again tells of them.
    """
    repaired = transport == "rc" and kind in ("loss", "reorder")
    return "retx_cluster" if repaired else NAMED[kind]


def side_effects(kind: str, transport: Transport) -> dict[Detector, str]:
    """Detectors that may fire beside the named one, and why. Any other one is a FAIL."""
    if transport == "uc":
        return _SIDE_EFFECTS[kind]
    gaps = _GAPS if kind == "bit_flip" else {}
    named = named_detector(kind, transport)
    return {name: why for name, why in {**gaps, **RESENT}.items() if name != named}


ENDS_RC: Final = ("truncate",)
"""Kinds that a reliable connection answers with its own end (a length NAK is final)."""

REPAIRED_BY_RC: Final = ("loss", "duplicate", "reorder", "icrc", "wrong_qp")
"""Kinds that a reliable connection repairs, in a time that no virtual run knows."""


def may_fire(kind: str, transport: Transport) -> tuple[Detector, ...]:
    """Detectors that may fire in a run with such a fault, the named one first."""
    return (named_detector(kind, transport), *side_effects(kind, transport))


def _fault_kind(value: object) -> str | None:
    kind = value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)
    return kind if isinstance(kind, str) else None


Fault: TypeAlias = Annotated[
    Annotated[DelayFault, Tag("delay")]
    | Annotated[StallFault, Tag("decoder_stall")]
    | Annotated[BreakFault, Tag("backend_fail")]
    | Annotated[BreakFault, Tag("output_invalid")]
    | Annotated[BreakFault, Tag("engine_missing")]
    | Annotated[BreakFault, Tag("engine_mismatch")]
    | Annotated[BreakFault, Tag("device_lost")]
    | Annotated[BreakFault, Tag("forced")]
    | Annotated[LossFault, Tag("loss")]
    | Annotated[DuplicateFault, Tag("duplicate")]
    | Annotated[ReorderFault, Tag("reorder")]
    | Annotated[SpoilFault, Tag("bit_flip")]
    | Annotated[SpoilFault, Tag("icrc")]
    | Annotated[SpoilFault, Tag("wrong_qp")]
    | Annotated[TruncateFault, Tag("truncate")]
    | Annotated[PauseFault, Tag("pause")],
    Discriminator(_fault_kind),
]
