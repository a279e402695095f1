"""Decoder configuration of NVIDIA's decoding server (CUDA-Q QEC 0.8.1): YAML, read strictly.

Matrices stand as one list of column indices, row by row, each row ended by -1. Keys are exactly
those of the server's schema (``docs/exchange.md``); unknown ones are refused, as the server does.
The server forms detection events itself: a row of D lists the measurements whose parity a detector
is.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from gpu_decoder.edges import EdgeMatrices
from hil.errors import TraceError, UsageError

Rows: TypeAlias = tuple[tuple[int, ...], ...]

_ENTRY: Final[Mapping[str, str]] = {
    "id": "int", "type": "str", "dispatch": "str", "cuda_device_id": "size", "block_size": "size",
    "syndrome_size": "size", "H_sparse": "sparse", "O_sparse": "sparse", "D_sparse": "sparse",
    "dem_chunks": "object", "stim_dem_path": "str", "decoder_custom_args": "object",
}  # fmt: skip
_TOP: Final[Mapping[str, str]] = {"decoders": "list", "transport": "object"}
_TRANSPORT: Final[Mapping[str, str]] = {
    "provider": "str", "args": "list", "device_graph": "object",
}  # fmt: skip
_MODELS: Final = (
    frozenset({"H_sparse", "block_size", "syndrome_size", "O_sparse", "D_sparse"}),
    frozenset({"dem_chunks"}),
    frozenset({"stim_dem_path", "D_sparse"}),
)
"""What describes the error model; an entry has one of these sets."""

_MERGE: Final = ("disallow", "independent", "smallest_weight", "keep_original", "replace")
_RELAY: Final = dict.fromkeys(("num_sets", "pre_iter", "stop_nconv"), "size") | {
    "stopping_criterion": "str"
}
ARGUMENTS: Final[Mapping[str, Mapping[str, str]]] = {
    "pymatching": {"error_rate_vec": "numbers", "merge_strategy": "str"},
    "multi_error_lut": {"lut_error_depth": "int"},
    "single_error_lut": {},
    "single_error_lut_example": {},
    "sliding_window": {
        "error_rate_vec": "numbers", "inner_decoder_name": "str", "inner_decoder_params": "object",
        **dict.fromkeys(("straddle_start_round", "straddle_end_round"), "bool"),
        **dict.fromkeys(
            ("window_size", "step_size", "num_syndromes_per_round", "num_boundary_syndromes"),
            "size",
        ),
    },
    "chromobius": dict.fromkeys(
        (
            "drop_mobius_errors_involving_remnant_errors", "ignore_decomposition_failures",
            "include_coords_in_mobius_dem", "return_weight", "write_mobius_match_to_stderr",
        ),
        "bool",
    ),
    "nv-fusion-decoder": {
        "error_rate_vec": "numbers", "num_threads": "size", "block_leaf_size": "size",
        "fusion_strategy": "str",
    },
    "nv-qldpc-decoder": {
        **dict.fromkeys(
            (
                "bp_batch_size", "bp_method", "bp_seed", "composition", "gamma_ensemble_size",
                "iter_per_check", "max_iterations", "n_threads", "osd_batch_size", "osd_method",
                "osd_order",
            ),
            "int",
        ),
        **dict.fromkeys(("clip_value", "error_rate", "gamma0", "scale_factor"), "number"),
        **dict.fromkeys(("error_rate_vec", "gamma_dist"), "numbers"),
        "explicit_gammas": "list",
        **dict.fromkeys(("repeatable", "use_osd", "use_sparsity"), "bool"),
        **dict.fromkeys(("osd_init_method", "proc_float"), "str"),
        "srelay_config": "relay",
    },
    "srelay_bp": _RELAY,
    "trt_decoder": {
        **dict.fromkeys(
            ("onnx_load_path", "engine_load_path", "engine_save_path", "precision",
             "global_decoder"),
            "str",
        ),
        **dict.fromkeys(("memory_workspace", "batch_size"), "size"),
        "use_cuda_graph": "bool", "global_decoder_params": "object",
    },
}  # fmt: skip
"""Arguments of each decoder type that the server registers; another type has none."""


@dataclass(frozen=True)
class Matcher:
    """A decoder entry of type ``pymatching``.

    Attributes:
        edges: H [D, E], O [O, E] and the priors of the edges.
        rows: D, per detector the measurements whose parity it is.
        decoder_id: number by which messages name the decoder.
    """

    edges: EdgeMatrices
    rows: Rows
    decoder_id: int = 0


def write_config(path: Path, matcher: Matcher) -> None:
    """Write a configuration with one matching decoder.

    Raises:
        UsageError: the server's matcher would refuse it: a column of H that is no edge, or a prior
            outside (0, 0.5].
    """
    checks, priors = matcher.edges.checks, matcher.edges.priors
    per_column = np.bincount(checks.indices, minlength=checks.shape[1])
    if not bool(((per_column == 1) | (per_column == 2)).all()):
        raise UsageError("a column of H is no edge", got=str(per_column.max()), allowed="1 or 2")
    if not bool(((priors > 0) & (priors <= 0.5)).all()):
        raise UsageError(
            "a prior that the matcher refuses", got=str(priors.max()), allowed="above 0, up to 0.5"
        )
    lines = [
        "decoders:",
        f"  - id: {matcher.decoder_id}",
        "    type: pymatching",
        f"    block_size: {checks.shape[1]}",
        f"    syndrome_size: {checks.shape[0]}",
        *_list("    H_sparse", _sparse(_rows_of(checks))),
        *_list("    O_sparse", _sparse(_rows_of(matcher.edges.observables))),
        *_list("    D_sparse", _sparse(matcher.rows)),
        "    decoder_custom_args:",
        "      merge_strategy: disallow",  # edges are told apart by their detectors: none is double
        *_list("      error_rate_vec", map(_float, priors.tolist())),
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def read_config(path: Path) -> list[dict[str, Any]]:
    """All entries of a configuration, checked against the server's schema.

    Raises:
        TraceError: unreadable, or not what the server would take; names the entry and the key.
    """
    data = _loaded(path)
    top = _checked(data, _TOP, str(path))
    if "transport" in top:
        _checked(top["transport"], _TRANSPORT, f"{path}: transport")
    entries = top.get("decoders")
    if not isinstance(entries, list) or not entries:
        raise TraceError("no decoder", where=f"{path}: decoders", allowed="a list of entries")
    return [_entry(entry, f"{path}: decoders[{i}]") for i, entry in enumerate(entries)]


def read_matcher(path: Path) -> Matcher:
    """The only entry of a configuration, of type ``pymatching``, as matrices.

    Raises:
        TraceError: as ``read_config``; or another type or number of entries.
    """
    entries = read_config(path)
    if len(entries) != 1 or entries[0]["type"] != "pymatching" or "H_sparse" not in entries[0]:
        kinds = ", ".join(str(entry["type"]) for entry in entries)
        raise TraceError(
            "not one matching decoder", where=str(path), got=kinds, allowed="one pymatching, H"
        )
    (entry,) = entries
    columns, n_detectors = entry["block_size"], entry["syndrome_size"]
    arguments = entry.get("decoder_custom_args", {})
    priors = np.asarray(arguments.get("error_rate_vec", ()), dtype=np.float64)
    if priors.shape != (columns,) or not bool(((priors > 0) & (priors <= 0.5)).all()):
        raise TraceError(
            "priors do not fit",
            where=f"{path}: error_rate_vec",
            got=f"{priors.size} values",
            allowed=f"{columns} in (0, 0.5]",
        )
    strategy = arguments.get("merge_strategy", "independent")
    if strategy not in _MERGE:
        raise TraceError("no such strategy", where=str(path), got=strategy, allowed=str(_MERGE))
    checks = _matrix(entry["H_sparse"], columns, f"{path}: H_sparse")
    rows = _cut(entry["D_sparse"], f"{path}: D_sparse")
    if checks.shape[0] != n_detectors or len(rows) != n_detectors:
        raise TraceError(
            "rows do not fit syndrome_size",
            where=str(path),
            got=f"H {checks.shape[0]}, D {len(rows)}",
            allowed=str(n_detectors),
        )
    flips = _matrix(entry["O_sparse"], columns, f"{path}: O_sparse")
    return Matcher(EdgeMatrices(checks, flips, priors), rows, entry["id"])


# -- reading -----------------------------------------------------------------------------------


def _loaded(path: Path) -> object:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        return YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, YAMLError, ValueError, RecursionError) as error:
        what = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise TraceError("not a readable YAML file", where=str(path), got=what) from error


def _entry(data: object, where: str) -> dict[str, Any]:
    entry = _checked(data, _ENTRY, where)
    for name in ("id", "type"):
        if name not in entry:
            raise TraceError("missing key", where=where, got="nothing", allowed=name)
    if entry.get("dispatch", "host") not in {"host", "device_graph"}:
        raise TraceError(
            "no such dispatch", where=where, got=entry["dispatch"], allowed="host, device_graph"
        )
    if not any(model <= entry.keys() for model in _MODELS):
        raise TraceError(
            "no error model",
            where=where,
            got=", ".join(entry),
            allowed=" or ".join(", ".join(sorted(model)) for model in _MODELS),
        )
    known = ARGUMENTS.get(entry["type"], {})
    if "decoder_custom_args" in entry:
        _checked(entry["decoder_custom_args"], known, f"{where}.decoder_custom_args")
    return entry


def _checked(data: object, known: Mapping[str, str], where: str) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise TraceError("not a mapping", where=where, got=repr(data)[:60], allowed="keys, values")
    for name, value in data.items():
        if name not in known:
            raise TraceError(
                "unknown key", where=where, got=repr(name), allowed=", ".join(known) or "none"
            )
        if not _fits(value, known[name]):
            raise TraceError(
                "value does not fit",
                where=f"{where}.{name}",
                got=repr(value)[:60],
                allowed=known[name],
            )
    return data


def _fits(value: object, kind: str) -> bool:
    if kind in {"sparse", "numbers", "list"}:
        whole = {"sparse": _is_index, "numbers": _is_number}.get(kind)
        return isinstance(value, list) and (whole is None or all(map(whole, value)))
    if kind == "size":
        return type(value) is int and value >= 0
    if kind == "relay":
        return isinstance(value, dict) and all(
            name in _RELAY and _fits(v, _RELAY[name]) for name, v in value.items()
        )
    if kind == "number":
        return _is_number(value)
    return type(value) is {"int": int, "str": str, "bool": bool, "object": dict}[kind]


def _is_index(value: object) -> bool:
    return type(value) is int and value >= -1


def _is_number(value: object) -> bool:
    return type(value) in {int, float}


def _cut(flat: Sequence[int], where: str) -> Rows:
    """Rows of the sparse form."""
    if flat and flat[-1] != -1:
        raise TraceError("the last row has no end", where=where, got=str(flat[-1]), allowed="-1")
    rows: list[tuple[int, ...]] = []
    row: list[int] = []
    for index in flat:
        if index >= 0:
            row.append(index)
            continue
        if len(set(row)) != len(row):
            raise TraceError("an index twice in a row", where=f"{where}, row {len(rows)}")
        rows.append(tuple(row))
        row = []
    return tuple(rows)


def _matrix(flat: Sequence[int], columns: int, where: str) -> csr_array:
    rows = _cut(flat, where)
    if flat and max(flat) >= columns:
        raise TraceError(
            "an index beyond block_size", where=where, got=str(max(flat)), allowed=f"< {columns}"
        )
    ends = np.cumsum([0, *map(len, rows)])
    indices = np.array([index for row in rows for index in sorted(row)], dtype=np.int32)
    ones = np.ones(len(indices), dtype=np.uint8)
    made: csr_array = csr_array((ones, indices, ends), shape=(len(rows), columns))
    return made


# -- writing -----------------------------------------------------------------------------------


def _rows_of(matrix: csr_array) -> list[NDArray[np.int32]]:
    return np.split(matrix.indices, matrix.indptr[1:-1])


def _sparse(rows: Iterable[Iterable[int]]) -> list[str]:
    return [str(index) for row in rows for index in (*row, -1)]


def _float(value: float) -> str:
    """A number that YAML 1.1 and 1.2 read as one and that reads back to the last bit."""
    text = repr(value)
    return text.replace("e", ".0e") if "e" in text and "." not in text else text


def _list(key: str, items: Iterable[str]) -> list[str]:
    indent = " " * (len(key) - len(key.lstrip()) + 2)
    body = textwrap.fill(", ".join(items), 110, initial_indent=indent, subsequent_indent=indent)
    return [f"{key}: [", body, f"{indent}]"]
