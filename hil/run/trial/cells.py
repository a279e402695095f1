"""The cells of a trial, what is counted in them, and what is put to the trial."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Final, Literal

from gpu_decoder.ising.circuit import memory_circuit
from gpu_decoder.ising.geometry import Basis, geometry
from gpu_decoder.ising.noise import Ising25, IsingScalar
from gpu_decoder.ising.onnx_model import check_orientation
from gpu_decoder.ising.tensors import Layout
from gpu_decoder.ising.weights import find_weights, load_weights
from gpu_decoder.protocol import Backend
from hil.errors import UsageError

PAIR_RULE: Final = "isolated_pair"
"""Name of the baseline that is counted in every trial."""


@dataclass(frozen=True, order=True)
class Cell:
    """One circuit: T = d rounds, noise of strength p."""

    distance: int
    p: float
    noise: Literal["ising25", "ising_scalar"]
    basis: Basis

    @property
    def name(self) -> str:
        """Such as ``ising25-d5-p0.003-X``."""
        return f"{self.noise}-d{self.distance}-p{self.p:g}-{self.basis}"

    @property
    def shots(self) -> int:
        """Shots of a whole trial: more where failures are rare."""
        if self.p > 0.005:
            return 200_000
        return 400_000 if self.distance < 7 else 600_000

    @property
    def work(self) -> int:
        """Size of the network's grid, to which the time of a shot is about proportional."""
        return self.distance**3

    def layout(self, orientation: str, *, keep_last: bool) -> Layout:
        """Where its detectors lie."""
        return Layout(geometry(self.distance, orientation), self.distance, self.basis, keep_last)

    def circuit_text(self, orientation: str) -> str:
        """The circuit as stim text."""
        noise = Ising25.from_p(self.p) if self.noise == "ising25" else IsingScalar(self.p)
        code = geometry(self.distance, orientation)
        return str(memory_circuit(code, self.distance, self.basis, noise))


GRID: Final = tuple(
    sorted(
        Cell(distance, p, noise, basis)
        for distance in (5, 7, 9)
        for p in (0.003, 0.006)
        for noise in ("ising25", "ising_scalar")
        for basis in ("X", "Z")
    )
)
"""The 24 cells that shipped weights are judged on."""


def chosen_cells(patterns: Sequence[str]) -> tuple[Cell, ...]:
    """Cells whose name fits one of the patterns (``*`` and ``?``); all without patterns.

    Raises:
        UsageError: a pattern fits none.
    """
    for pattern in patterns:
        if not any(fnmatchcase(cell.name, pattern) for cell in GRID):
            raise UsageError(
                "no such cell", where="--cells", got=pattern, allowed=" ".join(c.name for c in GRID)
            )
    fitting = (c for c in GRID if any(fnmatchcase(c.name, p) for p in patterns))
    return tuple(fitting) if patterns else GRID


@dataclass(frozen=True)
class Subject:
    """What is put to the trial: weights with one or several pairs of thresholds. Picklable.

    Attributes:
        weights: path of the weights file.
        network_sha256: of its tensors: a threshold stored later does not change it.
        thresholds: name -> thresholds of data and measurement channels. One pair runs as the whole
            chain in ``backend``; several share one pass of the bare network.
        orientation: of the code, XV to ZH.
        keep_last: see ``Layout``.
        backend: runtime, FP32.
    """

    weights: str
    network_sha256: str
    thresholds: Mapping[str, tuple[float, float]]
    orientation: str = "XV"
    keep_last: bool = False
    backend: Backend = Backend.ORT_CPU

    def identity(self) -> dict[str, Any]:
        """What makes counts of two subjects incomparable (not the place of the file)."""
        return {
            "network_sha256": self.network_sha256,
            "thresholds": {name: list(pair) for name, pair in self.thresholds.items()},
            "orientation": self.orientation,
            "keep_last": self.keep_last,
            "backend": self.backend.name.lower(),
        }


def subject(
    weights: str,
    thresholds: Mapping[str, tuple[float | None, float | None]],
    *,
    orientation: str = "XV",
    keep_last: bool = False,
    backend: Backend = Backend.ORT_CPU,
) -> Subject:
    """Put weights to the trial.

    Args:
        weights: a file, or the name of shipped weights.
        thresholds: name -> thresholds; ``None`` is what the file stores.
        orientation: of the code, XV to ZH or O1 to O4.
        keep_last: see ``Layout``.
        backend: runtime.

    Raises:
        UsageError: the weights cannot be used, there is no such orientation, or they were
            trained on another one.
    """
    try:
        path = find_weights(weights)
        loaded = load_weights(path)
        stored = (loaded.threshold_data, loaded.threshold_syndrome)
        pairs = {
            name: (stored[0] if data is None else data, stored[1] if check is None else check)
            for name, (data, check) in thresholds.items()
        }
        code = geometry(3, orientation)
        check_orientation(loaded, Layout(code, 2, "X"))
    except ValueError as error:
        raise UsageError("these weights cannot be judged", got=str(error)) from error
    digest = hashlib.sha256()
    for tensor in (tensor for layer in loaded.layers for tensor in layer):
        digest.update(f"{tensor.shape}".encode() + tensor.astype("<f4").tobytes())
    return Subject(str(path), digest.hexdigest(), pairs, code.orientation, keep_last, backend)


@dataclass(frozen=True)
class Chain:
    """Counts of one pre-decoder followed by plain matching.

    Attributes:
        failures: shots answered wrongly.
        worse: shots that only this chain gets wrong, plain matching right.
        better: the reverse.
        events: fired detectors that are left, last round of the other basis apart.
        matching_ns: CPU time of matching the residuals.
    """

    failures: int = 0
    worse: int = 0
    better: int = 0
    events: int = 0
    matching_ns: int = 0


@dataclass(frozen=True)
class Tally:
    """Counts of one cell; they add.

    Attributes:
        shots: shots decoded.
        plain: failures of plain matching.
        correlated: failures of correlated matching.
        events: fired detectors, last round of the other basis apart.
        matching_ns: CPU time of plain matching.
        chains: by name, the isolated-pair rule among them.
    """

    shots: int = 0
    plain: int = 0
    correlated: int = 0
    events: int = 0
    matching_ns: int = 0
    chains: Mapping[str, Chain] = field(default_factory=dict)

    def __add__(self, other: Tally) -> Tally:
        if self.shots and other.shots and self.chains.keys() != other.chains.keys():
            raise ValueError(f"chains {list(self.chains)} and {list(other.chains)} do not add")
        mine, theirs = asdict(self), asdict(other)
        chains = {
            name: Chain(*(a + b for a, b in zip(_row(self, name), _row(other, name), strict=True)))
            for name in {**self.chains, **other.chains}
        }
        counts = {key: mine[key] + theirs[key] for key in mine if key != "chains"}
        return Tally(**counts, chains=chains)

    def document(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self)

    @staticmethod
    def read(document: Mapping[str, Any]) -> Tally:
        """The tally of a ``document``."""
        chains = {name: Chain(**row) for name, row in document["chains"].items()}
        return Tally(**{**document, "chains": chains})


def _row(tally: Tally, name: str) -> tuple[int, ...]:
    return tuple(asdict(tally.chains.get(name, Chain())).values())
