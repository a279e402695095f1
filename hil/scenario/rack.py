"""Section ``system.rack`` of a scenario: clocks, boards and the stages between them."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import BeforeValidator, Field, ValidationInfo, WithJsonSchema, model_validator
from pydantic.json_schema import SkipJsonSchema

from hil.scenario.fields import FrequencyHz, Id, Names, Spec, TimePs, as_tuple, from_text, problem
from hil.scenario.latency import EvidenceField, Latency, check_evidence
from hil.timebase import Ticks


def _one_or_more(value: object) -> object:
    return (
        (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value
    )


Channels: TypeAlias = Annotated[
    tuple[str, ...],
    BeforeValidator(_one_or_more),
    WithJsonSchema({"type": ["string", "array"], "items": {"type": "string"}}),
]
"""One text or a list of texts: ``x_check[:]``, ``z_check[0:12]``, ``all``."""


class ClockSpec(Spec):
    """An oscillator of the rack."""

    kind: Literal["ptp_grandmaster", "free"] = Field(description="Role in time distribution.")
    freq_hz: FrequencyHz = Field(alias="freq", description="Exact frequency.")


class BoardSpec(Spec):
    """A board of the rack."""

    role: Literal["readout", "aggregate"] = Field(description="What the board does.")
    clock: Id = Field(description="Id of its clock.")
    channels: Channels = Field(
        default=(), description="Checks that a readout board measures, e.g. x_check[:]."
    )
    inputs: Names = Field(default=(), description="Readout boards that an aggregate board joins.")
    skew_ps: TimePs = Field(
        default=0, ge=0, alias="skew", description="Added to the board's first stage."
    )

    @model_validator(mode="after")
    def _role_keys(self) -> BoardSpec:
        needed, other = ("channels", "inputs") if self.role == "readout" else ("inputs", "channels")
        if not getattr(self, needed):
            raise problem(
                "E202",
                f"missing key '{needed}'",
                allowed=f"{needed} on a board with role {self.role}",
                fix=f"add '{needed}'",
                at=needed,
            )
        if getattr(self, other):
            raise problem(
                "E201",
                f"key '{other}' does not fit role {self.role}",
                allowed=f"role, clock, {needed}, skew",
                fix=f"remove '{other}'",
                at=other,
            )
        return self


class StageSpec(Spec):
    """One step of the rack's pipeline."""

    at: Annotated[Names, Field(min_length=1)] = Field(description="Boards it runs on.")
    latency: Latency = Field(description="Time through the stage.")
    servers: int | None = Field(
        default=None,
        ge=1,
        le=4096,
        description="Items served at once; absent: pipelined, no queue.",
    )
    buffer: int | None = Field(
        default=None,
        ge=0,
        le=10**6,
        description="Waiting places before it blocks; absent: unbounded.",
    )
    evidence: EvidenceField = Field(description="Where the latency comes from.")
    source: str = Field(default="", description="Who says so.")

    @model_validator(mode="after")
    def _queue(self) -> StageSpec:
        if self.buffer is not None and self.servers is None:
            raise problem(
                "E202",
                "missing key 'servers'",
                allowed="a stage with a buffer has servers",
                fix="write servers: 1",
                at="servers",
            )
        return self

    @model_validator(mode="after")
    def _honest(self) -> StageSpec:
        check_evidence(self.latency, self.evidence)
        return self


class RackSpec(Spec):
    """The control electronics. ``stages`` is in order of travel."""

    profile: str | None = Field(
        default=None,
        min_length=1,
        description="Shipped rack, or a file (./my-rack.yaml), that fills what is left out.",
    )
    clocks: dict[Id, ClockSpec] = Field(min_length=1, description="Oscillators by id.")
    boards: dict[Id, BoardSpec] = Field(min_length=1, description="Boards by id.")
    stages: dict[Id, StageSpec] = Field(
        min_length=1, description="Pipeline stages by id, in order of travel."
    )
    stage_order: SkipJsonSchema[Annotated[tuple[str, ...], as_tuple]] = Field(
        default=(), alias="(stage_order)"
    )

    @model_validator(mode="before")
    @classmethod
    def _order(cls, data: object, info: ValidationInfo) -> object:
        """Keep the order of stages through dumps whose keys were sorted."""
        if not isinstance(data, dict) or not isinstance(data.get("stages"), dict):
            return data
        stages = data["stages"]
        if from_text(info) is not None:
            return {**data, "(stage_order)": tuple(stages)}
        order = list(data.get("stage_order") or stages)
        if sorted(order) != sorted(stages):
            return data
        return {**data, "stages": {name: stages[name] for name in order}, "stage_order": order}

    @property
    def readout_boards(self) -> tuple[str, ...]:
        """Ids of readout boards, in order."""
        return tuple(name for name, board in self.boards.items() if board.role == "readout")

    @property
    def aggregate_board(self) -> str:
        """Id of the aggregate board."""
        return next(name for name, board in self.boards.items() if board.role == "aggregate")

    @property
    def board_stages(self) -> tuple[str, ...]:
        """Stages on the readout boards, in order."""
        readout = set(self.readout_boards)
        return tuple(name for name, stage in self.stages.items() if set(stage.at) <= readout)

    @property
    def rack_stages(self) -> tuple[str, ...]:
        """Stages behind the join up to and including ``packetize``."""
        first = set(self.board_stages) | {"apply"}
        return tuple(name for name in self.stages if name not in first)

    def ticks(self, board: str) -> Ticks:
        """Clock of a board as an exact period, e.g. to turn ``Cycles`` into ps."""
        return Ticks.from_hz(self.clocks[self.boards[board].clock].freq_hz)
