"""Section ``expect``: metrics and the limits that a run is judged by."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Final, Literal, TypeAlias

from pydantic import Field, ValidationInfo, WithJsonSchema, field_validator, model_validator

from hil.scenario.fields import Spec, from_text, problem
from hil.scenario.problems import did_you_mean
from hil.scenario.system import Hop
from hil.units import TIME, QuantityError, parse_time_ps

MetricKind: TypeAlias = Literal["latency", "rate", "slope", "count", "load", "ratio"]


@dataclass(frozen=True, slots=True)
class Metric:
    """What a metric is and which limits fit it.

    Attributes:
        name: as written in ``expect``.
        kind: latency (quantile of a hop), rate (per shot), slope (time per shot), count, load (a
            mean time over the time there is for it), ratio (of two sums over the run).
        unit: unit of limits: ``ps``, ``1``, ``ps/shot`` or ``count``.
        what: one line for people.
    """

    name: str
    kind: MetricKind
    unit: Literal["ps", "1", "ps/shot", "count"]
    what: str


_HOP_TEXTS: Final[Mapping[Hop, str]] = {
    "acquire": "from the intended end of the last block (T0) to the syndrome merged (T1)",
    "packetize": "to the first bit on the wire (T2)",
    "uplink": "to the last bit at the decoder node (T3)",
    "deliver": "to the payload visible to the decoder (T4)",
    "queue": "to the window taken by a worker (T5)",
    "decode": "to the answer ready (T7)",
    "reply": "to the first bit of the reply (T8)",
    "downlink": "to the reply at the rack (T9)",
    "apply": "to the correction in effect (T10)",
}


def _metrics() -> dict[str, Metric]:
    hops = [
        Metric(f"latency.{hop}", "latency", "ps", f"Hop {hop} of a shot's last block: {text}")
        for hop, text in _HOP_TEXTS.items()
    ]
    rows = [
        Metric(
            "latency.end_to_end", "latency", "ps",
            "Correction in effect (T10) minus the intended end of the shot's last block (T0): open "
            "loop. A shot without an answer counts as infinitely late",
        ),
        *hops,
        Metric(
            "reaction_time", "latency", "ps",
            "What a conditional operation waits: from the intended end of the last round (T0 of "
            "the last block) to the correction in effect (T10). The same figure as "
            "latency.end_to_end: with window.mode shot it holds the whole decode, with sliding "
            "only what is left after the earlier rounds have been decoded",
        ),
        Metric(
            "window.load", "load", "1",
            "Sliding windows: mean service time of a full window (commit + buffer rounds) / "
            "(commit x round_period); sequential windows keep up if and only if it is below 1",
        ),
        Metric("deadline.miss_rate", "rate", "1", "Shots with slack below 0 or without an answer"),
        Metric(
            "decoder.fallback_rate", "rate", "1",
            "Shots answered by the fallback decoder (an answer like any other: it counts in the "
            "logical error rate)",
        ),
        Metric(
            "decoder.unanswered_rate", "rate", "1",
            "Shots declared unanswered (status timeout, dropped, void); the rack applies nothing",
        ),
        Metric(
            "ler.per_shot", "rate", "1",
            "Shots whose applied prediction differs from the truth in any observable; shots with "
            "data-quality bit no_truth are left out",
        ),
        Metric(
            "backlog.slope", "slope", "ps/shot",
            "Growth of the end-to-end latency of answered shots from shot to shot",
        ),
        Metric(
            "predecoder.density_reduction", "ratio", "1",
            "Detection events of the raw syndromes / events that the pre-decoder left to the "
            "matching, over the shots that it answered",
        ),
        Metric(
            "decoder.backend_mismatch", "count", "count",
            "Answers whose executed decoder, backend or precision is not the requested one",
        ),
        Metric(
            "packets.lost_undetected", "count", "count",
            "Frames that are missing and that no check noticed",
        ),
        Metric("packets.lost", "count", "count", "Frames that the sequence check found missing"),
        Metric("packets.duplicate", "count", "count", "Frames that came twice"),
        Metric("packets.reordered", "count", "count", "Frames that came out of order"),
        Metric("rounds.out_of_order_commits", "count", "count", "Rounds committed out of order"),
        Metric(
            "shots.mixed_epoch", "count", "count",
            "Shots whose rows or answers belong to two calibration epochs",
        ),
        Metric(
            "answers.missing", "count", "count",
            "Shots that were neither answered nor declared unanswered",
        ),
    ]  # fmt: skip
    return {row.name: row for row in rows}


METRICS: Final[Mapping[str, Metric]] = _metrics()
"""All metrics that can be judged, by name."""

STAT_PATTERN: Final = r"^p([1-9][0-9]?(?:\.[0-9]{1,7})?)$"
"""Quantiles p1 to p99.9999999."""

_STAT: Final = re.compile(STAT_PATTERN)
_KEYS_OF: Final[Mapping[str, tuple[str, ...]]] = {
    "latency": ("metric", "stat", "max", "min", "marginal", "confidence", "scope"),
    "rate": ("metric", "max", "min", "marginal", "confidence", "scope"),
    "slope": ("metric", "max", "min", "marginal", "confidence", "scope"),
    "count": ("metric", "equals", "scope"),
    "load": ("metric", "max", "min", "marginal", "confidence", "scope"),
    "ratio": ("metric", "max", "min", "marginal", "confidence", "scope"),
}


Limit: TypeAlias = Annotated[
    int | float | None,
    WithJsonSchema({"type": ["number", "string"], "description": "Number, or time with unit."}),
]
"""ps of a latency or slope (whole), a number of a rate."""


class Expectation(Spec):
    """One limit on one metric.

    Limits of latencies and slopes are whole ps, of rates numbers, of counts whole numbers.
    """

    metric: str = Field(description="What is judged.", json_schema_extra={"enum": list(METRICS)})
    stat: str | None = Field(
        default=None, pattern=STAT_PATTERN, description="Quantile of a latency: p50, p99.9."
    )
    max: Limit = Field(default=None, description="Largest allowed value.")
    min: Limit = Field(default=None, description="Smallest allowed value.")
    equals: int | None = Field(default=None, ge=0, le=10**12, description="Exact count.")
    marginal: Limit = Field(default=None, description="A PASS beyond this value is flagged.")
    confidence: float | None = Field(
        default=None, description="One-sided confidence, between 0.5 and 1."
    )
    scope: Literal["clean", "all"] = Field(
        default="clean",
        description="clean leaves out warm-up and fault windows; counts use all rows.",
    )

    @model_validator(mode="before")
    @classmethod
    def _counts_use_all_rows(cls, data: object) -> object:
        if not isinstance(data, dict):
            return data
        metric = METRICS.get(str(data.get("metric", "")))
        return {"scope": "all", **data} if metric and metric.kind == "count" else data

    @field_validator("metric")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in METRICS:
            raise problem(
                "E401",
                f"unknown metric '{name}'",
                got=name,
                allowed=", ".join(METRICS),
                fix=did_you_mean(name, METRICS) or "choose one of these",
            )
        return name

    @field_validator("max", "min", "marginal", mode="before")
    @classmethod
    def _limit(cls, value: object, info: ValidationInfo) -> object:
        """Read a limit in the unit of the metric."""
        metric = METRICS.get(str(info.data.get("metric", "")))
        if metric is None:
            return None
        if from_text(info) is None or metric.kind == "count":
            return value
        if metric.kind == "rate":
            return _rate_limit(value)
        if metric.kind in ("load", "ratio"):
            return _positive_limit(value, metric.kind)
        limit = _time_limit(value)
        if metric.kind == "latency" and limit <= 0:
            raise problem("E205", "out of range", got=str(value), allowed="> 0ps", fix="write 60us")
        return limit

    @field_validator("confidence")
    @classmethod
    def _one_sided(cls, value: float | None) -> float | None:
        if value is not None and not 0.5 < value < 1:
            raise problem(
                "E603",
                "confidence outside (0.5, 1)",
                got=f"{value:g}",
                allowed="0.5 < confidence < 1",
                fix="write confidence: 0.95",
            )
        return value

    @model_validator(mode="after")
    def _fits(self) -> Expectation:
        metric = METRICS[self.metric]
        self._demand_keys(metric)
        self._demand_order()
        return self

    def _demand_keys(self, metric: Metric) -> None:
        allowed = _KEYS_OF[metric.kind]
        given = {name for name in type(self).model_fields if getattr(self, name) is not None}
        if self.max is not None and self.equals is not None:
            raise problem(
                "E604",
                "max together with equals",
                got=f"max: {self.max}, equals: {self.equals}",
                allowed="equals for counts, max for everything else",
                fix="remove one of them",
                at="equals",
            )
        for name in ("stat", "max", "min", "equals", "marginal", "confidence"):
            if name in given and name not in allowed:
                raise problem(
                    "E201",
                    f"key '{name}' does not fit metric {metric.name}",
                    allowed=", ".join(allowed),
                    fix=f"remove '{name}'",
                    at=name,
                )
        limit = "equals" if metric.kind == "count" else "max"
        needed = {
            "latency": ("stat", limit, "confidence"),
            "count": (limit,),
        }.get(metric.kind, (limit, "confidence"))
        for name in needed:
            if name not in given and not (name == "max" and "min" in given):
                raise problem(
                    "E202",
                    f"missing key '{name}'",
                    allowed=", ".join(allowed),
                    fix=f"write {name}: {_EXAMPLES[metric.kind].get(name, '0.95')}",
                    at=name,
                )

    def _demand_order(self) -> None:
        if self.max is not None and self.min is not None and self.min > self.max:
            raise problem(
                "E205",
                "min lies above max",
                allowed="min <= max",
                fix="swap them",
                at="min",
            )
        if self.marginal is None:
            return
        above = self.max is not None and self.marginal > self.max
        below = self.max is None and self.min is not None and self.marginal < self.min
        if above or below:
            raise problem(
                "E205",
                "marginal lies outside the limit",
                allowed="marginal <= max" if above else "marginal >= min",
                fix="move marginal inside",
                at="marginal",
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


_EXAMPLES: Final[Mapping[str, Mapping[str, str]]] = {
    "latency": {"stat": "p99.9", "max": "60us"},
    "rate": {"max": "1.0e-3"},
    "slope": {"max": "1ns"},
    "count": {"equals": "0"},
    "load": {"max": "0.9"},
    "ratio": {"min": "3.0"},
}


def example(metric: Metric) -> str:
    """A valid expectation on a metric, as it is written in a scenario."""
    limits = dict(_EXAMPLES[metric.kind])
    if "confidence" in _KEYS_OF[metric.kind]:
        limits["confidence"] = "0.95"
    return f"{{metric: {metric.name}, {', '.join(f'{k}: {v}' for k, v in limits.items())}}}"


def keys_of(metric: Metric) -> tuple[str, ...]:
    """Keys that an expectation on a metric may have."""
    return _KEYS_OF[metric.kind]


_POSITIVE: Final[Mapping[str, tuple[str, str]]] = {
    "load": ("> 0; below 1 the decoder keeps up", "write for example 0.9"),
    "ratio": ("> 0; above 1 the pre-decoder thins out", "write for example 3.0"),
}


def _positive_limit(value: object, kind: str) -> object:
    allowed, fix = _POSITIVE[kind]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise problem("E203", "wrong type", got=str(value), allowed="a number", fix=fix)
    if not 0 < value < float("inf"):
        raise problem(
            "E205", f"limit of a {kind} out of range", got=f"{value:g}", allowed=allowed, fix=fix
        )
    return value


def _rate_limit(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise problem(
            "E203", "wrong type", got=str(value), allowed="a number", fix="write for example 1.0e-3"
        )
    if not 0 < value < 1:
        raise problem(
            "E205",
            "limit of a rate outside (0, 1)",
            got=f"{value:g}",
            allowed="0 < rate < 1; exactly 0 or 1 can never be proved",
            fix="write for example 1.0e-3",
        )
    return value


def _time_limit(value: object) -> int:
    if isinstance(value, str):
        try:
            return parse_time_ps(value)
        except QuantityError as err:
            raise problem(
                err.code, err.what, got=err.got, allowed=err.allowed, fix=err.fix
            ) from err
    raise problem(
        "E301",
        "unit missing",
        got=str(value),
        allowed=TIME.allowed,
        fix=f"write the unit, for example {value}us",
    )
