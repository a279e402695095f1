"""Section ``system.qpu`` of a scenario: the circuit, its noise, the cadence of rounds and shots."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final, Literal, TypeAlias

from pydantic import Field, ValidationInfo, model_validator
from pydantic.json_schema import SkipJsonSchema

from hil.scenario.fields import PeriodPs, Probability, Spec, as_tuple, from_text, problem
from hil.scenario.files import read_named
from hil.scenario.ising import Ising25Noise, IsingCircuit, IsingScalarNoise
from hil.scenario.user_circuit import (
    check_rounds,
    decoded,
    noise_of,
    parse_circuit,
    parse_layout,
)

Basis: TypeAlias = Literal["X", "Z"]

ROTATED: Final = "surface_code:rotated_memory"
UNROTATED: Final = "surface_code:unrotated_memory"
REPETITION: Final = "repetition_code:memory"

MAX_ROUNDS: Final = 1_000_000
"""A virtual run holds a whole shot, about 0.5 KB per round at d = 3; a ring bounds live shots."""

_FAMILY: Final = "Who makes the circuit."
_ROUNDS: Final = "Rounds of syndrome extraction in one shot."
_MODEL: Final = "Noise model."
_P: Final = "Error probability."


class GeneratedCircuit(Spec):
    """Memory experiment of a code that stim generates.

    Distances are 3 to 31, of the rotated surface code odd ones: only then it has as many X checks
    as Z checks.
    """

    family: Literal["stim_generated"] = Field(description=_FAMILY)
    task: Literal[
        "surface_code:rotated_memory_x",
        "surface_code:rotated_memory_z",
        "surface_code:rotated_memory",
        "surface_code:unrotated_memory_x",
        "surface_code:unrotated_memory_z",
        "surface_code:unrotated_memory",
        "repetition_code:memory",
    ] = Field(
        default="surface_code:rotated_memory_z",
        description="Experiment in stim's naming, the basis may be left to basis; "
        "rotated surface code when absent.",
    )
    distance: int = Field(ge=3, le=31, description="Code distance; odd for the rotated code.")
    rounds: int = Field(ge=1, le=MAX_ROUNDS, description=_ROUNDS)
    basis: Literal["X", "Z", "alternate"] = Field(
        description="Basis of the memory, alternate: Z and X in turn; follows from task if absent."
    )

    @model_validator(mode="before")
    @classmethod
    def _basis_and_task(cls, data: object) -> object:
        """Complete one of the two from the other; the task then names its basis."""
        if not isinstance(data, dict):
            return data
        basis, task = data.get("basis"), data.get("task", ROTATED)
        if basis is None and task == REPETITION:
            return {**data, "basis": "Z"}
        if basis is None and isinstance(task, str) and task[-2:] in {"_x", "_z"}:
            return {**data, "basis": task[-1].upper()}
        if task in (ROTATED, UNROTATED) and basis in ("X", "Z"):
            return {**data, "task": f"{task}_{basis.lower()}"}
        if "task" not in data and basis == "alternate":
            return {**data, "task": task}
        return data

    @model_validator(mode="after")
    def _consistent(self) -> GeneratedCircuit:
        if self.code == ROTATED and self.distance % 2 == 0:
            raise problem(
                "E501",
                "even distance",
                got=str(self.distance),
                allowed="odd, 3 to 31",
                fix=f"write {self.distance - 1} or {self.distance + 1}",
                at="distance",
            )
        if self.code == REPETITION:
            if self.basis != "Z":
                raise problem(
                    "E204",
                    "the repetition code stores one basis",
                    got=f"task {self.task}, basis {self.basis}",
                    allowed="Z",
                    fix="write basis: Z",
                    at="basis",
                )
        elif self.task != self.task_of(self.basis):
            raise problem(
                "E204",
                "task and basis name different bases",
                got=f"task {self.task}, basis {self.basis}",
                allowed="one of them alone, or both alike",
                fix="remove task" if self.code == ROTATED else f"write task: {self.code}",
                at="task",
            )
        return self

    @property
    def code(self) -> str:
        """Code family in stim's naming, without the basis."""
        return self.task.removesuffix("_x").removesuffix("_z")

    def task_of(self, basis: str) -> str:
        """Name of the experiment in stim for one basis; without a basis for ``alternate``."""
        if self.code == REPETITION or basis == "alternate":
            return self.code
        return f"{self.code}_{basis.lower()}"

    @property
    def bases(self) -> tuple[Basis, ...]:
        """Bases of the shots in turn: shot s stores ``bases[s % len(bases)]``."""
        return ("Z", "X") if self.basis == "alternate" else (self.basis,)

    @property
    def checks(self) -> Mapping[str, int]:
        """Number of checks of each kind, as channels of boards count them."""
        d = self.distance
        if self.code == REPETITION:
            return {"x_check": 0, "z_check": d - 1}
        each = (d * d - 1) // 2 if self.code == ROTATED else d * (d - 1)
        return {"x_check": each, "z_check": each}


class UserCircuit(Spec):
    """A stim circuit from a file."""

    family: Literal["user_stim"] = Field(description=_FAMILY)
    file: str = Field(min_length=1, description="The stim circuit, a file beside the scenario.")
    sha256: str = Field(default="", description="What the file must be, if stated.")
    rounds: int = Field(ge=1, le=MAX_ROUNDS, description=_ROUNDS)
    basis: Basis = Field(default="Z", description="Basis of the memory: a label of the shots.")
    layout: str | None = Field(
        default=None,
        min_length=1,
        description="CSV file detector,board[,channel]: who reads each detector out.",
    )
    layout_sha256: SkipJsonSchema[str] = Field(default="", alias="(layout_sha256)")
    text: SkipJsonSchema[str | None] = Field(default=None, alias="(text)", repr=False, exclude=True)
    readout: SkipJsonSchema[Annotated[tuple[tuple[str, str], ...], as_tuple]] = Field(
        default=(), alias="(readout)", repr=False, exclude=True
    )

    @model_validator(mode="before")
    @classmethod
    def _read(cls, data: object, info: ValidationInfo) -> object:
        """Read the files: ``text`` is the circuit, ``readout`` board and channel per detector."""
        context = from_text(info)
        if context is None or not isinstance(data, dict):
            return data
        name, stated = data.get("file"), data.get("sha256", "")
        if not isinstance(name, str) or not name or not isinstance(stated, str):
            return data
        raw, digest = read_named(context, name, "file")
        if stated and stated != digest:
            raise problem(
                "E403",
                f"file '{name}' is another one",
                got=f"sha256 {digest}",
                allowed=stated,
                fix="restore the file, or correct sha256",
                at="sha256",
            )
        text = decoded(raw, name, "file")
        circuit = parse_circuit(text, name)
        out = {**data, "sha256": digest, "(text)": text}
        layout = data.get("layout")
        if isinstance(layout, str) and layout:
            raw, digest = read_named(context, layout, "layout")
            rows = parse_layout(decoded(raw, layout, "layout"), layout, circuit.num_detectors)
            out |= {"(readout)": rows, "(layout_sha256)": digest}
        return out

    @model_validator(mode="after")
    def _rounds_of_detectors(self) -> UserCircuit:
        if self.text is not None:
            check_rounds(parse_circuit(self.text, self.file), self.rounds)
        return self

    @property
    def code(self) -> str:
        """What the circuit is called: its file."""
        return self.file

    @property
    def bases(self) -> tuple[Basis, ...]:
        """Bases of the shots in turn: one."""
        return (self.basis,)

    @property
    def checks(self) -> Mapping[str, int]:
        """Channels of boards take its checks of a kind as one; a layout goes into detail."""
        return {"x_check": 1, "z_check": 1}

    def layout_document(self) -> dict[str, list[str]]:
        """Board and channel of every detector, for the trace; empty without a layout."""
        if not self.readout:
            return {}
        boards, channels = zip(*self.readout, strict=True)
        return {"board": list(boards), "channel": list(channels)}


CircuitSpec: TypeAlias = Annotated[
    GeneratedCircuit | UserCircuit | IsingCircuit, Field(discriminator="family")
]
"""The experiment, chosen by ``family``."""


class UniformNoise(Spec):
    """All four noise arguments of stim's generator equal p."""

    model: Literal["stim_uniform"] = Field(description=_MODEL)
    p: float = Field(ge=0.0, le=0.5, allow_inf_nan=False, description=_P)

    @property
    def shown(self) -> str:
        """For people."""
        return f"{self.model}, p = {self.p:g}"


class FourNoise(Spec):
    """The four noise arguments of stim's generator, each stated."""

    model: Literal["stim4"] = Field(description=_MODEL)
    after_clifford_depolarization: Probability = Field(description="Depolarizing after every gate.")
    before_round_data_depolarization: Probability = Field(
        description="Depolarizing of the data qubits at the start of each round."
    )
    before_measure_flip_probability: Probability = Field(description="Flip before a measurement.")
    after_reset_flip_probability: Probability = Field(description="Flip after a reset.")

    @property
    def shown(self) -> str:
        """For people."""
        given = self.model_dump(exclude={"model"})
        return f"{self.model}, " + ", ".join(f"{name} = {p:g}" for name, p in given.items())


class Si1000Noise(Spec):
    """SI1000 (arXiv:2108.10457), written into the noiseless circuit: see ``hil.device.noise``."""

    model: Literal["si1000"] = Field(description=_MODEL)
    p: float = Field(ge=0.0, le=0.1, allow_inf_nan=False, description=_P)

    @property
    def shown(self) -> str:
        """For people."""
        return f"{self.model}, p = {self.p:g}"


class CircuitNoise(Spec):
    """The noise that a user's circuit brings along."""

    model: Literal["from_circuit"] = Field(description=_MODEL)

    @property
    def shown(self) -> str:
        """For people."""
        return f"{self.model}"


NoiseSpec: TypeAlias = Annotated[
    UniformNoise | FourNoise | Si1000Noise | CircuitNoise | Ising25Noise | IsingScalarNoise,
    Field(discriminator="model"),
]
"""Noise of the circuit, chosen by ``model``."""

_NOISE_OF: Final = {
    "stim_generated": ("stim_uniform", "stim4", "si1000"),
    "user_stim": ("from_circuit", "si1000"),
    "ising_memory": ("ising25", "ising_scalar"),
}
"""Noise models that a family takes."""


class QpuSpec(Spec):
    """The quantum device: circuit, noise and cadence."""

    circuit: CircuitSpec = Field(description="The experiment.")
    noise: NoiseSpec = Field(description="Its noise.")
    round_period_ps: PeriodPs = Field(alias="round_period", description="Start to start of rounds.")
    shot_period_ps: PeriodPs = Field(alias="shot_period", description="Start to start of shots.")

    @model_validator(mode="after")
    def _noise_fits(self) -> QpuSpec:
        allowed = _NOISE_OF[self.circuit.family]
        if self.noise.model not in allowed:
            raise problem(
                "E204",
                f"noise model that does not fit family {self.circuit.family}",
                got=self.noise.model,
                allowed=", ".join(allowed),
                fix=f"write model: {allowed[0]}",
                at="noise.model",
            )
        circuit = self.circuit
        if isinstance(circuit, UserCircuit) and isinstance(self.noise, Si1000Noise):
            noise = noise_of(parse_circuit(circuit.text or "", circuit.file))
            if noise:
                raise problem(
                    "E204",
                    "the circuit has noise already",
                    got=noise,
                    allowed="a circuit without noise under si1000",
                    fix="write model: from_circuit, or remove the noise from the circuit",
                    at="noise.model",
                )
        return self

    @property
    def n_blocks(self) -> int:
        """Blocks of one shot: its rounds and the final data readout."""
        return self.circuit.rounds + 1
