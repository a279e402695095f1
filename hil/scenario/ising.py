"""Family ``ising_memory`` of ``system.qpu``: its circuit and its two noise models.

Rules of the circuit: ``gpu_decoder.ising.circuit``; of the noise: ``gpu_decoder.ising.noise``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final, Literal, TypeAlias

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from gpu_decoder.ising.geometry import ALIASES, ORIENTATIONS, Basis, Orientation
from gpu_decoder.ising.noise import PARAMETERS, Ising25, IsingScalar
from hil.scenario.fields import Probability, Spec, problem
from hil.scenario.problems import did_you_mean

MAX_DISTANCE: Final = 31

ParamName: TypeAlias = Annotated[str, Field(pattern=r"^p_[A-Za-z_]+$")]


def _read_orientation(value: object) -> object:
    return ALIASES.get(value, value) if isinstance(value, str) else value


class IsingCircuit(Spec):
    """Memory experiment of the Ising family: detectors in the order that pre-decoders expect."""

    family: Literal["ising_memory"] = Field(description="Who makes the circuit.")
    distance: int = Field(
        le=MAX_DISTANCE,
        description="Code distance, odd.",
        json_schema_extra={"minimum": 3},
    )
    rounds: int = Field(
        le=1_000_000,
        description="T: the round of the preparation, noisy rounds, the last noiseless one.",
        json_schema_extra={"minimum": 2},
    )
    basis: Literal["X", "Z", "alternate"] = Field(
        description="Basis of the memory, alternate: Z and X in turn."
    )
    orientation: Annotated[
        Orientation,
        BeforeValidator(_read_orientation),
        WithJsonSchema({"type": "string", "enum": [*ORIENTATIONS, *ALIASES]}),
    ] = Field(description="Kind of the check at (2, 2) and the edge of the other kind.")

    @model_validator(mode="after")
    def _size(self) -> IsingCircuit:
        if self.distance < 3 or self.distance % 2 == 0:
            near = max(3, self.distance - 1)
            raise problem(
                "E501",
                "not a distance of this family",
                got=str(self.distance),
                allowed=f"odd, 3 to {MAX_DISTANCE}",
                fix=f"write {near}" + (f" or {near + 2}" if near + 2 <= MAX_DISTANCE else ""),
                at="distance",
            )
        if self.rounds < 2:
            raise problem(
                "E501",
                "too few rounds for this family",
                got=str(self.rounds),
                allowed=">= 2: the round of the preparation and the last, noiseless one",
                fix="write rounds: 2 or more",
                at="rounds",
            )
        return self

    @property
    def code(self) -> str:
        """What the circuit is called."""
        return f"{self.family}, orientation {self.orientation}"

    @property
    def bases(self) -> tuple[Basis, ...]:
        """Bases of the shots in turn: shot s stores ``bases[s % len(bases)]``."""
        return ("Z", "X") if self.basis == "alternate" else (self.basis,)

    @property
    def checks(self) -> Mapping[str, int]:
        """Number of checks of each kind, as channels of boards count them."""
        each = (self.distance**2 - 1) // 2
        return {"x_check": each, "z_check": each}


class Ising25Noise(Spec):
    """Noise by 25 probabilities, stated or all from one strength p."""

    model: Literal["ising25"] = Field(description="Noise model.")
    p: float | None = Field(
        default=None,
        ge=0.0,
        le=0.5,
        allow_inf_nan=False,
        description="Strength of all 25; or params.",
    )
    params: dict[ParamName, Probability] | None = Field(
        default=None,
        description="All 25 probabilities by name; or p.",
        json_schema_extra={
            "propertyNames": {"enum": list(PARAMETERS)},
            "required": list(PARAMETERS),
        },
    )

    @model_validator(mode="after")
    def _one_way(self) -> Ising25Noise:
        if (self.p is None) == (self.params is None):
            both = self.p is not None
            raise problem(
                "E201" if both else "E202",
                "exactly one of p and params must be given",
                got="p, params" if both else "none",
                allowed="p | params",
                fix="remove p" if both else "write p: 3.0e-3",
                at="p",
            )
        if self.params is not None:
            _check_names(self.params)
            try:
                Ising25.from_parameters(self.params)
            except ValueError as error:
                raise problem(
                    "E205",
                    "not a probability distribution",
                    got=str(error).partition(", allowed")[0],
                    allowed="each family adds up to 1 at most",
                    fix="lower them",
                    at="params",
                ) from error
        return self

    @property
    def parameters(self) -> Ising25:
        """The 25 numbers."""
        if self.params is not None:
            return Ising25.from_parameters(self.params)
        return Ising25.from_p(self.p or 0.0)

    @property
    def shown(self) -> str:
        """For people."""
        if self.p is not None:
            return f"{self.model}, p = {self.p:g}"
        return f"{self.model}, 25 parameters, sha256 {self.parameters.fingerprint()[:12]}"


def _check_names(params: Mapping[str, float]) -> None:
    unknown = [name for name in params if name not in PARAMETERS]
    missing = [name for name in PARAMETERS if name not in params]
    if unknown:
        raise problem(
            "E201",
            f"unknown key '{unknown[0]}'",
            allowed=", ".join(PARAMETERS),
            fix=did_you_mean(unknown[0], PARAMETERS) or "remove it",
            at=f"params.{unknown[0]}",
        )
    if missing:
        raise problem(
            "E202",
            f"missing key '{missing[0]}'",
            got=f"{len(params)} parameters",
            allowed=f"all {len(PARAMETERS)} parameters",
            fix=f"add {', '.join(missing)}",
            at=f"params.{missing[0]}",
        )


class IsingScalarNoise(Spec):
    """Depolarizing noise of one strength; another model than ising25 with the same p."""

    model: Literal["ising_scalar"] = Field(description="Noise model.")
    p: float = Field(ge=0.0, le=0.5, allow_inf_nan=False, description="Error probability.")

    @property
    def parameters(self) -> IsingScalar:
        """The noise as the circuit builder takes it."""
        return IsingScalar(self.p)

    @property
    def shown(self) -> str:
        """For people."""
        return f"{self.model}, p = {self.p:g}"
