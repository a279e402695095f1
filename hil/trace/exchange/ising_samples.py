"""Samples of the Ising family as NVIDIA/Ising-Decoding exchanges them (schema version 2).

One set per basis: ``samples_X.dets`` (observables appended) and ``metadata_X.json``; read are also
``X/samples.dets`` with ``X/metadata.json``, and ``samples.dets`` with ``metadata.json``, in this
order. What the metadata say is compared with the circuit before the first shot: a difference of
structure is an error; one of noise too, unless the caller or ``PREDECODER_STIM_STRICT_NOISE=0``
turns it into a warning. Formats restated from commit 33acb15.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from gpu_decoder.ising.circuit import n_detectors
from gpu_decoder.ising.geometry import ALIASES, Basis, Geometry
from gpu_decoder.ising.noise import Ising25, IsingNoise, IsingScalar
from hil.errors import TraceError, UsageError
from hil.trace.exchange import stim_dets
from hil.trace.exchange.place import new_files
from hil.trace.exchange.shots import Shots

SCHEMA_VERSION: Final = 2
STRICT_NOISE: Final = "PREDECODER_STIM_STRICT_NOISE"
"""Environment variable of the reference; "0" makes a difference of noise a warning."""

_FIXED: Final[dict[str, Any]] = {
    "schema_version": SCHEMA_VERSION,
    "artifact": "stim_detector_samples",
    "format": "dets",
    "append_observables": True,
}
_LOG = logging.getLogger("hil.exchange")


@dataclass(frozen=True)
class Experiment:
    """What samples belong to: one memory experiment of the Ising family.

    Attributes:
        geometry: code and orientation.
        rounds: T, at least 2.
        basis: memory basis.
        noise: its noise, ``None`` where it is unknown.
    """

    geometry: Geometry
    rounds: int
    basis: Basis
    noise: IsingNoise | None = None

    @property
    def n_detectors(self) -> int:
        """N = 2 T half."""
        return n_detectors(self.geometry, self.rounds)

    def structure(self) -> dict[str, Any]:
        """What must be equal, under the names of the metadata."""
        return {
            "distance": self.geometry.distance,
            "n_rounds": self.rounds,
            "basis": self.basis,
            "code_rotation": self.geometry.orientation,
            "num_detectors": self.n_detectors,
            "num_observables": 1,
        }

    def noise_metadata(self) -> dict[str, Any]:
        """What the metadata say about the noise."""
        if self.noise is None:
            return {}
        if isinstance(self.noise, Ising25):
            return {
                "noise_model": "25-param",
                "noise_model_params": self.noise.document(),
                "noise_model_sha256": self.noise.fingerprint(),
            }
        return {"noise_model": "simple", "p_error": self.noise.p}


@dataclass(frozen=True)
class Samples:
    """A checked set of samples.

    Attributes:
        file: the ``.dets`` file.
        experiment: what the metadata were compared with.
        n_shots: shots that the metadata promise.
        noise_checked: whether the metadata name their noise, and it is that of the experiment.
    """

    file: Path
    experiment: Experiment
    n_shots: int
    noise_checked: bool

    def batches(self) -> Iterator[Shots]:
        """The shots, in batches.

        Raises:
            TraceError: a line is no shot of this circuit, or the file has another number of shots.
        """
        found = 0
        for shots in stim_dets.read(self.file, self.experiment.n_detectors, 1):
            found += len(shots)
            if found > self.n_shots:
                break
            yield shots
        if found != self.n_shots:
            raise TraceError(
                "another number of shots than the metadata promise",
                where=str(self.file),
                got=f"{'more than ' * (found > self.n_shots)}{min(found, self.n_shots)}",
                allowed=str(self.n_shots),
            )


def open_samples(
    folder: Path, experiment: Experiment, *, strict_noise: bool | None = None
) -> Samples:
    """Find the samples of an experiment in a folder and check their metadata.

    Args:
        folder: holds one of the three layouts.
        experiment: the circuit the samples must belong to.
        strict_noise: refuse other noise; ``None`` asks the environment.

    Raises:
        TraceError: nothing found, the metadata are damaged or of a newer schema, or they name
            another experiment.
    """
    file, described = _find(folder, experiment.basis)
    metadata = _metadata(described)
    version = metadata.get("schema_version", 1)
    if not _is_count(version) or not 1 <= version <= SCHEMA_VERSION:
        raise _refused(described, "schema_version", version, f"1 to {SCHEMA_VERSION}")
    for key, allowed in _FIXED.items():
        if (
            key != "schema_version"
            and metadata.get(key, allowed if version == 1 else None) != allowed
        ):
            raise _refused(described, key, metadata.get(key), repr(allowed))
    for key, allowed in experiment.structure().items():
        got = metadata.get(key)
        same = ALIASES.get(str(got), got) if key == "code_rotation" else got
        if type(same) is not type(allowed) or same != allowed:
            raise _refused(described, key, got, repr(allowed))
    n_shots: Any = metadata.get("num_shots")
    if not _is_count(n_shots):
        raise _refused(described, "num_shots", n_shots, "a whole number >= 0")
    if strict_noise is None:
        strict_noise = os.environ.get(STRICT_NOISE, "1") != "0"
    checked = _compare_noise(described, metadata, experiment, strict=strict_noise)
    return Samples(file, experiment, n_shots, checked)


def write_samples(folder: Path, experiment: Experiment, batches: Iterable[Shots]) -> int:
    """Write ``samples_B.dets`` and ``metadata_B.json`` of basis B; the number of shots.

    The files appear once both are complete.

    Raises:
        UsageError: a file exists already, or the rows of a batch are not of this circuit.
    """
    basis, n_shots = experiment.basis, 0
    row_bytes = -(-experiment.n_detectors // 8)
    names = (f"samples_{basis}.dets", f"metadata_{basis}.json")
    with new_files(folder, *names) as scratch:
        with (scratch / names[0]).open("wb") as handle:
            for shots in batches:
                shape = (shots.detectors_b8.shape[1], shots.observables_b8.shape[1])
                if shape != (row_bytes, 1):
                    raise UsageError(
                        "shots of another circuit", got=str(shape), allowed=str((row_bytes, 1))
                    )
                handle.write(stim_dets.encode(shots, experiment.n_detectors, 1))
                n_shots += len(shots)
        document = {
            **_FIXED, **experiment.structure(), "num_shots": n_shots, **experiment.noise_metadata()
        }  # fmt: skip
        (scratch / names[1]).write_text(json.dumps(document, indent=2) + "\n")
    return n_shots


def _find(folder: Path, basis: str) -> tuple[Path, Path]:
    """Samples and metadata of the first layout that has one of the two."""
    layouts = (
        (folder / f"samples_{basis}.dets", folder / f"metadata_{basis}.json"),
        (folder / basis / "samples.dets", folder / basis / "metadata.json"),
        (folder / "samples.dets", folder / "metadata.json"),
    )
    for pair in layouts:
        if any(path.exists() for path in pair):
            for path in pair:
                if not path.is_file():
                    raise TraceError("half of a set of samples: not found", where=str(path))
            return pair
    raise TraceError(
        f"no samples of basis {basis}",
        where=str(folder),
        allowed=", ".join(str(samples.relative_to(folder)) for samples, _ in layouts),
    )


def _metadata(path: Path) -> Mapping[str, Any]:
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise TraceError("cannot be read as JSON", where=str(path), got=str(error)) from error
    if not isinstance(document, dict):
        raise TraceError(
            "no metadata", where=str(path), got=type(document).__name__, allowed="a JSON object"
        )
    return document


def _compare_noise(
    path: Path, metadata: Mapping[str, Any], experiment: Experiment, *, strict: bool
) -> bool:
    """Whether the metadata name their noise and it is the experiment's."""
    if experiment.noise is None:
        return False
    try:
        expected = experiment.noise_metadata()["noise_model"]
        model = metadata.get("noise_model")
        if model is not None and model != expected:
            raise _refused(path, "noise_model", model, repr(expected))
        said, key = _fingerprint(path, metadata, expected)
        if said is not None and said != experiment.noise.fingerprint():
            raise _refused(path, key, metadata[key], f"noise {experiment.noise.fingerprint()}")
    except TraceError as error:
        if strict:
            raise
        _LOG.warning("%s (ignored: noise is not strict)", error.message)
        return False
    return said is not None


def _fingerprint(path: Path, metadata: Mapping[str, Any], model: str) -> tuple[str | None, str]:
    """Fingerprint of the noise that the metadata name, and the key that names it.

    A lone ``p_error`` is read as uniform noise of the model.
    """
    sha256, parameters = metadata.get("noise_model_sha256"), metadata.get("noise_model_params")
    key = "p_error" if parameters is None else "noise_model_params"
    value = metadata.get(key)
    own = None
    try:
        if parameters is not None:
            own = Ising25.from_parameters(parameters).fingerprint()
        elif value is not None:
            p = float(value)
            own = (Ising25.from_p(p) if model == "25-param" else IsingScalar(p)).fingerprint()
    except (AttributeError, TypeError, ValueError) as error:
        raise _refused(path, key, value, str(error)) from error
    if sha256 is None:
        return own, key
    if parameters is not None and sha256 != own:
        raise _refused(path, "noise_model_sha256", sha256, f"{own}, that of the parameters")
    return sha256, "noise_model_sha256"


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _refused(path: Path, key: str, got: object, allowed: str) -> TraceError:
    return TraceError(
        f"metadata do not fit the circuit: {key}",
        where=str(path),
        got=repr(got)[:200],
        allowed=allowed,
    )
