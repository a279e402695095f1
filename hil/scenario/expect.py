"""Section ``expect``: metrics and the limits that a run is judged by."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Final, Literal, TypeAlias

from pydantic import Field, ValidationInfo, model_validator

from hil.scenario.fields import Spec, from_text, problem
from hil.scenario.system import HOPS
from hil.units import TIME, QuantityError, parse_time_ps

MetricKind: TypeAlias = Literal["latency", "rate", "slope", "count"]


@dataclass(frozen=True, slots=True)
class Metric:
    """What a metric is and which limits fit it.

    Attributes:
        name: as written in ``expect``.
        kind: latency (quantile of a hop), rate (per shot), slope (time per shot), count.
        unit: unit of limits: ``ps``, ``1``, ``ps/shot`` or ``count``.
        what: one line for people.
    """

    name: str
    kind: MetricKind
    unit: Literal["ps", "1", "ps/shot", "count"]
    what: str


def _metrics() -> dict[str, Metric]:
    hops = [
        Metric(f"latency.{hop}", "latency", "ps", f"quantile of hop {hop}, last block of a shot")
        for hop in HOPS
    ]
    rows = [
        Metric("latency.end_to_end", "latency", "ps", "quantile of intended to applied"),
        *hops,
        Metric("deadline.miss_rate", "rate", "1", "shots without an applied answer in time"),
        Metric("decoder.fallback_rate", "rate", "1", "shots answered by the fallback decoder"),
        Metric("decoder.unanswered_rate", "rate", "1", "shots declared unanswered"),
        Metric("ler.per_shot", "rate", "1", "logical errors per shot"),
        Metric("backlog.slope", "slope", "ps/shot", "growth of the latency from shot to shot"),
        Metric("decoder.backend_mismatch", "count", "count", "requested differs from executed"),
        Metric("packets.lost_undetected", "count", "count", "frames lost and not noticed"),
        Metric("packets.lost", "count", "count", "frames lost and noticed"),
        Metric("packets.duplicate", "count", "count", "frames that came twice"),
        Metric("packets.reordered", "count", "count", "frames out of order"),
        Metric("rounds.out_of_order_commits", "count", "count", "rounds committed out of order"),
        Metric("shots.mixed_epoch", "count", "count", "shots decoded with two epochs"),
        Metric("answers.missing", "count", "count", "shots neither answered nor declared"),
    ]
    return {row.name: row for row in rows}


METRICS: Final[Mapping[str, Metric]] = _metrics()
"""All metrics that can be judged, by name."""

_STAT: Final = re.compile(r"p([1-9][0-9]?(?:\.[0-9]{1,7})?)")
_LIMITS: Final = ("max", "min", "equals", "marginal")
_KEYS_OF: Final[Mapping[str, tuple[str, ...]]] = {
    "latency": ("metric", "stat", "max", "min", "marginal", "confidence", "scope"),
    "rate": ("metric", "max", "min", "marginal", "confidence", "scope"),
    "slope": ("metric", "max", "min", "marginal", "confidence", "scope"),
    "count": ("metric", "equals", "scope"),
}


class Expectation(Spec):
    """One limit on one metric.

    Limits of latencies and slopes are whole ps, of rates numbers, of counts whole numbers.
    """

    metric: str = Field(description="What is judged.", json_schema_extra={"enum": list(METRICS)})
    stat: str | None = Field(
        default=None, pattern=_STAT.pattern, description="Quantile of a latency: p50, p99.9."
    )
    max: int | float | None = Field(
        default=None,
        description="Largest allowed value.",
        json_schema_extra={"anyOf": [{"type": "number"}, {"type": "string"}]},
    )
    min: int | float | None = Field(
        default=None,
        description="Smallest allowed value.",
        json_schema_extra={"anyOf": [{"type": "number"}, {"type": "string"}]},
    )
    equals: int | None = Field(default=None, ge=0, description="Exact count.")
    marginal: int | float | None = Field(
        default=None,
        description="A PASS beyond this value is flagged.",
        json_schema_extra={"anyOf": [{"type": "number"}, {"type": "string"}]},
    )
    confidence: float | None = Field(default=None, description="One-sided, between 0.5 and 1.")
    scope: Literal["clean", "all"] = Field(
        default="clean",
        description="clean leaves out warm-up and fault windows; counts use all rows.",
    )

    @model_validator(mode="before")
    @classmethod
    def _limits(cls, data: object, info: ValidationInfo) -> object:
        """Read limits in the unit of the metric; counts look at all rows."""
        if not isinstance(data, dict):
            return data
        metric = METRICS.get(data.get("metric", ""))
        if metric is None:
            return data
        out = dict(data)
        if metric.kind == "count":
            out.setdefault("scope", "all")
        if from_text(info) is not None and metric.unit in {"ps", "ps/shot"}:
            for name in _LIMITS:
                if name in out:
                    out[name] = _time_limit(name, out[name])
        return out

    @model_validator(mode="after")
    def _fits(self) -> Expectation:
        metric = METRICS.get(self.metric)
        if metric is None:
            raise problem("E401", f"unknown metric '{self.metric}'", allowed=", ".join(METRICS))
        self._demand_keys(metric)
        self._demand_ranges(metric)
        return self

    def _demand_keys(self, metric: Metric) -> None:
        allowed = _KEYS_OF[metric.kind]
        given = {name for name in type(self).model_fields if getattr(self, name) is not None}
        if self.max is not None and self.equals is not None:
            raise problem(
                "E604",
                "max together with equals",
                allowed="one of them",
                fix="keep equals for counts, max for everything else",
            )
        for name in ("stat", *_LIMITS, "confidence"):
            if name in given and name not in allowed:
                raise problem(
                    "E201",
                    f"key '{name}' does not fit metric {metric.name}",
                    got=name,
                    allowed=", ".join(allowed),
                    fix=f"remove {name}",
                )
        needed = {"latency": ("stat", "confidence"), "count": ("equals",)}
        for name in needed.get(metric.kind, ("confidence",)):
            if name not in given:
                raise problem(
                    "E202",
                    f"missing key '{name}'",
                    allowed=", ".join(allowed),
                    fix=f"write {name}: {_EXAMPLES[name]}",
                )
        if metric.kind != "count" and not given & {"max", "min"}:
            raise problem("E202", "missing key 'max'", allowed="max, min", fix="write max")

    def _demand_ranges(self, metric: Metric) -> None:
        if self.confidence is not None and not 0.5 < self.confidence < 1:
            raise problem(
                "E603",
                "confidence outside (0.5, 1)",
                got=str(self.confidence),
                allowed="0.5 < confidence < 1",
                fix="write confidence: 0.95",
            )
        for name in ("max", "min", "marginal"):
            value = getattr(self, name)
            if value is None or metric.kind != "rate" or 0 < value < 1:
                continue
            raise problem(
                "E205",
                f"{name} of a rate outside (0, 1)",
                got=str(value),
                allowed="0 < rate < 1; exactly 0 or 1 can never be proved",
                fix="write a rate such as 1.0e-3",
            )
        if self.max is not None and self.min is not None and self.min > self.max:
            raise problem("E205", "min lies above max", allowed="min <= max", fix="swap them")
        if self.marginal is None:
            return
        above = self.max is not None and self.marginal > self.max
        below = self.max is None and self.min is not None and self.marginal < self.min
        if above or below:
            raise problem(
                "E205",
                "marginal lies outside the limit",
                allowed="marginal <= max, or >= min where there is no max",
                fix="move marginal inside",
            )

    @property
    def quantile(self) -> Fraction:
        """The quantile of ``stat`` as an exact fraction: p99.9 -> 999/1000."""
        match = _STAT.fullmatch(self.stat or "")
        return Fraction(match[1]) / 100 if match else Fraction(1)

    @property
    def kind(self) -> MetricKind:
        """Kind of the metric."""
        return METRICS[self.metric].kind


_EXAMPLES: Final = {"stat": "p99.9", "confidence": "0.95", "equals": "0"}


def _time_limit(name: str, value: object) -> object:
    if isinstance(value, str):
        try:
            return parse_time_ps(value)
        except QuantityError as err:
            what = f"{name}: {err.what}"
            raise problem(err.code, what, got=err.got, allowed=err.allowed, fix=err.fix) from err
    raise problem(
        "E301",
        f"{name}: unit missing",
        got=str(value),
        allowed=TIME.allowed,
        fix=f"write the unit, for example {value}us",
    )
