"""Building blocks of the scenario models: base class, quantities, names.

The same models are filled in two ways. From a scenario file (validation context ``FROM_TEXT``)
keys are the YAML keys and every quantity is text with a unit. From Python or from a dump keys are
attribute names and times are integers of picoseconds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Final, TypeAlias

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    StringConstraints,
    ValidationInfo,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError

from hil.units import (
    FREQUENCY,
    RATE,
    SIZE,
    TIME,
    Kind,
    QuantityError,
    UnitMissingError,
    parse,
)

ID_PATTERN: Final = r"^[A-Za-z][A-Za-z0-9_-]*$"
"""Ids of maps (boards, stages, profiles, faults, expectations) and of the scenario."""


class Spec(BaseModel):
    """Base of all scenario models: frozen, strict, unknown keys refused."""

    model_config = ConfigDict(
        frozen=True,
        strict=True,
        extra="forbid",
        validate_by_name=True,
        validate_by_alias=True,
        validate_default=False,
        ser_json_inf_nan="strings",
    )


@dataclass(frozen=True, slots=True)
class TextContext:
    """Validation context of a scenario file: ``folder`` is where its relative file names start."""

    folder: Path


def from_text(info: ValidationInfo) -> TextContext | None:
    """The context when a scenario file is being read, else None."""
    return info.context if isinstance(info.context, TextContext) else None


def problem(
    code: str, what: str, *, got: str = "", allowed: str = "", fix: str = "", at: str = ""
) -> Exception:
    """A validation error that carries a scenario error code and the parts of its message.

    ``at`` names the key below the validated model that is to blame (dotted, as in files).
    """
    context = {"code": code, "what": what, "got": got, "allowed": allowed, "fix": fix, "at": at}
    return PydanticCustomError("scenario", "{what}", context)


def _quantity(kind: Kind, *, exact: bool = False) -> Callable[[object, ValidationInfo], object]:
    """Validator of one quantity: text with unit in files, numbers of the base unit elsewhere."""

    def read(value: object, info: ValidationInfo) -> object:
        if isinstance(value, str):
            if exact and from_text(info) is None:
                return Fraction(value)
            try:
                number = parse(value, kind)
            except QuantityError as err:
                raise problem(
                    err.code, err.what, got=err.got, allowed=err.allowed, fix=err.fix
                ) from err
            return number if exact else int(number)
        if from_text(info) is not None and isinstance(value, int | float):
            if isinstance(value, bool):
                return value
            raise problem(
                UnitMissingError.code,
                "unit missing",
                got=str(value),
                allowed=kind.allowed,
                fix=f"write the unit, for example {kind.example}",
            )
        return Fraction(value) if exact and isinstance(value, int) else value

    return read


def _text_schema(kind: Kind) -> WithJsonSchema:
    units = "|".join(kind.factors)
    return WithJsonSchema(
        {
            "type": "string",
            "pattern": rf"^[+-]?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?\s*({units})$",
            "examples": [kind.example],
        }
    )


_FRACTION_TEXT: Final = PlainSerializer(str, return_type=str, when_used="json")

TimePs: TypeAlias = Annotated[int, BeforeValidator(_quantity(TIME)), _text_schema(TIME)]
"""A time >= anything, in ps; ``1.1us`` in a file."""

DurationPs: TypeAlias = Annotated[
    int, Field(ge=0), BeforeValidator(_quantity(TIME)), _text_schema(TIME)
]
"""A time >= 0 in ps."""

PeriodPs: TypeAlias = Annotated[
    int, Field(gt=0), BeforeValidator(_quantity(TIME)), _text_schema(TIME)
]
"""A time > 0 in ps."""

RateBps: TypeAlias = Annotated[
    int, Field(gt=0), BeforeValidator(_quantity(RATE)), _text_schema(RATE)
]
"""A data rate in bit/s; ``100Gbit/s`` in a file."""

SizeBytes: TypeAlias = Annotated[
    int, Field(gt=0), BeforeValidator(_quantity(SIZE)), _text_schema(SIZE)
]
"""A size in bytes; ``4096B`` in a file."""

FrequencyHz: TypeAlias = Annotated[
    Fraction,
    Field(gt=0),
    BeforeValidator(_quantity(FREQUENCY, exact=True)),
    _FRACTION_TEXT,
    _text_schema(FREQUENCY),
]
"""An exact frequency in hertz; ``156.25MHz`` in a file, ``"n/d"`` text in JSON."""


def _as_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


Names: TypeAlias = Annotated[tuple[str, ...], BeforeValidator(_as_tuple)]
"""A list of texts, held as a tuple."""

Id: TypeAlias = Annotated[str, StringConstraints(pattern=ID_PATTERN)]
"""A name that addresses one entry of a map."""

Probability: TypeAlias = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]
"""A number between 0 and 1."""

as_tuple: Final = BeforeValidator(_as_tuple)
"""Lists of files become tuples, so that models stay frozen."""
