"""Data models of service times: what a decoder is charged for one shot. Nothing is drawn here.

A service time is a function of the shot's event count (``ByEvents``), or an independent draw from
a ``Latency``. The latter destroys the tail of correlated loads and is therefore allowed with
evidence ``assumed`` only.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import (
    BeforeValidator,
    Field,
    GetJsonSchemaHandler,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue, SkipJsonSchema
from pydantic_core import CoreSchema

from hil.errors import ScenarioError
from hil.scenario.fields import Spec, from_text, problem
from hil.scenario.latency import (
    Cycles,
    EvidenceField,
    Latency,
    Recorded,
    read_rows,
)
from hil.scenario.vendor import Zhinst
from hil.units import TIME, QuantityError, format_time, parse_time_ps


def _read_points(value: object, info: ValidationInfo) -> object:
    """``{0: 4us, 20: 9us}`` or pairs -> increasing pairs (events, ps)."""
    if isinstance(value, dict):
        pairs = [(_events(key), _point_ps(time, info)) for key, time in value.items()]
        return tuple(sorted(pairs))
    if isinstance(value, list | tuple):
        return tuple(tuple(pair) if isinstance(pair, list) else pair for pair in value)
    return value


def _events(key: object) -> int:
    if isinstance(key, bool) or not isinstance(key, int | str) or not str(key).isdigit():
        raise problem(
            "E203", "event count is not a whole number", got=str(key), allowed="a number >= 0"
        )
    return int(key)


def _point_ps(time: object, info: ValidationInfo) -> int:
    if isinstance(time, str):
        try:
            return parse_time_ps(time)
        except QuantityError as err:
            raise problem(
                err.code, err.what, got=err.got, allowed=err.allowed, fix=err.fix
            ) from err
    if isinstance(time, int) and not isinstance(time, bool) and from_text(info) is None:
        return time
    raise problem(
        "E301", "unit missing", got=str(time), allowed=TIME.allowed, fix=f"write {time}us"
    )


class ByEvents(Spec):
    """Service time as a function of a shot's event count.

    Linear between the recorded points, constant beyond the first and the last one.
    """

    points: Annotated[tuple[tuple[int, int], ...], BeforeValidator(_read_points)] = Field(
        min_length=1, description="Map from event count to time."
    )

    @model_validator(mode="before")
    @classmethod
    def _bare_map(cls, data: object, info: ValidationInfo) -> object:
        return {"points": data} if from_text(info) is not None else data

    @field_validator("points")
    @classmethod
    def _increasing(cls, points: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
        counts = [events for events, _ in points]
        if counts != sorted(set(counts)) or counts[0] < 0:
            raise problem(
                "E205", "event counts do not increase", got=str(counts), allowed="0 <= increasing"
            )
        if any(ps <= 0 for _, ps in points):
            raise problem(
                "E205",
                "out of range",
                got=format_time(min(ps for _, ps in points)),
                allowed="> 0ps",
            )
        return points

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """In a file the points are the map itself."""
        del core_schema, handler
        return {
            "type": "object",
            "title": "ByEvents",
            "description": "Event count -> time; linear in between, constant beyond the ends.",
            "patternProperties": {"^[0-9]+$": {"type": "string"}},
            "additionalProperties": False,
            "minProperties": 1,
        }

    @property
    def events(self) -> tuple[int, ...]:
        """Event counts of the points, increasing."""
        return tuple(events for events, _ in self.points)

    @property
    def service_ps(self) -> tuple[int, ...]:
        """Service time at each point."""
        return tuple(ps for _, ps in self.points)


class Service(Spec):
    """What one decode costs: exactly one of ``by_events``, ``table`` and ``latency``."""

    by_events: ByEvents | None = Field(
        default=None, description="Time as a function of the shot's event count."
    )
    table: str | None = Field(
        default=None, description="CSV file of events,ps: the same as by_events, from a file."
    )
    latency: Latency | None = Field(
        default=None, description="Independent draw; evidence must be 'assumed'."
    )
    evidence: EvidenceField = Field(description="Where the numbers come from.")
    source: str = Field(default="", description="Who says so.")
    sha256: SkipJsonSchema[str] = Field(default="", alias="(sha256)")

    @model_validator(mode="before")
    @classmethod
    def _read(cls, data: object, info: ValidationInfo) -> object:
        context = from_text(info)
        if context is None or not isinstance(data, dict):
            return data
        given = [key for key in ("by_events", "table", "latency") if key in data]
        if len(given) != 1:
            raise problem(
                "E202" if not given else "E201",
                "exactly one of by_events, table and latency must be given",
                got=", ".join(given) or "none",
                allowed="by_events | table | latency",
                fix="write by_events: {0: 4us, 20: 9us}",
                at=given[-1] if given else "by_events",
            )
        if isinstance(data.get("table"), str):
            rows, digest = read_rows(context, data["table"], columns=2, key="table")
            points = {events: f"{ps}ps" for events, ps in rows}
            if len(points) < len(rows):
                raise problem(
                    "E205",
                    "an event count appears twice",
                    got=data["table"],
                    allowed="each event count once",
                    fix="remove one of the lines",
                    at="table",
                )
            return {**data, "by_events": points, "(sha256)": digest}
        return data

    @model_validator(mode="after")
    def _honest(self) -> Service:
        if self.by_events is None and self.latency is None:
            raise problem("E202", "missing key 'by_events'", fix="add 'by_events'", at="by_events")
        if isinstance(self.latency, Cycles | Recorded | Zhinst):
            raise problem(
                "E204",
                "cycles need the clock of a board"
                if isinstance(self.latency, Cycles)
                else "this latency belongs to a stage of the rack or a link",
                got=self.latency.dist,
                allowed="a time, normal, lognormal, empirical",
                fix="write a time",
                at="latency.dist",
            )
        if self.latency is not None and self.evidence != "assumed":
            raise problem(
                "E510",
                "an independent draw of service times is never better than 'assumed'",
                got=self.evidence,
                allowed="assumed, or a service by_events",
                fix="write evidence: assumed",
                at="evidence",
            )
        return self

    @property
    def model(self) -> Latency | ByEvents:
        """The one that was given (a table as ``ByEvents``)."""
        chosen = self.by_events if self.by_events is not None else self.latency
        if chosen is None:
            raise ScenarioError(
                "service without a time",
                allowed="by_events, table or latency",
                fix="load the scenario with load_scenario",
            )
        return chosen
