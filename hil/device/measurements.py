"""Raw measurements as they travel: which of them lie in which block, and D, which makes detectors.

A rack that sends measurements sends, per round, the results of that round in the order of stim's
record; the last block carries the data readout. The decoder forms the detection events itself: a
detector is the parity of the measurements in its row of the sparse matrix D, inverted where it is 1
without noise.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpu_decoder.gpu.slots import measurement_rows
from hil.device.circuits import CodeCircuit
from hil.device.families import Models
from hil.errors import ScenarioError


@dataclass(frozen=True)
class MeasurementLayout:
    """Measurements of one model on the wire.

    Attributes:
        block_bits: int64 [n_blocks], measurements of each block; blocks follow each other in the
            order of the record.
        rows: D, per detector the measurements (counted from 0) whose parity it is.
        inverted: detectors whose parity is 1 without noise.
    """

    block_bits: NDArray[np.int64]
    rows: tuple[tuple[int, ...], ...]
    inverted: tuple[int, ...]

    @property
    def n_measurements(self) -> int:
        """M."""
        return int(self.block_bits.sum())


def measurement_layout(code: CodeCircuit) -> MeasurementLayout:
    """Blocks and D of a model.

    A measurement belongs to the block of the first detector that the circuit declares behind it;
    what follows the last detector, to the last block.

    Raises:
        ScenarioError: the circuit does not declare its detectors round by round: a block has no
            measurement, or a detector needs one of a later block.
    """
    import stim

    circuit = stim.Circuit(code.circuit_text)
    rows = tuple(measurement_rows(circuit))
    block = _blocks(circuit, code)
    late = [d for d, row in enumerate(rows) if row and block[max(row)] > code.detector_block[d]]
    sizes = np.bincount(block, minlength=code.n_blocks).astype(np.int64)
    if late or not sizes.all() or bool((np.diff(block) < 0).any()):
        raise ScenarioError(
            "the measurements of this circuit cannot be told apart by round",
            where="system.links.up.payload",
            got=f"detector D{late[0]} needs a measurement of a later round"
            if late
            else f"measurements per block: {sizes.tolist()[:12]}",
            allowed="each round's DETECTORs right behind its measurements, rounds in order",
            fix="write payload: detectors, or move the DETECTORs",
        )
    reference = circuit.reference_sample()
    inverted = tuple(d for d, row in enumerate(rows) if bool(reference[list(row)].sum() & 1))
    return MeasurementLayout(sizes, rows, inverted)


def measurement_layouts(models: Models) -> tuple[MeasurementLayout, ...]:
    """One layout per model; shots of all of them travel in the same frames.

    Raises:
        ScenarioError: as :func:`measurement_layout`, or two models differ in their blocks.
    """
    layouts = tuple(measurement_layout(code) for code in models)
    for other in layouts[1:]:
        if not np.array_equal(layouts[0].block_bits, other.block_bits):
            raise ScenarioError(
                "shots that take turns differ in shape",
                where="system.qpu.circuit.basis",
                got=f"{layouts[0].block_bits.tolist()} and {other.block_bits.tolist()}",
                allowed="the same number of measurements in every round",
                fix="write basis: Z or basis: X, or payload: detectors",
            )
    return layouts


def _blocks(circuit: object, code: CodeCircuit) -> NDArray[np.int64]:
    """int64 [M]: block of each measurement."""
    edges: list[tuple[int, int]] = []  # measurements so far, block of the detectors behind them
    measured = detectors = 0
    for instruction in circuit.flattened():  # type: ignore[attr-defined]
        if instruction.name == "DETECTOR":
            if not edges or edges[-1][0] < measured:
                edges.append((measured, int(code.detector_block[detectors])))
            detectors += 1
        else:
            measured += instruction.num_measurements
    block = np.full(measured, code.n_rounds, dtype=np.int64)
    for (begin, _), (end, of) in zip([(0, 0), *edges], edges, strict=False):
        block[begin:end] = of
    return block
