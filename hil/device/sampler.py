"""Batches of shots: detection events and observables, packed, from the seed tree.

The sampler is the one source of truth of a run: every level (virtual, live) consumes the same
batches, so equal seeds give equal syndromes. A batch always holds ``batch_shots(D)`` shots,
whatever the run's length, and has a seed of its own: any shot can be made again from
``(run seed, batch, index)`` with the same stim version and machine type.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hil import seeds
from hil.device.circuits import CodeCircuit
from hil.wire.rpc_batch import split_blocks

U8: TypeAlias = NDArray[np.uint8]

LONG_SHOT_DETECTORS: Final = 2**15
"""More detectors than this make a shot a long memory."""


@dataclass(frozen=True, slots=True)
class ShotBatch:
    """``n`` consecutive shots of a run.

    Attributes:
        first_shot: index of the first shot in the run.
        batch: sampler batch that the shots come from.
        first_index: place of the first shot in that batch.
        detectors_b8: uint8 [n, ceil(D/8)], detection events, stim b8 (LSB first).
        observables_b8: uint8 [n, ceil(O/8)], true observable flips.
        epoch: calibration epoch of all these shots.
        measurements_b8: uint8 [n, ceil(M/8)], raw measurement record, where it was asked for.
    """

    first_shot: int
    batch: int
    first_index: int
    detectors_b8: U8
    observables_b8: U8
    epoch: int = 0
    measurements_b8: U8 | None = None

    @property
    def n_shots(self) -> int:
        """Number of shots."""
        return int(self.detectors_b8.shape[0])

    @property
    def shots(self) -> NDArray[np.int64]:
        """int64 [n]: indices of the shots in the run."""
        return np.arange(self.first_shot, self.first_shot + self.n_shots, dtype=np.int64)

    def part(self, start: int, stop: int) -> ShotBatch:
        """Shots ``start:stop`` of this batch as a batch of its own (views, no copies)."""
        return ShotBatch(
            self.first_shot + start,
            self.batch,
            self.first_index + start,
            self.detectors_b8[start:stop],
            self.observables_b8[start:stop],
            self.epoch,
            None if self.measurements_b8 is None else self.measurements_b8[start:stop],
        )


def batch_shots(n_detectors: int) -> int:
    """Shots per sampler batch: a power of two, at most 16384 and about 8 Mbit of events.

    Long memories (more than 32768 detectors, 256 shots) stay below 1 Mbit: there the arrays of the
    blocks, not the events, fill the memory.
    """
    room = 2**23 if n_detectors <= LONG_SHOT_DETECTORS else 2**20
    wanted = max(1, min(16384, room // max(1, n_detectors)))
    return 1 << (wanted.bit_length() - 1)


class StimSampler:
    """Samples stim circuits: detection events, or raw measurements and the events they make.

    Shots of several models take turns: shot ``s`` is one of model ``s % len(models)``. Each model
    then has a seed of its own per batch; one model alone has the seed of the batch. Both ways of
    sampling draw the same errors from one seed (stim 1.16; ``tests/integration``), so the payload
    of the link does not change the shots.
    Stim holds the GIL while it samples: beside anything timed it belongs into a process.

    Args:
        models: one circuit, or several whose shots take turns.
        seed: of the run.
        measurements: sample raw measurements; events and observables are formed from them.
    """

    def __init__(
        self,
        models: CodeCircuit | tuple[CodeCircuit, ...],
        seed: int,
        *,
        measurements: bool = False,
    ) -> None:
        import stim

        models = models if isinstance(models, tuple) else (models,)
        self._circuits = [stim.Circuit(code.circuit_text) for code in models]
        self._formers = [SyndromeFormer(code) for code in models] if measurements else []
        self._seed = seed
        self._batch_shots = max(len(models), batch_shots(models[0].n_detectors))

    def batches(self, n_shots: int) -> Iterator[ShotBatch]:
        """Yield the first ``n_shots`` shots of the run, batch by batch."""
        for batch in range(-(-n_shots // self._batch_shots)):
            first = batch * self._batch_shots
            keep = min(self._batch_shots, n_shots - first)
            detectors, observables, *record = (rows[:keep] for rows in self._batch(batch))
            measured = record[0] if record else None
            yield ShotBatch(first, batch, 0, detectors, observables, measurements_b8=measured)

    def _batch(self, batch: int) -> tuple[U8, ...]:
        """All shots of a batch; the size of a batch is a multiple of the number of models."""
        n = len(self._circuits)
        parts = []
        for k in range(n):
            path = ("device", "sampler", batch) if n == 1 else ("device", "sampler", batch, k)
            word, shots = seeds.word(self._seed, *path), self._batch_shots // n
            parts.append(self._sample(k, word, shots))
        return tuple(_in_turn(arrays) for arrays in zip(*parts, strict=True))

    def _sample(self, model: int, seed: int, shots: int) -> tuple[U8, ...]:
        """Events, observables and, where asked for, the record of ``shots`` of one model."""
        circuit = self._circuits[model]
        if not self._formers:
            sampler = circuit.compile_detector_sampler(seed=seed)
            events, flips = sampler.sample(shots, separate_observables=True, bit_packed=True)
            return events, flips
        former = self._formers[model]
        record = circuit.compile_sampler(seed=seed, reference_sample=former.reference).sample(
            shots, bit_packed=True
        )
        return (*former.form(record), record)


def _in_turn(parts: tuple[U8, ...]) -> U8:
    """k arrays uint8 [n, bytes] -> uint8 [k n, bytes]; row i is row i // k of array i % k."""
    if len(parts) == 1:
        return parts[0]
    return np.stack(parts, axis=1).reshape(-1, parts[0].shape[1])


class SyndromeFormer:
    """Forms detection events from raw measurements, as the rack's digital path does.

    A detector is the parity of a set of measurements (the sparse matrix D of the circuit),
    compared with its noiseless parity. Equal, bit for bit, to ``stim``'s own converter.
    """

    def __init__(self, code: CodeCircuit) -> None:
        import stim

        circuit = stim.Circuit(code.circuit_text)
        members, observable_members = _parities(circuit.flattened())
        self._terms = _index_matrix(members, circuit.num_measurements)
        self._observable_terms = _index_matrix(observable_members, circuit.num_measurements)
        self.reference: NDArray[np.bool_] = circuit.reference_sample()
        reference = self.reference[None, :]
        self._reference = _parity(reference, self._terms)
        self._observable_reference = _parity(reference, self._observable_terms)
        self.n_measurements = int(circuit.num_measurements)

    def form(self, measurements_b8: U8) -> tuple[U8, U8]:
        """Detection events and observables of uint8 [n, ceil(M/8)] packed measurements.

        Returns:
            uint8 [n, ceil(D/8)] and uint8 [n, ceil(O/8)], LSB first.
        """
        bits = np.unpackbits(
            measurements_b8, axis=1, count=self.n_measurements, bitorder="little"
        ).view(np.bool_)
        events = _parity(bits, self._terms) ^ self._reference
        flips = _parity(bits, self._observable_terms) ^ self._observable_reference
        return (
            np.packbits(events, axis=1, bitorder="little"),
            np.packbits(flips, axis=1, bitorder="little"),
        )


def _parities(flat: object) -> tuple[list[list[int]], list[list[int]]]:
    """Measurement indices of every detector and every observable of a flattened circuit."""
    detectors: list[list[int]] = []
    observables: dict[int, list[int]] = {}
    seen = 0
    for instruction in flat:  # type: ignore[attr-defined]
        if instruction.name == "DETECTOR":
            detectors.append([seen + t.value for t in instruction.targets_copy()])
        elif instruction.name == "OBSERVABLE_INCLUDE":
            terms = observables.setdefault(int(instruction.gate_args_copy()[0]), [])
            terms += [seen + t.value for t in instruction.targets_copy()]
        else:
            seen += instruction.num_measurements
    count = 1 + max(observables, default=-1)
    return detectors, [observables.get(i, []) for i in range(count)]


def _index_matrix(members: list[list[int]], dummy: int) -> NDArray[np.int64]:
    """int64 [len(members), k]: rows padded with ``dummy``, the index of a bit that is 0."""
    width = max((len(m) for m in members), default=0)
    matrix = np.full((len(members), width), dummy, dtype=np.int64)
    for row, terms in enumerate(members):
        matrix[row, : len(terms)] = terms
    return matrix


def _parity(bits: NDArray[np.bool_], terms: NDArray[np.int64]) -> NDArray[np.bool_]:
    """bool [n, rows]: XOR of the listed columns of ``bits`` [n, M]."""
    padded = np.concatenate([bits, np.zeros((bits.shape[0], 1), dtype=np.bool_)], axis=1)
    result = np.zeros((bits.shape[0], terms.shape[0]), dtype=np.bool_)
    for k in range(terms.shape[1]):
        result ^= padded[:, terms[:, k]]
    return result


class BlockCutter:
    """Cuts packed shots into blocks as they travel, and joins them again.

    Blocks are rows of one width, ``ceil(max block bits / 8)`` bytes, LSB first in slot order.
    """

    def __init__(self, code: CodeCircuit) -> None:
        order = code.wire_order
        self._identity = bool((order[1:] > order[:-1]).all())
        self._order = np.empty(0, np.int64) if self._identity else order
        self.n_detectors = code.n_detectors
        self.block_bits = code.block_bits
        self.width_bytes = -(-int(code.block_bits.max()) // 8)

    def cut(self, detectors_b8: U8) -> U8:
        """uint8 [n, ceil(D/8)] -> uint8 [n, n_blocks, width_bytes]."""
        if not self._identity:
            bits = np.unpackbits(detectors_b8, axis=1, count=self.n_detectors, bitorder="little")
            detectors_b8 = np.packbits(bits[:, self._order], axis=1, bitorder="little")
        return split_blocks(detectors_b8, self.block_bits)

    def event_counts(self, detectors_b8: U8) -> NDArray[np.int64]:
        """int64 [n, n_blocks]: detection events per block of uint8 [n, ceil(D/8)] shots."""
        counts: NDArray[np.int64] = np.bitwise_count(self.cut(detectors_b8)).sum(
            axis=2, dtype=np.int64
        )
        return counts

    def join(self, blocks: U8) -> U8:
        """uint8 [n, n_blocks, width_bytes] -> uint8 [n, ceil(D/8)]."""
        padded = np.unpackbits(blocks, axis=2, bitorder="little")
        present = np.arange(padded.shape[2]) < self.block_bits[:, None]
        bits = padded[:, present]
        if not self._identity:
            ordered, bits = bits, np.empty_like(bits)
            bits[:, self._order] = ordered
        return np.packbits(bits, axis=1, bitorder="little")


def event_counts(detectors_b8: U8) -> NDArray[np.int64]:
    """int64 [n]: detection events per shot of uint8 [n, bytes] packed shots."""
    counts: NDArray[np.int64] = np.bitwise_count(detectors_b8).sum(axis=1, dtype=np.int64)
    return counts
