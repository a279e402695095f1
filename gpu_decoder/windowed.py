"""Sliding-window (streaming) minimum-weight perfect matching.

``WindowMatching`` decodes one window: it commits the edges that have an end in the commit region
and hands the detectors at their far ends on as *carried defects*. ``SlidingMatching`` decodes a
shot window by window. Both are ``Decoder``s; a whole shot is the window that commits everything.

Rules, for rounds [a, a + C + B) of which [a, a + C) are committed; the last window commits all:

1. the round of a detector is its last coordinate;
2. an edge inside the window stays, one into a later round becomes a boundary edge, one into an
   earlier round is dropped (it has been decided), a true boundary edge stays;
3. of parallel edges the one of smallest weight stays;
4. each used edge with an end in the commit region flips its observables, and the detector at its
   far end where that lies beyond the commit region.

Leaving out the carried defects raises no error and leaves no syndrome: only the logical error rate
shows it (``tests/statistical/test_windowed_accuracy.py``). What a committed edge flips, observables
and carried defects alike, are the *fault ids* of its edge in PyMatching, so one ``decode_batch``
call gives both, without edges being listed.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gpu_decoder.folding import FoldedModel, fold
from gpu_decoder.protocol import (
    DecodedBatch,
    GlobalDecoder,
    I64Array,
    U8Array,
    WindowSpec,
    check_rows,
)
from gpu_decoder.windows import WindowPlan

Bools: TypeAlias = NDArray[np.bool_]

KEPT_GRAPHS: Final = 64
"""Matching graphs kept at a time; a periodic circuit needs 2 to 20."""


@dataclass(frozen=True)
class EdgeTable:
    """Edges of a (short) model, parallel ones merged as PyMatching merges them.

    Attributes:
        ends: int64 [E, 2], detectors; the second is -1 for the boundary.
        weights: float64 [E].
        observables: observables that each edge flips.
        rounds: int64 [D], round of each detector.
    """

    ends: I64Array
    weights: np.ndarray
    observables: list[frozenset[int]]
    rounds: I64Array

    @cached_property
    def parts(self) -> tuple[I64Array, Bools]:
        """Connected part of each detector, int64 [D], and whether each part has a boundary."""
        outer = self.ends[:, 1] < 0
        return _parts(self.ends[~outer], self.ends[outer, 0], self.rounds.size)

    @staticmethod
    def of(folded: FoldedModel) -> EdgeTable:
        """Edges of a folded model.

        Raises:
            ValueError: the model is not graphlike.
        """
        import pymatching

        matching = pymatching.Matching.from_detector_error_model(folded.dem)
        boundary = {None, *matching.boundary}
        ends, weights, observables = [], [], []
        for edge in matching.edges():
            *nodes, data = edge
            real = [node for node in nodes if node not in boundary]
            ends.append((real[0], real[1] if len(real) > 1 else -1))
            weights.append(data["weight"])
            observables.append(frozenset(data["fault_ids"]))
        table = np.array(ends, dtype=np.int64).reshape(-1, 2)
        return EdgeTable(table, np.array(weights, np.float64), observables, folded.rounds)


class WindowMatching:
    """Matching on one window.

    Args:
        edges: edges of the model.
        window: rounds of the window, in rounds of the same model.
        n_observables: O.

    Attributes:
        detectors: int64 [m], detectors of the window that an edge touches, ascending; bit ``i`` of
            the input is detector ``detectors[i]``.
        silent: int64 [q], detectors of the window that no error of the model flips.
        carried: int64 [c], detectors beyond the commit region that a committed edge can flip; bit
            ``i`` of ``carried_b8`` is detector ``carried[i]``.

    Raises:
        ValueError: after the windows before, the window may hold defects that nothing explains:
            all errors behind them reach into rounds that have been decided.
    """

    def __init__(self, edges: EdgeTable, window: WindowSpec, n_observables: int) -> None:
        import pymatching

        self._window = window
        self._n_observables = n_observables
        rounds = edges.rounds
        first, end, commit_end = window.first_round, window.end_round, window.commit_end_round
        real = edges.ends >= 0  # the boundary is never far
        far: I64Array = np.where(real, rounds[edges.ends], first)
        inside: Bools = (far >= first) & (far < end) & real
        chosen: Bools = np.asarray(inside.any(axis=1) & (far >= first).all(axis=1))
        committed: Bools = np.asarray((inside & (far < commit_end)).any(axis=1))
        flips: Bools = real & (far >= commit_end) & (committed & chosen)[:, np.newaxis]
        self.carried = np.unique(edges.ends[flips])
        self.detectors = np.unique(edges.ends[inside & chosen[:, np.newaxis]])
        here = np.flatnonzero((rounds >= first) & (rounds < end))
        self.silent = np.setdiff1d(here, self.detectors)
        _refuse_stranded(edges, window, chosen, inside)
        bit = {int(d): n_observables + i for i, d in enumerate(self.carried)}
        node = {int(d): i for i, d in enumerate(self.detectors)}
        matching: Any = pymatching.Matching()
        for e in np.flatnonzero(chosen).tolist():
            faults: set[int] = set()
            if committed[e]:
                faults = set(edges.observables[e])
                faults |= {bit[int(d)] for d in edges.ends[e][flips[e]]}
            nodes = [node[int(d)] for d in edges.ends[e][inside[e]]]
            add = matching.add_edge if len(nodes) == 2 else matching.add_boundary_edge
            add(
                *nodes,
                fault_ids=faults,
                weight=edges.weights[e],
                merge_strategy="smallest-weight",
            )
        matching.ensure_num_fault_ids(n_observables + self.carried.size)
        self._matching = matching

    @property
    def kind(self) -> GlobalDecoder:
        """The decoder that runs."""
        return GlobalDecoder.PYMATCHING

    @property
    def n_detectors(self) -> int:
        """Detectors of the window."""
        return int(self.detectors.size)

    @property
    def n_observables(self) -> int:
        """O."""
        return self._n_observables

    @property
    def window(self) -> WindowSpec:
        """The rounds of this window."""
        return self._window

    def decode_events(self, events: U8Array) -> U8Array:
        """uint8 [n, m] detection events, one per byte -> uint8 [n, O + c] flips, one per byte."""
        if not self.detectors.size:
            return np.zeros((events.shape[0], self._n_observables), np.uint8)
        flips: U8Array = self._matching.decode_batch(events)
        return flips

    def decode_batch(self, detectors_b8: U8Array) -> DecodedBatch:
        """Decode uint8 [n, ceil(m/8)] windows; bits in the order of ``detectors``.

        Raises:
            ValueError: the rows are not ceil(m/8) bytes long.
        """
        check_rows(detectors_b8, self.n_detectors)
        events = np.unpackbits(detectors_b8, axis=1, count=self.n_detectors, bitorder="little")
        flips = self.decode_events(events)
        return DecodedBatch(
            _packed(flips[:, : self._n_observables]),
            _packed(flips[:, self._n_observables :]),
            None,
            self.kind,
        )

    def decode_one(self, detectors_b8: U8Array) -> U8Array:
        """Decode one window, uint8 [ceil(m/8)] -> uint8 [ceil(O/8)] committed flips."""
        answer: U8Array = self.decode_batch(detectors_b8.reshape(1, -1)).predictions_b8[0]
        return answer

    def fingerprint(self) -> dict[str, str]:
        """What answers."""
        import pymatching

        return {
            "decoder": "pymatching, one window",
            "package": "pymatching",
            "version": str(pymatching.__version__),
        }


def _parts(pairs: I64Array, at_boundary: I64Array, n: int) -> tuple[I64Array, Bools]:
    """Connected part of each of ``n`` nodes, and whether each part has a boundary.

    ``pairs`` int64 [E, 2] are edges between nodes, ``at_boundary`` nodes with a boundary edge.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(pairs), np.int8), (pairs[:, 0], pairs[:, 1])), shape=(n, n))
    count, part = connected_components(graph, directed=False)
    open_: Bools = np.zeros(count, np.bool_)
    open_[part[at_boundary]] = True
    return part.astype(np.int64), open_


def _refuse_stranded(edges: EdgeTable, window: WindowSpec, chosen: Bools, inside: Bools) -> None:
    """Refuse a window that may get an odd number of defects in a part without boundary.

    A part without boundary is even if it is all that is left of a part of the model that has none
    either: every error and every committed edge flips two detectors of it.

    Raises:
        ValueError: there is another part without boundary.
    """
    here = np.flatnonzero((edges.rounds >= window.first_round) & (edges.rounds < window.end_round))
    number = np.full(edges.rounds.size, -1, dtype=np.int64)
    number[here] = np.arange(here.size)
    both = inside.all(axis=1) & chosen
    one = chosen & ~both
    outer = edges.ends[one][inside[one]]
    part, has_boundary = _parts(number[edges.ends[both]], number[outer], here.size)
    whole, whole_open = edges.parts
    owner = np.empty(has_boundary.size, dtype=np.int64)
    owner[part] = whole[here]  # all detectors of a part lie in one part of the model
    shared = np.bincount(owner, minlength=whole_open.size) > 1
    stranded = ~has_boundary & (whole_open[owner] | shared[owner])
    if stranded.any():
        first, last = window.first_round, window.end_round - 1
        raise ValueError(
            f"the window of rounds {first} to {last} has {int(stranded[part].sum())} detectors "
            "whose errors all reach into rounds that were decided before; choose a larger "
            "buffer, or a commit with which the last window covers more rounds"
        )


class SlidingMatching:
    """Whole shots, decoded window by window; memory and build time do not grow with the rounds.

    Windows that are equal by translation share one matching graph (``gpu_decoder.folding``); graphs
    are built when first needed and at most ``KEPT_GRAPHS`` of them are kept. A batch of shots is
    decoded in parallel, window after window.

    Args:
        dem_text: stim detector error model, decomposed into graphlike parts, loops folded.
        commit: rounds that a window commits (C >= 1).
        buffer: rounds that it looks ahead (B >= 0).

    Raises:
        ValueError: the model is not graphlike, has no detectors or a detector without round, or
            the last window cannot explain what the one before may leave to it.
    """

    def __init__(self, dem_text: str, *, commit: int, buffer: int) -> None:
        folded = fold(dem_text, commit=commit, length=commit + buffer)
        if not folded.n_detectors:
            raise ValueError("the detector error model has no detectors")
        self.plan = WindowPlan(folded.n_rounds, commit, buffer)
        self._folded = folded
        self._edges = EdgeTable.of(folded)
        self._n_observables = int(folded.dem.num_observables)
        self._graphs: OrderedDict[WindowSpec, WindowMatching] = OrderedDict()
        self._dem_sha256 = hashlib.sha256(dem_text.encode()).hexdigest()
        self.graphs_built = 0
        self.part(self.plan.count - 1)  # may be too short: refuse it before anything runs

    @property
    def kind(self) -> GlobalDecoder:
        """The decoder that runs."""
        return GlobalDecoder.PYMATCHING

    @property
    def n_detectors(self) -> int:
        """D, number of detectors of the whole shot."""
        return self._folded.n_detectors

    @property
    def n_observables(self) -> int:
        """O, number of logical observables."""
        return self._n_observables

    @property
    def window(self) -> WindowSpec:
        """What one call decodes: the whole shot."""
        return WindowSpec(0, self.plan.n_rounds, self.plan.n_rounds)

    def part(self, k: int) -> tuple[WindowMatching, int]:
        """Window ``k``: its matching graph, and what to add to the detector numbers in it."""
        spec = self.plan.window(k)
        first, shift = self._folded.template(spec.first_round, spec.end_round)
        moved = spec.first_round - first
        template = WindowSpec(first, spec.end_round - moved, spec.commit_end_round - moved)
        graph = self._graphs.get(template)
        if graph is None:
            graph = WindowMatching(self._edges, template, self._n_observables)
            self.graphs_built += 1
            self._graphs[template] = graph
            if len(self._graphs) > KEPT_GRAPHS:
                self._graphs.popitem(last=False)
        self._graphs.move_to_end(template)
        return graph, shift

    def decode_batch(self, detectors_b8: U8Array) -> DecodedBatch:
        """Decode uint8 [n, ceil(D/8)] whole shots.

        Raises:
            ValueError: the rows are not ceil(D/8) bytes long, or a detector fired that no error of
                the model flips.
        """
        check_rows(detectors_b8, self.n_detectors)
        state = np.unpackbits(detectors_b8, axis=1, count=self.n_detectors, bitorder="little")
        n, o = state.shape[0], self._n_observables
        answer = np.zeros((n, o), dtype=np.uint8)
        commits = np.zeros((n, self.plan.count, -(-o // 8)), dtype=np.uint8)
        events = np.zeros((n, self.plan.count), dtype=np.int64)
        for k in range(self.plan.count):
            graph, shift = self.part(k)
            seen = _columns(state, graph.detectors, shift)
            if graph.silent.size and state[:, graph.silent + shift].any():
                raise ValueError(f"a detector of window {k} fired that no error of the model flips")
            flips = graph.decode_events(seen)
            events[:, k] = seen.sum(axis=1)
            answer ^= flips[:, :o]
            commits[:, k] = _packed(flips[:, :o])
            self._carry(state, graph.carried + shift, flips[:, o:])
        return DecodedBatch(_packed(answer), None, None, self.kind, events, commits)

    def _carry(self, state: U8Array, detectors: I64Array, flips: U8Array) -> None:
        """Flip the carried defects in uint8 [n, D] ``state``, the input of later windows."""
        if detectors.size:
            state[:, detectors] ^= flips

    def decode_one(self, detectors_b8: U8Array) -> U8Array:
        """Decode one shot, uint8 [ceil(D/8)] -> uint8 [ceil(O/8)]."""
        answer: U8Array = self.decode_batch(detectors_b8.reshape(1, -1)).predictions_b8[0]
        return answer

    def fingerprint(self) -> dict[str, str]:
        """What answers: package, version, windows, SHA-256 of the model text."""
        import pymatching

        return {
            "decoder": "pymatching",
            "package": "pymatching",
            "version": str(pymatching.__version__),
            "window": f"sliding, commit {self.plan.commit}, buffer {self.plan.buffer}",
            "dem_sha256": self._dem_sha256,
        }


def _columns(state: U8Array, detectors: I64Array, shift: int) -> U8Array:
    """Columns of uint8 [n, D], contiguous; a slice where the detectors are consecutive."""
    if detectors.size and int(detectors[-1] - detectors[0]) == detectors.size - 1:
        start = int(detectors[0]) + shift
        return np.ascontiguousarray(state[:, start : start + detectors.size])
    return state[:, detectors + shift]


def _packed(bits: U8Array) -> U8Array:
    """uint8 [n, k] -> uint8 [n, ceil(k/8)], LSB first."""
    return np.packbits(bits, axis=1, bitorder="little")
