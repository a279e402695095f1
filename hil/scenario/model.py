"""The scenario as frozen data: what ``load_scenario`` returns and everybody else reads.

Only what is built is in these models; ``docs/scenario.md`` lists it. Attribute names of times end
in ``_ps`` (integers); the YAML keys carry no suffix and their values a unit.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal, TypeAlias

from pydantic import Discriminator, Field, Tag, model_validator

from gpu_decoder.protocol import Reason
from hil.scenario.bind import (
    BindSpec,
    BoundProfile,
    DecoderBinding,
    Level,
    NetworkBinding,
    RackBinding,
)
from hil.scenario.expect import METRICS, Expectation, Metric
from hil.scenario.fields import DurationPs, Id, Names, PeriodPs, Spec, as_tuple, problem
from hil.scenario.ising import Ising25Noise, IsingCircuit, IsingScalarNoise
from hil.scenario.latency import (
    Const,
    Cycles,
    Empirical,
    Evidence,
    Latency,
    LogNormal,
    Normal,
    Recorded,
)
from hil.scenario.predecoder import PredecoderSpec, ThresholdSpec
from hil.scenario.qpu import (
    Basis,
    CircuitNoise,
    CircuitSpec,
    FourNoise,
    GeneratedCircuit,
    NoiseSpec,
    QpuSpec,
    Si1000Noise,
    UniformNoise,
    UserCircuit,
)
from hil.scenario.rack import BoardSpec, ClockSpec, RackSpec, StageSpec
from hil.scenario.service import ByEvents, Service
from hil.scenario.system import (
    HOPS,
    DecoderSpec,
    DownLinkSpec,
    FallbackReason,
    FallbackSpec,
    Hop,
    LinksSpec,
    Primary,
    RingSpec,
    SystemSpec,
    UpLinkSpec,
    WindowSpec,
)
from hil.scenario.vendor import Zhinst

SCHEMA: Final = "hil.scenario/1"

Stream: TypeAlias = Literal[
    "rounds", "shots", "syndromes", "decodes", "packets", "faults", "epochs", "logs"
]
STREAMS: Final[tuple[Stream, ...]] = (
    "rounds",
    "shots",
    "syndromes",
    "decodes",
    "packets",
    "faults",
    "epochs",
    "logs",
)


class WarmupSpec(Spec):
    """First part of a run, judged apart."""

    shots: int = Field(ge=0, description="Shots at the start that clean statistics leave out.")


class RecordSpec(Spec):
    """What the trace keeps."""

    level: Literal["rounds", "shots"] = Field(
        description="A row per round, or per shot with rows of rounds for 1 in N."
    )
    streams: Annotated[tuple[Stream, ...], as_tuple] = Field(
        default=STREAMS, min_length=1, description="Streams to record; default all."
    )
    every: int = Field(
        default=1000,
        ge=1,
        le=10**12,
        description="Level shots: 1 in N shots keeps its rows of rounds.",
    )


class RunSpec(Spec):
    """How much is run."""

    seed: int = Field(ge=0, lt=2**63, description="Root of all random numbers.")
    arrivals: Literal["open_loop"] = Field(description="Rounds never wait for answers.")
    shots: int = Field(ge=1, le=10**12, description="All shots of the run, warm-up included.")
    warmup: WarmupSpec = Field(default=WarmupSpec(shots=0), description="Warm-up.")
    wall_ps: PeriodPs | None = Field(
        default=None, alias="wall", description="Longest wall time of the run."
    )
    record: RecordSpec = Field(description="What the trace keeps.")

    @model_validator(mode="after")
    def _judged(self) -> RunSpec:
        if self.warmup.shots >= self.shots:
            raise problem(
                "E205",
                "warm-up takes all shots",
                got=f"warmup.shots {self.warmup.shots} of {self.shots} shots",
                allowed="warmup.shots < shots",
                fix="lower warmup.shots",
                at="warmup.shots",
            )
        return self

    @property
    def judged_shots(self) -> int:
        """Shots behind the warm-up: the n of clean statistics without faults."""
        return self.shots - self.warmup.shots


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
    | Annotated[BreakFault, Tag("forced")],
    Discriminator(_fault_kind),
]


class Scenario(Spec):
    """One experiment: what is wired, how it is realised, what goes wrong, what must hold."""

    schema_: Literal["hil.scenario/1"] = Field(alias="schema", description="Version of the format.")
    id: Id = Field(description="Short name, part of the run id.")
    title: str = Field(min_length=1, description="One line for people.")
    tags: Names = Field(default=(), description="Words to select scenarios by.")
    requires: Annotated[tuple[()], as_tuple] = Field(
        default=(), description="Capabilities of the machine; none are known yet, so empty."
    )
    system: SystemSpec = Field(description="What is wired to what.")
    bind: BindSpec = Field(description="How each part is realised.")
    run: RunSpec = Field(description="How much is run.")
    expect: dict[Id, Expectation] = Field(
        default_factory=dict, description="What must hold, by id."
    )
    faults: dict[Id, Fault] = Field(default_factory=dict, description="What goes wrong, by id.")

    @property
    def profile(self) -> BoundProfile:
        """The profile in use (``bind.use``)."""
        return self.bind.profiles[self.bind.use]


__all__ = [
    "BREAKS",
    "HOPS",
    "METRICS",
    "SCHEMA",
    "STREAMS",
    "AtSpec",
    "Basis",
    "BindSpec",
    "BoardSpec",
    "BoundProfile",
    "BreakFault",
    "ByEvents",
    "CircuitNoise",
    "CircuitSpec",
    "ClockSpec",
    "Const",
    "Cycles",
    "DecoderBinding",
    "DecoderSpec",
    "DelayFault",
    "DownLinkSpec",
    "Empirical",
    "Evidence",
    "Expectation",
    "FallbackReason",
    "FallbackSpec",
    "Fault",
    "FourNoise",
    "GeneratedCircuit",
    "Hop",
    "Ising25Noise",
    "IsingCircuit",
    "IsingScalarNoise",
    "Latency",
    "Level",
    "LinksSpec",
    "LogNormal",
    "Metric",
    "NetworkBinding",
    "NoiseSpec",
    "Normal",
    "PredecoderSpec",
    "Primary",
    "QpuSpec",
    "RackBinding",
    "RackSpec",
    "RecordSpec",
    "Recorded",
    "RingSpec",
    "RunSpec",
    "Scenario",
    "Service",
    "Si1000Noise",
    "StageSpec",
    "StallFault",
    "Stream",
    "SystemSpec",
    "ThresholdSpec",
    "UniformNoise",
    "UpLinkSpec",
    "UserCircuit",
    "WarmupSpec",
    "WindowSpec",
    "Zhinst",
]
