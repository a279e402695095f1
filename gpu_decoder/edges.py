"""Edges of a decomposed detector error model, one error and its graphlike parts at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from scipy.sparse import csr_array

Part: TypeAlias = tuple[frozenset[int], frozenset[int]]
"""Detectors and observables that one graphlike part of an error flips."""

PRIOR_FLOOR: Final = 1e-14
"""Priors are clipped to [floor, 1 - floor], as in the reference's files."""


@dataclass(frozen=True)
class EdgeMatrices:
    """What each edge flips, and how likely it is. Columns in order of first appearance.

    Attributes:
        checks: uint8 CSR [D, E], detectors of each edge; H.
        observables: uint8 CSR [O, E], observables of each edge; O.
        priors: float64 [E].
    """

    checks: csr_array
    observables: csr_array
    priors: NDArray[np.float64]


def errors(dem_text: str) -> Iterator[tuple[float, list[Part]]]:
    """Probability and parts of every error of a model, loops written out.

    Raises:
        ValueError: a part flips more than two detectors.
    """
    import stim

    for instruction in stim.DetectorErrorModel(dem_text).flattened():
        if instruction.type != "error":
            continue
        parts: list[Part] = []
        for group in instruction.target_groups():
            detectors: frozenset[int] = frozenset()
            observables: frozenset[int] = frozenset()
            for target in group:
                if target.is_relative_detector_id():
                    detectors ^= {target.val}
                else:
                    observables ^= {target.val}
            if len(detectors) > 2:
                raise ValueError(
                    f"a part of error {instruction} flips {len(detectors)} detectors, "
                    "allowed: at most 2 (decompose_errors=True)"
                )
            parts.append((detectors, observables))
        yield instruction.args_copy()[0], parts


def edge_matrices(dem_text: str) -> EdgeMatrices:
    """Check matrix, observable matrix and priors of the edges of a model.

    The definition is that of ``detector_error_model_to_check_matrices`` of beliefmatching 0.2.0,
    which the reference's files follow: edges, and mechanisms, are told apart by their detectors
    alone; a mechanism happens if an odd number of its errors do; the prior of an edge is the sum of
    the probabilities of the mechanisms whose first decomposition holds it; its observables are
    those of the last error that names it.

    Args:
        dem_text: stim detector error model, decomposed into graphlike parts.

    Raises:
        ValueError: the model is not graphlike.
    """
    import stim
    from scipy.sparse import csr_array

    dem = stim.DetectorErrorModel(dem_text)
    edges: dict[frozenset[int], int] = {}
    flips: dict[int, frozenset[int]] = {}
    mechanisms: dict[frozenset[int], int] = {}
    probability: list[float] = []
    holds: list[tuple[int, ...]] = []
    for p, parts in errors(dem_text):
        whole: frozenset[int] = frozenset()
        chosen: set[int] = set()
        for detectors, observables in parts:
            whole ^= detectors
            edge = edges.setdefault(detectors, len(edges))
            flips[edge] = observables
            chosen.add(edge)
        mechanism = mechanisms.setdefault(whole, len(mechanisms))
        if mechanism == len(probability):
            probability.append(0.0)
            holds.append(tuple(chosen))  # tuples of numbers cost the garbage collector nothing
        q = probability[mechanism]
        probability[mechanism] = q * (1 - p) + p * (1 - q)

    def matrix(rows: int, columns: dict[int, frozenset[int]]) -> csr_array:
        at = [(row, column) for column, found in columns.items() for row in found]
        row, column = np.array(at, dtype=np.int32).reshape(-1, 2).T
        entries: Any = (np.ones(len(at), dtype=np.uint8), (row, column))
        made: csr_array = csr_array(entries, shape=(rows, len(edges)))
        made.sort_indices()
        return made

    counted = np.fromiter((len(chosen) for chosen in holds), np.int64, len(holds))
    of = np.fromiter((edge for chosen in holds for edge in chosen), np.int64, int(counted.sum()))
    priors = np.bincount(of, np.repeat(np.array(probability), counted), minlength=len(edges))
    return EdgeMatrices(
        matrix(dem.num_detectors, {edge: detectors for detectors, edge in edges.items()}),
        matrix(dem.num_observables, flips),
        np.clip(priors, PRIOR_FLOOR, 1 - PRIOR_FLOOR),
    )
