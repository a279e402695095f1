"""What a trace knows before the first shot: root attributes, ``/meta``, epoch 0."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hil.errors import TraceError
from hil.trace.column import Block, ByteWidths
from hil.trace.schema import FORMAT, FORMAT_VERSION, NO_ROW, block, clip, code, schema_json

if TYPE_CHECKING:
    import h5py

Json: TypeAlias = Mapping[str, Any]
_ROWS_AT_ONCE: Final = 65_536


def canonical_json(value: object) -> str:
    """JSON with sorted keys and separators ``,`` and ``:``; the form that is hashed."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def sha256_bytes(data: bytes) -> str:
    """SHA-256, lower-case hex."""
    return hashlib.sha256(data).hexdigest()


def sha256_text(text: str) -> str:
    """SHA-256 of the UTF-8 bytes, lower-case hex."""
    return sha256_bytes(text.encode())


def _utc_now() -> str:
    return datetime.now(tz=UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelMeta:
    """One further circuit of a device whose shots take turns, with its own error model.

    Attributes:
        circuit_stim: text of the circuit.
        dem: text of its detector error model.
        detector_coords: float [D, k] (stored as float64), stim coordinates, NaN where absent.
        detector_round: uint32 [D], block of the shot that carries the detector.
        detector_slot: uint16 [D], bit of the detector within its block.
        n_observables: O.
    """

    circuit_stim: str
    dem: str
    detector_coords: NDArray[np.floating[Any]]
    detector_round: NDArray[np.uint32]
    detector_slot: NDArray[np.uint16]
    n_observables: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceMeta:
    """Static content of a trace, written before the first row.

    Attributes:
        level: bind level ``mil``, ``sil``, ``rtl``, ``hil`` or ``import``.
        scenario_yaml: the exact scenario file.
        resolved: the scenario after merging profile, bind and overrides.
        decoder: resolved decoder section with its window (enters ``problem_id``).
        noise: resolved noise section (enters ``problem_id`` and epoch 0).
        params: parameters that the control side believes in (epoch 0).
        circuit_stim: text of the circuit.
        dem: text of the detector error model of epoch 0.
        n_detectors: D of the whole shot.
        n_observables: O.
        detector_coords: float [D, k] (stored as float64), stim coordinates, NaN where absent.
        detector_round: uint32 [D], block of the shot that carries the detector (0..n_rounds).
        detector_slot: uint16 [D], bit of the detector within its block.
        round_period_ps: time between two rounds of a shot.
        shot_period_ps: time between two shots.
        seeds: run seed and named streams.
        requested: backends asked for.
        executed: backends that run.
        fingerprint: hashes and versions of what decodes.
        argv: command line.
        host: machine, operating system, clock sources.
        software: package versions.
        git: sha, dirty, patch.
        t0_ps: rack time of the start of shot 0.
        pace: slow-down of the wall clock against the scenario clock; 0 where time is simulated.
        arrivals: ``open_loop`` or ``closed_loop``.
        layout: readout board and channel of every detector, empty where nobody said.
        more_models: further circuits; shot ``s`` is one of model ``s % (1 + len(more_models))``.
        links: one mapping per link with its ``name`` and resolved properties.
        boards: one mapping per board with its ``name`` and resolved properties.
        matcher_id: identity of the matcher of epoch 0.
        predecoder_sha256: of the file of the pre-decoder of epoch 0, empty without one.
        noise_fingerprint: SHA-256 by which the noise model is known elsewhere; empty: that of the
            noise section.
        run_id: UUID of the run.
        created_utc: ISO 8601 with Z.
    """

    level: str
    scenario_yaml: str
    resolved: Json
    decoder: Json
    noise: Json
    params: Json
    circuit_stim: str
    dem: str
    n_detectors: int
    n_observables: int
    detector_coords: NDArray[np.floating[Any]]
    detector_round: NDArray[np.uint32]
    detector_slot: NDArray[np.uint16]
    round_period_ps: int
    shot_period_ps: int
    seeds: Json
    requested: Json
    executed: Json
    fingerprint: Json
    argv: Sequence[str]
    host: Json
    software: Json
    git: Json
    t0_ps: int = 0
    pace: int = 0
    arrivals: str = "open_loop"
    layout: Json = field(default_factory=dict)
    more_models: Sequence[ModelMeta] = ()
    links: Sequence[Json] = ()
    boards: Sequence[Json] = ()
    matcher_id: str = ""
    predecoder_sha256: str = ""
    noise_fingerprint: str = ""
    run_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    created_utc: str = field(default_factory=_utc_now)

    def __post_init__(self) -> None:
        for name in ("detector_coords", "detector_round", "detector_slot"):
            rows = len(getattr(self, name))
            if rows != self.n_detectors:
                raise TraceError(
                    "detector table has another length than the circuit has detectors",
                    where=f"TraceMeta.{name}",
                    got=str(rows),
                    allowed=str(self.n_detectors),
                )

    @property
    def widths(self) -> ByteWidths:
        """Bytes per row of the packed columns (at least 1)."""
        per_block = np.bincount(self.detector_round) if self.n_detectors else np.zeros(1, int)
        return ByteWidths(
            shot_detectors=max(1, -(-self.n_detectors // 8)),
            round_detectors=max(1, -(-int(per_block.max()) // 8)),
            observables=max(1, -(-self.n_observables // 8)),
        )

    @property
    def problem_id(self) -> str:
        """SHA-256 of what is decoded and how: circuits, models of epoch 0, decoder, noise."""
        problem: dict[str, object] = {
            "circuit_sha256": sha256_text(self.circuit_stim),
            "dem_sha256": sha256_text(self.dem),
            "decoder": self.decoder,
            "window": self.decoder.get("window"),
            "noise_sha256": self.noise_sha256,
        }
        if self.more_models:
            problem["more_models"] = [
                [sha256_text(model.circuit_stim), sha256_text(model.dem)]
                for model in self.more_models
            ]
        return sha256_text(canonical_json(problem))

    @property
    def noise_sha256(self) -> str:
        """Fingerprint of the noise: its own, or the SHA-256 of the JSON of its section."""
        return self.noise_fingerprint or sha256_text(canonical_json(self.noise))

    def first_epoch(self) -> Block:
        """Row of epoch 0 for /epochs."""
        return block(
            "epochs",
            1,
            self.widths,
            epoch=0,
            parent=NO_ROW,
            t_activated_ps=self.t0_ps,
            first_shot=0,
            reason=code("epochs", "reason", "initial"),
            params_sha256=sha256_text(canonical_json(self.params)),
            dem_sha256=sha256_text(self.dem),
            matcher_id=clip("epochs", "matcher_id", self.matcher_id),
            predecoder_sha256=self.predecoder_sha256,
            noise_sha256=self.noise_sha256,
            n_detectors=self.n_detectors,
            n_observables=self.n_observables,
        )


def write_meta(
    file: h5py.File, meta: TraceMeta, *, record_level: str, n_rounds: int, measured: bool
) -> None:
    """Write root attributes and ``/meta`` (before SWMR starts)."""
    file.attrs.update(
        {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "run_id": meta.run_id,
            "problem_id": meta.problem_id,
            "created_utc": meta.created_utc,
            "exit_status": "running",
            "Conventions": "CF-1.11 hil-trace-1",
            "default": "rounds" if record_level == "rounds" else "shots",
            "level": meta.level,
            "record_level": record_level,
            "arrivals": meta.arrivals,
            "pace": np.int64(meta.pace),
            "measured": np.uint8(measured),
            "n_rounds": np.int64(n_rounds),
            "t0_ps": np.int64(meta.t0_ps),
            "round_period_ps": np.int64(meta.round_period_ps),
            "shot_period_ps": np.int64(meta.shot_period_ps),
        }
    )
    group = file.create_group("meta")
    texts = {
        "scenario_yaml": meta.scenario_yaml,
        "resolved_json": canonical_json(meta.resolved),
        "schema_json": schema_json(),
        "argv": canonical_json(list(meta.argv)),
        "host_json": canonical_json(meta.host),
        "software_json": canonical_json(meta.software),
        "git_json": canonical_json(meta.git),
        "seeds_json": canonical_json(meta.seeds),
        "backend/requested_json": canonical_json(meta.requested),
        "backend/executed_json": canonical_json(meta.executed),
        "backend/fingerprint_json": canonical_json(meta.fingerprint),
    }
    for path, text in texts.items():
        group[path] = text
    _write_model(group.create_group("model"), meta)
    group["model/layout_json"] = canonical_json(meta.layout)
    for k, other in enumerate(meta.more_models, 1):
        model = group.create_group(f"model_{k}")
        _write_model(model, other)
        model["dem"] = other.dem
        model["dem_sha256"] = sha256_text(other.dem)
    for name, rows in (("links", meta.links), ("boards", meta.boards)):
        table = group.create_group(name)
        _write_texts(table, "name", [str(row["name"]) for row in rows])
        _write_texts(table, "properties_json", [canonical_json(row) for row in rows])
    write_epoch(group, 0, canonical_json(meta.params), meta.dem)


def _write_model(group: h5py.Group, model: TraceMeta | ModelMeta) -> None:
    group["circuit_stim"] = model.circuit_stim
    group["circuit_sha256"] = sha256_text(model.circuit_stim)
    n = len(model.detector_coords)
    group["n_detectors"] = np.uint32(n)
    group["n_observables"] = np.uint32(model.n_observables)
    coords = group.create_dataset("detector_coords", model.detector_coords.shape, "<f8")
    for first in range(0, n, _ROWS_AT_ONCE):
        coords[first : first + _ROWS_AT_ONCE] = model.detector_coords[first : first + _ROWS_AT_ONCE]
    group["detector_round"] = np.asarray(model.detector_round, "<u4")
    group["detector_slot"] = np.asarray(model.detector_slot, "<u2")


def write_epoch(meta_group: h5py.Group, epoch: int, params_json: str, dem: str) -> None:
    """Write ``/meta/epochs/<epoch>``."""
    group = meta_group.require_group("epochs").create_group(str(epoch))
    group["params_json"] = params_json
    group["params_sha256"] = sha256_text(params_json)
    group["dem"] = dem
    group["dem_sha256"] = sha256_text(dem)


def _write_texts(group: h5py.Group, name: str, texts: list[str]) -> None:
    import h5py

    group.create_dataset(name, data=np.array(texts, dtype=object), dtype=h5py.string_dtype())
