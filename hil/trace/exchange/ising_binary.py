"""The binary set of NVIDIA/Ising-Decoding and CUDA-Q QEC: a folder of little-endian files.

    detectors.bin, observables.bin, pymatching_predictions.bin   u32 rows, u32 columns, int32 body
    predecoder_outputs.bin                                       u32 rows, u32 1 + N, uint8 body
    H_csr.bin, O_csr.bin        u32 rows, columns, nnz; int32 indptr[rows + 1], int32 indices[nnz]
    priors.bin                                                   u32 n, float64[n]
    metadata.txt                                                 key=value lines

H, O and priors are those of ``gpu_decoder.edges.edge_matrices``. No length in a header is believed
before the size of the file has confirmed it; bodies are mapped, not loaded. Formats restated from
commit 33acb15.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from gpu_decoder.edges import EdgeMatrices
from gpu_decoder.protocol import U8Array
from hil.errors import TraceError, UsageError
from hil.trace.exchange.place import new_files
from hil.trace.exchange.shots import Shots, batch_shots, pack, unpack

_I32: Final = np.dtype("<i4")
_U8: Final = np.dtype("u1")
_BODIES: Final[Mapping[str, np.dtype[Any]]] = {
    "detectors": _I32,
    "observables": _I32,
    "pymatching_predictions": _I32,
    "predecoder_outputs": _U8,
}
_META: Final = "metadata.txt"


@dataclass(frozen=True)
class BinarySet:
    """An open, checked set.

    Attributes:
        folder: where it lies.
        n_shots: rows.
        n_detectors: D.
        n_observables: O.
        edges: H, O and priors; ``None`` where the set has none.
        metadata: what ``metadata.txt`` says.
    """

    folder: Path
    n_shots: int
    n_detectors: int
    n_observables: int
    edges: EdgeMatrices | None
    metadata: dict[str, str]
    _bodies: dict[str, NDArray[Any]]

    def batches(self) -> Iterator[Shots]:
        """The shots, in batches.

        Raises:
            TraceError: a value is not 0 or 1; names file and row.
        """
        size = batch_shots(sum(body.shape[1] for body in self._bodies.values()))
        for first in range(0, self.n_shots, size):
            bits = {name: self._bits(name, first, size) for name in self._bodies}
            predictions = bits.get("pymatching_predictions")
            yield Shots(
                pack(bits["detectors"]),
                pack(bits["observables"]),
                None if predictions is None else pack(predictions),
                bits.get("predecoder_outputs"),
            )

    def _bits(self, name: str, first: int, size: int) -> U8Array:
        part = self._bodies[name][first : first + size]
        wrong = (part != 0) & (part != 1)
        if wrong.any():
            row, column = np.argwhere(wrong)[0]
            raise TraceError(
                "not a bit",
                where=f"{self.folder / name}.bin, row {first + row}, column {column}",
                got=str(part[row, column]),
                allowed="0, 1",
            )
        return np.ascontiguousarray(part, dtype=np.uint8)


def open_binary(folder: Path) -> BinarySet:
    """Open a set: ``detectors.bin``, ``observables.bin`` and ``metadata.txt``, the rest if present.

    Raises:
        TraceError: a file is missing, truncated, too long or damaged, or two files disagree.
    """
    metadata = _read_metadata(folder / _META)
    bodies = {
        name: _map_matrix(folder / f"{name}.bin", dtype)
        for name, dtype in _BODIES.items()
        if name in ("detectors", "observables") or (folder / f"{name}.bin").exists()
    }
    rows, n_detectors = bodies["detectors"].shape
    n_observables = bodies["observables"].shape[1]
    shapes = {
        "detectors": (rows, n_detectors),
        "observables": (rows, n_observables),
        "pymatching_predictions": (rows, n_observables),
        "predecoder_outputs": (rows, 1 + n_detectors),
    }
    for name, body in bodies.items():
        _agree(folder / f"{name}.bin", body.shape, shapes[name])
    edges = None
    if any((folder / name).exists() for name in ("H_csr.bin", "O_csr.bin", "priors.bin")):
        edges = EdgeMatrices(
            _read_csr(folder / "H_csr.bin"),
            _read_csr(folder / "O_csr.bin"),
            _read_priors(folder / "priors.bin"),
        )
        count = len(edges.priors)
        _agree(folder / "H_csr.bin", edges.checks.shape, (n_detectors, count))
        _agree(folder / "O_csr.bin", edges.observables.shape, (n_observables, count))
    counts = {"num_shots": rows, "num_detectors": n_detectors, "num_observables": n_observables}
    for key, value in counts.items():
        if metadata.get(key, str(value)) != str(value):
            raise TraceError(
                f"{_META} and the matrices disagree: {key}",
                where=str(folder / _META), got=metadata[key], allowed=str(value),
            )  # fmt: skip
    return BinarySet(folder, rows, n_detectors, n_observables, edges, metadata, bodies)


def write_binary(
    folder: Path,
    batches: Iterable[Shots],
    *,
    n_detectors: int,
    n_observables: int,
    edges: EdgeMatrices | None = None,
    metadata: Mapping[str, str] | None = None,
) -> int:
    """Write a set; the number of shots. The files appear once all of them are complete.

    Args:
        folder: made if only its last part is missing.
        batches: shots; either all carry predictions (and outputs of a pre-decoder), or none does.
        n_detectors: D.
        n_observables: O.
        edges: H, O and priors.
        metadata: further lines of ``metadata.txt``; the three counts are always there.

    Raises:
        UsageError: a file exists already, a batch does not fit, or there is none.
    """
    iterator = iter(batches)
    head = next(iterator, None)
    if head is None:
        raise UsageError("no shots to write", where=str(folder))
    columns = {"detectors": n_detectors, "observables": n_observables}
    if head.predictions_b8 is not None:
        columns["pymatching_predictions"] = n_observables
    if head.predecoded is not None:
        columns["predecoder_outputs"] = 1 + n_detectors
    names = [f"{name}.bin" for name in columns]
    names += ["H_csr.bin", "O_csr.bin", "priors.bin"] if edges is not None else []
    with new_files(folder, *names, _META) as scratch:
        n_shots = _write_bodies(scratch, head, iterator, columns)
        if edges is not None:
            _write_csr(scratch / "H_csr.bin", edges.checks)
            _write_csr(scratch / "O_csr.bin", edges.observables)
            count = _u32("edges", len(edges.priors))
            (scratch / "priors.bin").write_bytes(count + edges.priors.astype("<f8").tobytes())
        lines = {
            **(metadata or {}),
            "num_shots": str(n_shots),
            "num_detectors": str(n_detectors),
            "num_observables": str(n_observables),
        }
        for key, value in lines.items():
            if "=" in key or "\n" in key + value or key != key.strip() or not key:
                raise UsageError("not a key=value line", got=f"{key!r}: {value!r}")
        (scratch / _META).write_text("".join(f"{k}={v}\n" for k, v in lines.items()))
    return n_shots


def _write_bodies(
    folder: Path, head: Shots, rest: Iterator[Shots], columns: Mapping[str, int]
) -> int:
    n_shots = 0
    with ExitStack() as stack:
        files: dict[str, BinaryIO] = {
            name: stack.enter_context((folder / f"{name}.bin").open("wb")) for name in columns
        }
        for name, handle in files.items():
            handle.write(_u32("rows", 0) + _u32("columns", columns[name]))
        batch: Shots | None = head
        while batch is not None:
            for name, handle in files.items():
                bits = _bits_of(batch, name, columns[name])
                handle.write(bits.astype(_BODIES[name]).tobytes())
            n_shots += len(batch)
            batch = next(rest, None)
        for handle in files.values():
            handle.seek(0)
            handle.write(_u32("rows", n_shots))
    return n_shots


def _bits_of(shots: Shots, name: str, columns: int) -> U8Array:
    part = {
        "detectors": shots.detectors_b8,
        "observables": shots.observables_b8,
        "pymatching_predictions": shots.predictions_b8,
        "predecoder_outputs": shots.predecoded,
    }[name]
    width = columns if name == "predecoder_outputs" else -(-columns // 8)
    if part is None or part.shape != (len(shots), width):
        raise UsageError(
            f"a batch does not fit: {name}",
            got="nothing" if part is None else str(part.shape),
            allowed=str((len(shots), width)),
        )
    return part if name == "predecoder_outputs" else unpack(part, columns)


def _write_csr(path: Path, matrix: csr_array) -> None:
    head = b"".join(
        _u32(what, value)
        for what, value in zip(("rows", "columns", "nnz"), (*matrix.shape, matrix.nnz), strict=True)
    )
    body = matrix.indptr.astype(_I32).tobytes() + matrix.indices.astype(_I32).tobytes()
    path.write_bytes(head + body)


def _u32(what: str, value: int) -> bytes:
    if value >= 1 << 31:  # the int32 of the body is the narrower one
        raise UsageError(f"too many {what} for this format", got=str(value), allowed="below 2^31")
    return value.to_bytes(4, "little")


def _header(path: Path, words: int) -> tuple[list[int], int]:
    """The first u32 words of a file and its size in bytes."""
    try:
        size = path.stat().st_size
        with path.open("rb") as handle:
            raw = handle.read(4 * words)
    except OSError as error:
        raise TraceError("cannot be read", where=str(path), got=str(error)) from error
    if len(raw) != 4 * words:
        raise TraceError(
            "truncated header", where=str(path), got=f"{len(raw)} bytes", allowed=f"{4 * words}"
        )
    return [int(word) for word in np.frombuffer(raw, "<u4")], size


def _sized(path: Path, size: int, needed: int, header: str) -> None:
    if size != needed:
        raise TraceError(
            "truncated" if size < needed else "trailing bytes",
            where=str(path),
            got=f"{size} bytes",
            allowed=f"{needed} bytes, for {header}",
        )


def _agree(path: Path, got: tuple[int, ...], allowed: tuple[int, ...]) -> None:
    if got != allowed:
        raise TraceError(
            "disagrees with the other files of the set",
            where=str(path),
            got=f"{got[0]} x {got[1]}",
            allowed=f"{allowed[0]} x {allowed[1]}",
        )


def _map_matrix(path: Path, dtype: np.dtype[Any]) -> NDArray[Any]:
    (rows, columns), size = _header(path, 2)
    _sized(path, size, 8 + rows * columns * dtype.itemsize, f"{rows} x {columns}")
    if rows * columns == 0:
        return np.zeros((rows, columns), dtype=dtype)
    return np.memmap(path, dtype=dtype, mode="r", offset=8, shape=(rows, columns))


def _read_csr(path: Path) -> csr_array:
    (rows, columns, nnz), size = _header(path, 3)
    _sized(path, size, 12 + 4 * (rows + 1 + nnz), f"{rows} rows with {nnz} entries")
    body = np.fromfile(path, dtype=_I32, offset=12)
    indptr, indices = body[: rows + 1], body[rows + 1 :]
    if indptr[0] != 0 or indptr[-1] != nnz or (np.diff(indptr.astype(np.int64)) < 0).any():
        raise TraceError(
            "indptr does not rise from 0 to nnz", where=str(path), got=str(indptr), allowed=str(nnz)
        )
    if nnz and (indices.min() < 0 or indices.max() >= columns):
        raise TraceError(
            "an index beyond the columns",
            where=str(path),
            got=f"{indices.min()} to {indices.max()}",
            allowed=f"0 to {columns - 1}",
        )
    made = csr_array((np.ones(nnz, np.uint8), indices, indptr), shape=(rows, columns))
    made.sort_indices()
    if not made.has_canonical_format:
        raise TraceError("an entry is named twice", where=str(path))
    return made


def _read_priors(path: Path) -> NDArray[np.float64]:
    (count,), size = _header(path, 1)
    _sized(path, size, 4 + 8 * count, f"{count} values")
    priors = np.fromfile(path, dtype="<f8", offset=4).astype(np.float64)
    wrong = np.flatnonzero(~((priors >= 0.0) & (priors <= 1.0)))
    if wrong.size:
        raise TraceError(
            "not a probability",
            where=f"{path}, value {wrong[0]}",
            got=str(priors[wrong[0]]),
            allowed="0 to 1",
        )
    return priors


def _read_metadata(path: Path) -> dict[str, str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TraceError("cannot be read", where=str(path), got=str(error)) from error
    found: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        key, equals, value = line.partition("=")
        if not line.strip():
            continue
        if not equals or not key.strip() or key.strip() in found:
            raise TraceError(
                "not a key=value line, or a key named twice",
                where=f"{path}:{number}",
                got=repr(line[:60]),
            )
        found[key.strip()] = value.strip()
    return found
