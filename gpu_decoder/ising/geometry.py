"""Geometry of the rotated surface code as the Ising pre-decoder counts it.

Checks, their order, their cells on the d x d grid, logicals and the order of the CNOTs, for four
orientations. The rules are those of the public reference implementation (NVIDIA/Ising-Decoding,
Apache-2.0, commit 33acb15), restated; recorded arrays of it are in ``tests/data/ising``.

Data qubit ``row * d + col`` sits at (1 + 2 row, 1 + 2 col), ancillas on even coordinates (r, c).
X ancillas are sorted by (r, c), Z ancillas by (c, r); the rank is the index of the check.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gpu_decoder.protocol import U8Array

Basis: TypeAlias = Literal["X", "Z"]
Orientation: TypeAlias = Literal["XV", "XH", "ZV", "ZH"]
Position: TypeAlias = tuple[int, int]
Slots: TypeAlias = tuple[int | None, ...]
"""Data qubit that a check meets in each of the four CNOT layers, ``None`` beyond the edge."""

ORIENTATIONS: Final[tuple[Orientation, ...]] = ("XV", "XH", "ZV", "ZH")
ALIASES: Final[dict[str, Orientation]] = dict(
    zip(("O1", "O2", "O3", "O4"), ORIENTATIONS, strict=True)
)
"""Other names of the orientations, as in the reference's files."""

_NE, _SE, _NW, _SW = (-1, 1), (1, 1), (-1, -1), (1, -1)
_ORDER_A: Final = (_NE, _SE, _NW, _SW)
_ORDER_B: Final = (_NE, _NW, _SE, _SW)


@dataclass(frozen=True)
class Geometry:
    """One code: an odd distance and an orientation. Get it from :func:`geometry`.

    Attributes:
        distance: d, odd, at least 3.
        orientation: type of the bulk check at (2, 2) and the edge where the other type sits.
    """

    distance: int
    orientation: Orientation

    def __post_init__(self) -> None:
        if self.distance < 3 or self.distance % 2 == 0:
            raise ValueError(f"distance {self.distance}, allowed: odd, at least 3")
        if self.orientation not in ORIENTATIONS:
            raise ValueError(
                f"orientation {self.orientation!r}, allowed: {', '.join(ORIENTATIONS)}"
            )

    @property
    def half(self) -> int:
        """Checks of each kind, (d^2 - 1) / 2."""
        return (self.distance**2 - 1) // 2

    @property
    def n_data(self) -> int:
        """Data qubits, d^2."""
        return self.distance**2

    @cached_property
    def x_ancillas(self) -> tuple[Position, ...]:
        """Positions of the X ancillas, in the order of the checks."""
        return tuple(sorted(self._ancillas("X")))

    @cached_property
    def z_ancillas(self) -> tuple[Position, ...]:
        """Positions of the Z ancillas, in the order of the checks."""
        return tuple(sorted(self._ancillas("Z"), key=lambda at: (at[1], at[0])))

    @cached_property
    def x_slots(self) -> tuple[Slots, ...]:
        """CNOT layers of each X check."""
        order = _ORDER_A if self.orientation in ("XV", "ZH") else _ORDER_B
        return tuple(self._slots(at, order) for at in self.x_ancillas)

    @cached_property
    def z_slots(self) -> tuple[Slots, ...]:
        """CNOT layers of each Z check."""
        order = _ORDER_B if self.orientation in ("XV", "ZH") else _ORDER_A
        return tuple(self._slots(at, order) for at in self.z_ancillas)

    @cached_property
    def hx(self) -> U8Array:
        """uint8 [half, d^2]: data qubits of each X check."""
        return self._matrix(self.x_slots)

    @cached_property
    def hz(self) -> U8Array:
        """uint8 [half, d^2]: data qubits of each Z check."""
        return self._matrix(self.z_slots)

    @cached_property
    def lx(self) -> U8Array:
        """uint8 [d^2]: support of the logical X."""
        return self._line(row=self.orientation in ("XV", "ZH"))

    @cached_property
    def lz(self) -> U8Array:
        """uint8 [d^2]: support of the logical Z."""
        return self._line(row=self.orientation not in ("XV", "ZH"))

    @cached_property
    def x_cells(self) -> NDArray[np.int64]:
        """int64 [half]: grid cell ``row * d + col`` of each X check: smallest row and column."""
        return self._cells(self.hx, rightmost=False)

    @cached_property
    def z_cells(self) -> NDArray[np.int64]:
        """int64 [half]: grid cell of each Z check: smallest row, largest column."""
        return self._cells(self.hz, rightmost=True)

    @cached_property
    def x_presence(self) -> NDArray[np.float32]:
        """float32 [d^2]: 1 at the cell of an X check of weight 4, 0.5 of weight 2, 0 elsewhere."""
        return self._presence(self.hx, self.x_cells)

    @cached_property
    def z_presence(self) -> NDArray[np.float32]:
        """float32 [d^2]: the same of the Z checks."""
        return self._presence(self.hz, self.z_cells)

    def checks(self, kind: Basis) -> U8Array:
        """Parity checks of one kind, uint8 [half, d^2]."""
        return self.hx if kind == "X" else self.hz

    def logical(self, kind: Basis) -> U8Array:
        """Support of one logical, uint8 [d^2]."""
        return self.lx if kind == "X" else self.lz

    def _ancillas(self, kind: Basis) -> list[Position]:
        """Positions of one kind: bulk by parity of the plaquette, edges every other one."""
        d, first = self.distance, self.orientation[0]
        other = "Z" if first == "X" else "X"
        odd, even = range(1, d, 2), range(2, d, 2)
        found = [
            (2 * i, 2 * j)
            for i in range(1, d)
            for j in range(1, d)
            if (first if (i + j) % 2 == 0 else other) == kind
        ]
        if self.orientation[1] == "V":
            rows, columns, of_rows, of_columns = other, first, (odd, even), (even, odd)
        else:
            rows, columns, of_rows, of_columns = first, other, (even, odd), (odd, even)
        if rows == kind:
            found += [(0, 2 * j) for j in of_rows[0]] + [(2 * d, 2 * j) for j in of_rows[1]]
        if columns == kind:
            found += [(2 * i, 0) for i in of_columns[0]] + [(2 * i, 2 * d) for i in of_columns[1]]
        return found

    def _slots(self, at: Position, order: tuple[Position, ...]) -> Slots:
        d = self.distance
        slots: list[int | None] = []
        for step in order:
            row, col = (at[0] + step[0] - 1) // 2, (at[1] + step[1] - 1) // 2
            slots.append(row * d + col if 0 <= row < d and 0 <= col < d else None)
        return tuple(slots)

    def _matrix(self, slots: tuple[Slots, ...]) -> U8Array:
        matrix = np.zeros((len(slots), self.n_data), dtype=np.uint8)
        for check, qubits in enumerate(slots):
            matrix[check, [q for q in qubits if q is not None]] = 1
        matrix.setflags(write=False)
        return matrix

    def _line(self, *, row: bool) -> U8Array:
        support = np.zeros((self.distance, self.distance), dtype=np.uint8)
        if row:
            support[0, :] = 1
        else:
            support[:, 0] = 1
        support.setflags(write=False)
        return support.reshape(-1)

    def _cells(self, checks: U8Array, *, rightmost: bool) -> NDArray[np.int64]:
        rows, cols = np.divmod(np.arange(self.n_data), self.distance)
        inside = checks.astype(bool)
        row = np.where(inside, rows, self.n_data).min(axis=1)
        col = (
            np.where(inside, cols, -1).max(axis=1)
            if rightmost
            else np.where(inside, cols, self.n_data).min(axis=1)
        )
        return np.asarray(row * self.distance + col, dtype=np.int64)

    def _presence(self, checks: U8Array, cells: NDArray[np.int64]) -> NDArray[np.float32]:
        presence = np.zeros(self.n_data, dtype=np.float32)
        presence[cells] = checks.sum(axis=1) / np.float32(4.0)
        return presence


@lru_cache(maxsize=64)
def geometry(distance: int, orientation: str) -> Geometry:
    """The geometry of a distance and an orientation (O1 to O4 are XV, XH, ZV, ZH).

    Raises:
        ValueError: the distance is even or below 3, or the orientation is unknown.
    """
    name = ALIASES.get(orientation, orientation)
    return Geometry(distance, name)  # type: ignore[arg-type]
