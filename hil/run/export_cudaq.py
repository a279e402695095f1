"""``hil export cudaq-config``: a scenario as NVIDIA's decoding server and playback tool take it.

Four files: the decoder's YAML (H, O, D, priors), the syndromes text (raw measurements and the
corrections that the server's matcher has to give), and the frames of the same shots as the player
of a sensor bridge holds them, with a description. Formats: ``docs/exchange.md``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from gpu_decoder.edges import EdgeMatrices, edge_matrices
from hil.device.circuits import CodeCircuit
from hil.device.measurements import MeasurementLayout, measurement_layout
from hil.device.sampler import U8, StimSampler
from hil.errors import ScenarioError, UsageError
from hil.run.parts import build_circuits
from hil.scenario.load import load_scenario
from hil.trace.exchange.cudaq_yaml import Matcher, write_config
from hil.trace.exchange.place import new_files
from hil.trace.exchange.syndromes_text import write_syndromes
from hil.wire.hsb_player import BEAT_BYTES, RAM_BEATS
from hil.wire.rpc_batch import build_enqueue_batch, build_get_batch, split_blocks

CONFIG: Final = "config_pymatching.yml"
SYNDROMES: Final = "syndromes_pymatching.txt"
FRAMES: Final = "playback.bin"
DESCRIPTION: Final = "playback.json"


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        files: names in the folder.
        shots: shots.
        n_detectors, n_edges, n_measurements: sizes of the matrices.
        failed: corrections that differ from the truth.
        frame_bytes, frames_per_shot: of the playback data.
    """

    files: tuple[str, ...]
    shots: int
    n_detectors: int
    n_edges: int
    n_measurements: int
    failed: int
    frame_bytes: int
    frames_per_shot: int


def export_cudaq(
    path: Path, out: Path, *, bind: str | None = None, overrides: Sequence[str] = ()
) -> Exported:
    """Write the files of one scenario, all or none.

    Raises:
        ScenarioError: the scenario is not valid, or the server cannot express it: several
            circuits, several observables, detectors that are inverted without noise,
            measurements behind the last detector, an error that no detector sees.
        UsageError: a file exists already.
    """
    loaded = load_scenario(path, bind=bind, overrides=overrides)
    scenario = loaded.scenario
    models = build_circuits(scenario)
    code = models[0]
    layout = measurement_layout(code)
    edges = edge_matrices(code.dem_text)
    _check(len(models), code, layout, edges)
    export = _Export(code, layout, edges, scenario.run.seed, scenario.run.shots)
    names = (CONFIG, SYNDROMES, FRAMES, DESCRIPTION)
    with new_files(out, *names) as folder:
        write_config(folder / CONFIG, Matcher(edges, layout.rows))
        with (folder / FRAMES).open("wb") as frames:
            shots = write_syndromes(
                folder / SYNDROMES, layout.block_bits.tolist(), export.batches(frames)
            )
        description = export.description(shots) | {"scenario": scenario.id}
        (folder / DESCRIPTION).write_text(json.dumps(description, indent=1) + "\n")
    return Exported(
        names, shots, code.n_detectors, edges.checks.shape[1], layout.n_measurements,
        export.failed, export.frame_bytes, code.n_blocks + 1,
    )  # fmt: skip


def server_matching(edges: EdgeMatrices) -> Any:  # noqa: ANN401 - pymatching.Matching is untyped
    """What the server builds of these matrices: PyMatching with weights log((1 - p) / p)."""
    import pymatching

    return pymatching.Matching.from_check_matrix(
        edges.checks,
        weights=np.log((1 - edges.priors) / edges.priors),
        faults_matrix=edges.observables,
    )


def read_playback(folder: Path, first_shot: int = 0) -> U8:
    """Frames uint8 [n, L] of as many shots from ``first_shot`` on as one load of a player holds.

    Raises:
        UsageError: the folder holds no playback data, or no such shot.
    """
    try:
        told = json.loads((folder / DESCRIPTION).read_text())
        shape = tuple(int(told[k]) for k in ("shots", "frames_per_shot", "frame_bytes"))
        per_load = int(told["shots_per_load"])
        frames = np.memmap(folder / FRAMES, np.uint8, "r", shape=shape)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            "no playback data", where=str(folder), got=str(error),
            fix="make them with `hil export cudaq-config`",
        ) from error  # fmt: skip
    if not per_load or first_shot >= shape[0]:
        raise UsageError(
            "no such shot to load", got=f"shot {first_shot}, {per_load} shots a load",
            allowed=f"0..{shape[0] - 1}; a shot must fit the player",
        )  # fmt: skip
    chosen = np.array(frames[first_shot : first_shot + per_load])
    return chosen.reshape(-1, shape[2])


class _Export:
    """Batches of shots in the two forms in which they are written."""

    def __init__(
        self,
        code: CodeCircuit,
        layout: MeasurementLayout,
        edges: EdgeMatrices,
        seed: int,
        shots: int,
    ) -> None:
        self._code, self._layout, self._seed, self._shots = code, layout, seed, shots
        self._matching = server_matching(edges)
        self.failed = 0
        self.frame_bytes = 0

    def batches(self, frames: Any) -> Iterator[tuple[U8, U8]]:  # noqa: ANN401 - a binary file
        """Measurements and corrections; the frames of each batch go to ``frames`` on the way."""
        sampler = StimSampler(self._code, self._seed, measurements=True)
        for batch in sampler.batches(self._shots):
            measured = batch.measurements_b8
            if measured is None:  # the sampler was asked for them
                raise ScenarioError("no measurements", where="system.qpu.circuit")
            bits = np.unpackbits(
                measured, axis=1, count=self._layout.n_measurements, bitorder="little"
            )
            events = np.unpackbits(
                batch.detectors_b8, axis=1, count=self._code.n_detectors, bitorder="little"
            )
            fixes = self._matching.decode_batch(events)[:, 0].astype(np.uint8)
            self.failed += int((fixes != batch.observables_b8[:, 0] & 1).sum())
            frames.write(self._frames(measured, batch.first_shot).tobytes())
            yield bits, fixes

    def _frames(self, measured_b8: U8, first_shot: int) -> U8:
        """uint8 [n, R + 1, L]: enqueue_syndromes of each round, get_corrections; no envelope."""
        n, r = len(measured_b8), self._code.n_blocks
        counters = np.arange(n * (r + 1), dtype=np.uint64).reshape(n, r + 1)
        counters += np.uint64(first_shot * (r + 1))
        stamps = np.zeros((n, r), dtype=np.uint64)  # the player writes them
        sizes = self._layout.block_bits
        enqueue = build_enqueue_batch(
            split_blocks(measured_b8, sizes), sizes,
            counters=counters[:, :r], ptp_timestamps=stamps, envelope="nvidia",
        )  # fmt: skip
        get = build_get_batch(counters[:, r], stamps[:, 0], return_size=1, envelope="nvidia")
        self.frame_bytes = max(enqueue.shape[2], get.shape[1])
        frames = np.zeros((n, r + 1, self.frame_bytes), dtype=np.uint8)
        frames[:, :r, : enqueue.shape[2]] = enqueue
        frames[:, r, : get.shape[1]] = get
        return frames

    def description(self, shots: int) -> dict[str, Any]:
        """What ``playback.bin`` holds."""
        per_shot = self._code.n_blocks + 1
        beats = per_shot * self.frame_bytes // BEAT_BYTES
        return {
            "format": "hil.playback/1",
            "shots": shots,
            "frames_per_shot": per_shot,
            "frame_bytes": self.frame_bytes,
            "round_bits": self._layout.block_bits.tolist(),
            "bit_order": "LSB first",
            "shots_per_load": RAM_BEATS // beats,
        }


def _check(
    n_models: int, code: CodeCircuit, layout: MeasurementLayout, edges: EdgeMatrices
) -> None:
    last = 1 + max((max(row) for row in layout.rows if row), default=-1)
    unused = layout.n_measurements - last
    blind = int((np.diff(edges.checks.tocsc().indptr) == 0).sum())
    inverted = len(layout.inverted)
    found = (
        (n_models > 1, "bases that alternate", "basis: X or basis: Z"),
        (code.n_observables != 1, f"{code.n_observables} observables", "1: one bit per shot"),
        (inverted > 0, f"{inverted} detectors that are 1 without noise", "none: it forms parities"),
        (unused > 0, f"{unused} measurements behind the last detector's", "none"),
        (blind > 0, f"{blind} errors that no detector sees", "none"),
    )
    for wrong, got, allowed in found:
        if wrong:
            raise ScenarioError(
                "the decoding server cannot express this circuit",
                where="system.qpu.circuit",
                got=got,
                allowed=allowed,
            )
