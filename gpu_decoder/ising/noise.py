"""Circuit-level noise of the Ising family: 25 parameters, or one probability.

Rules and fingerprint as in the reference implementation (NVIDIA/Ising-Decoding, commit 33acb15).
``_X`` on preparation and measurement names the operation that fails: what it does is a Z flip.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

PAULI_PAIRS: Final = tuple(a + b for a in "IXYZ" for b in "IXYZ" if a + b != "II")
"""Two-qubit Paulis in the order of stim's PAULI_CHANNEL_2, first letter on the control."""

PARAMETERS: Final = (
    *(f"p_{what}_{basis}" for what in ("prep", "meas") for basis in "XZ"),
    *(f"p_idle_{when}_{pauli}" for when in ("cnot", "spam") for pauli in "XYZ"),
    *(f"p_cnot_{pair}" for pair in PAULI_PAIRS),
)
"""Names of the 25 parameters."""

_FAMILIES: Final = ("p_idle_cnot_", "p_idle_spam_", "p_cnot_")


@dataclass(frozen=True)
class Ising25:
    """Noise by 25 probabilities.

    Attributes:
        values: one probability per name of ``PARAMETERS``.
    """

    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.values) != len(PARAMETERS):
            raise ValueError(f"{len(self.values)} parameters, allowed: {len(PARAMETERS)}")
        for name, value in zip(PARAMETERS, self.values, strict=True):
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"{name} = {value!r}, allowed: 0 to 1")
        for family in _FAMILIES:
            total = sum(self.family(family))
            if total > 1.0 + 1e-12:
                raise ValueError(f"{family}* add up to {total!r}, allowed: at most 1")

    @classmethod
    def from_p(cls, p: float) -> Ising25:
        """Uniform circuit-level noise of strength p."""
        spam = 2 * p / 3
        idle_spam = 2 * p / 3 - 4 * p * p / 9
        return cls((spam,) * 4 + (p / 3,) * 3 + (idle_spam,) * 3 + (p / 15,) * 15)

    @classmethod
    def from_parameters(cls, given: Mapping[str, float]) -> Ising25:
        """Noise from all 25 names.

        Raises:
            ValueError: a name is missing or unknown, or a value is out of range.
        """
        missing = [name for name in PARAMETERS if name not in given]
        unknown = sorted(set(given) - set(PARAMETERS))
        if missing or unknown:
            raise ValueError(
                f"missing parameters: {', '.join(missing) or 'none'}; "
                f"unknown: {', '.join(unknown) or 'none'}"
            )
        return cls(tuple(float(given[name]) for name in PARAMETERS))

    def __getitem__(self, name: str) -> float:
        return self.values[PARAMETERS.index(name)]

    def family(self, prefix: str) -> tuple[float, ...]:
        """Values of all parameters whose name begins so."""
        return tuple(
            value
            for name, value in zip(PARAMETERS, self.values, strict=True)
            if name.startswith(prefix)
        )

    def document(self) -> dict[str, float]:
        """Name to value."""
        return dict(zip(PARAMETERS, self.values, strict=True))

    def fingerprint(self) -> str:
        """SHA-256 of the compact JSON of the parameters, keys sorted."""
        text = json.dumps(self.document(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class IsingScalar:
    """Depolarizing noise of one strength; differs from ``Ising25.from_p`` (see the circuit).

    Attributes:
        p: probability, 0 to 0.5.
    """

    p: float

    def __post_init__(self) -> None:
        if not 0.0 <= self.p <= 0.5:
            raise ValueError(f"p = {self.p!r}, allowed: 0 to 0.5")

    def fingerprint(self) -> str:
        """SHA-256 of the compact JSON of the model's name and p."""
        text = json.dumps({"ising_scalar": self.p}, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


IsingNoise: TypeAlias = Ising25 | IsingScalar
