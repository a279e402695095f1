"""Data models of latencies: one of seven shapes. Nothing is drawn here."""

from __future__ import annotations

import csv
import math
from typing import Annotated, Literal, TypeAlias, get_args

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    GetJsonSchemaHandler,
    InstanceOf,
    Tag,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue, SkipJsonSchema
from pydantic_core import CoreSchema

from hil.errors import ScenarioError
from hil.scenario.fields import (
    DurationPs,
    Spec,
    TextContext,
    as_tuple,
    from_text,
    problem,
)
from hil.scenario.files import read_named
from hil.scenario.recording import Recording, decode
from hil.scenario.vendor import Zhinst
from hil.units import format_time

_Z99 = 2.3263478740408408
"""99 % point of the standard normal distribution (``scipy.stats.norm.ppf(0.99)``)."""


_MAX_RECORDING_BYTES = 256 << 20

SHA256_PATTERN = r"^[0-9a-fA-F]{64}$"
"""Hexadecimal SHA-256."""


class Const(Spec):
    """Always the same time; written as a bare time."""

    dist: Literal["const"] = "const"
    ps: DurationPs = Field(description="The time.")

    @model_validator(mode="before")
    @classmethod
    def _bare_time(cls, data: object) -> object:
        return data if isinstance(data, dict) else {"ps": data}

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """In a file a constant is a bare time."""
        del core_schema, handler
        return {"type": "string", "title": "Const", "description": "A time, e.g. 110ns."}


class Normal(Spec):
    """Normal distribution, cut at ``min_ps`` (smaller draws become ``min_ps``)."""

    dist: Literal["normal"]
    mean_ps: DurationPs = Field(alias="mean", description="Mean before the cut.")
    sd_ps: DurationPs = Field(alias="sd", description="Standard deviation before the cut.")
    min_ps: DurationPs = Field(alias="min", description="Smallest value.")

    @model_validator(mode="after")
    def _order(self) -> Normal:
        if self.min_ps > self.mean_ps:
            raise problem(
                "E205",
                "min lies above mean",
                got=format_time(self.min_ps),
                allowed=f"<= {format_time(self.mean_ps)}",
                fix="lower min or raise mean",
                at="min",
            )
        return self


class LogNormal(Spec):
    """``min + exp(N(mu, s))`` with ``mu = ln(p50-min)``, ``s = (ln(p99-min)-mu)/2.3263``."""

    dist: Literal["lognormal"]
    min_ps: DurationPs = Field(alias="min", description="Lower end.")
    p50_ps: DurationPs = Field(alias="p50", description="Median.")
    p99_ps: DurationPs = Field(alias="p99", description="99 % quantile.")

    @model_validator(mode="after")
    def _order(self) -> LogNormal:
        if not self.min_ps < self.p50_ps < self.p99_ps:
            raise problem(
                "E205",
                "lognormal points out of order",
                got=", ".join(map(format_time, (self.min_ps, self.p50_ps, self.p99_ps))),
                allowed="min < p50 < p99",
                fix="write three increasing times",
            )
        return self

    @property
    def mu(self) -> float:
        """Location of the logarithm, of ps above ``min_ps``."""
        return math.log(self.p50_ps - self.min_ps)

    @property
    def sigma(self) -> float:
        """Scale of the logarithm."""
        return (math.log(self.p99_ps - self.min_ps) - self.mu) / _Z99

    @property
    def mean_ps(self) -> float:
        """Mean of the distribution: min + exp(mu + sigma^2 / 2)."""
        return self.min_ps + math.exp(self.mu + self.sigma**2 / 2)


class Cycles(Spec):
    """Whole cycles of the clock of the board it runs on (``RackSpec.ticks``)."""

    dist: Literal["cycles"]
    n: int = Field(ge=0, le=10**9, description="Number of cycles.")


class Empirical(Spec):
    """Values recorded elsewhere, one whole ps per line of ``file``, drawn with the run seed."""

    dist: Literal["empirical"]
    file: str = Field(min_length=1, description="Text file beside the scenario, one ps per line.")
    sha256: SkipJsonSchema[str] = Field(default="", alias="(sha256)")
    values_ps: SkipJsonSchema[Annotated[tuple[int, ...], as_tuple]] = Field(
        default=(), alias="(values)", repr=False, exclude=True
    )

    @model_validator(mode="before")
    @classmethod
    def _read(cls, data: object, info: ValidationInfo) -> object:
        context = from_text(info)
        if context is None or not isinstance(data, dict):
            return data
        name = data.get("file")
        if not isinstance(name, str) or not name:
            return data
        rows, digest = read_rows(context, name, columns=1, key="file")
        return {**data, "(sha256)": digest, "(values)": tuple(row[0] for row in rows)}


class Recorded(Spec):
    """A stage of a recording (``hil rack fit``), replayed in recorded order.

    All uses of one file replay the same recorded rounds together, so that dependence in time and
    between stages is kept; durations follow the event counts of the simulated rounds.
    """

    dist: Literal["recorded"]
    file: str = Field(min_length=1, description="Recording (npz) beside the file that names it.")
    sha256: str = Field(pattern=SHA256_PATTERN, description="SHA-256 of that file.")
    stage: str = Field(min_length=1, description="Stage of the recording.")
    half: Literal["first", "second"] | None = Field(
        default=None, description="One half of the recorded time, where both ways were recorded."
    )
    recording: SkipJsonSchema[InstanceOf[Recording] | None] = Field(
        default=None, alias="(recording)", repr=False, exclude=True
    )

    @model_validator(mode="before")
    @classmethod
    def _read(cls, data: object, info: ValidationInfo) -> object:
        context = from_text(info)
        if context is None or not isinstance(data, dict):
            return data
        name, digest = data.get("file"), data.get("sha256")
        if not isinstance(name, str) or not name or not isinstance(digest, str):
            return data
        recording = _read_recording(context, name, digest)
        stage = data.get("stage")
        if isinstance(stage, str) and stage not in recording.stages:
            raise problem(
                "E401",
                f"the recording has no stage '{stage}'",
                got=stage,
                allowed=", ".join(recording.stages),
                fix="choose one of these",
                at="stage",
            )
        return {**data, "(recording)": recording}


def _shape(value: object) -> str | None:
    if isinstance(value, dict):
        dist = value.get("dist")
        return dist if isinstance(dist, str) else None
    if isinstance(value, Spec):
        return str(getattr(value, "dist", ""))
    return "const"


Latency: TypeAlias = Annotated[
    Annotated[Const, Tag("const")]
    | Annotated[Normal, Tag("normal")]
    | Annotated[LogNormal, Tag("lognormal")]
    | Annotated[Cycles, Tag("cycles")]
    | Annotated[Empirical, Tag("empirical")]
    | Annotated[Recorded, Tag("recorded")]
    | Annotated[Zhinst, Tag("zhinst")],
    Discriminator(_shape),
]
"""A time, or a distribution of times."""

LATENCY_SHAPES = ("normal", "lognormal", "cycles", "empirical", "recorded", "zhinst")
"""Values of ``dist`` in a file; a constant is a bare time."""


def read_rows(
    context: TextContext, name: str, columns: int, key: str
) -> tuple[list[list[int]], str]:
    """Read a table of non-negative whole numbers and its SHA-256.

    Args:
        context: where relative names start.
        name: file name as written in the scenario.
        columns: numbers per line; a first line of words is taken as a header.
        key: key of the model that holds the name, for messages.

    Raises:
        PydanticCustomError: E403 absent, E203 not numbers, E207 placeholder in the name.
    """
    raw, digest = read_named(context, name, key)
    lines = [line for line in csv.reader(raw.decode("utf-8", "replace").splitlines()) if line]
    if lines and columns > 1 and not any(cell.strip().isdigit() for cell in lines[0]):
        lines = lines[1:]
    for number, cells in enumerate(lines, 1):
        if len(cells) != columns or not all(_is_count(cell) for cell in cells):
            raise problem(
                "E203",
                f"file '{name}': data line {number} is not {columns} whole number(s)",
                got=",".join(cells),
                allowed=f"{columns} number(s) >= 0 per line",
                fix="write whole picoseconds without a unit",
                at=key,
            )
    if not lines:
        raise problem("E203", f"file '{name}' holds no values", allowed="one line", at=key)
    return [[int(cell) for cell in cells] for cells in lines], digest


def _read_recording(context: TextContext, name: str, sha256: str) -> Recording:
    raw, digest = read_named(context, name, "file", most_bytes=_MAX_RECORDING_BYTES)
    if digest != sha256.lower():
        raise problem(
            "E403",
            f"file '{name}' is another one",
            got=f"sha256 {digest}",
            allowed=sha256,
            fix="restore the file, or fit the rack again",
            at="file",
        )
    try:
        return decode(raw)
    except ScenarioError as error:
        raise problem(
            "E203",
            f"file '{name}' is {error.what}",
            got=error.got,
            allowed=error.allowed,
            fix=error.fix,
            at="file",
        ) from error


def _is_count(cell: str) -> bool:
    text = cell.strip()
    return text.isascii() and text.isdigit() and int(text) < 2**63


Evidence: TypeAlias = Literal["measured", "rtl", "modelled", "assumed"]
"""Evidence classes, strongest first."""


def _doc_is_assumed(value: object) -> object:
    return "assumed" if value == "doc" else value


EvidenceField: TypeAlias = Annotated[
    Evidence,
    BeforeValidator(_doc_is_assumed),
    WithJsonSchema({"type": "string", "enum": [*get_args(Evidence), "doc"]}),
]
"""Evidence of one number; ``doc`` (a published figure) counts as ``assumed``."""


def check_evidence(latency: Latency, evidence: Evidence) -> None:
    """A measured spread that is drawn anew in random order is not a measurement any more.

    Raises:
        PydanticCustomError: E510 for an independent draw with evidence ``measured``.
    """
    if evidence == "measured" and isinstance(latency, Normal | LogNormal | Empirical):
        raise problem(
            "E510",
            "an independent draw is not 'measured': it loses the order of what was recorded",
            got=f"dist: {latency.dist}, evidence: measured",
            allowed="modelled, assumed; measured with a time or with dist: recorded",
            fix="write evidence: modelled, or fit a recording with hil rack fit",
            at="evidence",
        )
