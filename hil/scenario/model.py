"""The scenario as frozen data: what ``load_scenario`` returns and everybody else reads.

Only what is built is in these models; ``docs/scenario.md`` lists it. Attribute names of times end
in ``_ps`` (integers); the YAML keys carry no suffix and their values a unit.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal, TypeAlias

from pydantic import Field, model_validator

from hil.scenario.bind import (
    BindSpec,
    BoundProfile,
    DecoderBinding,
    Level,
    NetworkBinding,
    RackBinding,
)
from hil.scenario.expect import METRICS, Expectation, Metric
from hil.scenario.faults import (
    BREAKS,
    LINK_FAULTS,
    AtSpec,
    BreakFault,
    DelayFault,
    Fault,
    LinkFault,
    PauseFault,
    StallFault,
)
from hil.scenario.fields import Id, Names, PeriodPs, Spec, as_tuple, problem
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
    def link_faults(self) -> dict[str, LinkFault]:
        """The faults of links, by id."""
        return {name: f for name, f in self.faults.items() if isinstance(f, LINK_FAULTS)}

    @property
    def profile(self) -> BoundProfile:
        """The profile in use (``bind.use``)."""
        return self.bind.profiles[self.bind.use]


__all__ = [
    "BREAKS",
    "HOPS",
    "LINK_FAULTS",
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
    "LinkFault",
    "LinksSpec",
    "LogNormal",
    "Metric",
    "NetworkBinding",
    "NoiseSpec",
    "Normal",
    "PauseFault",
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
