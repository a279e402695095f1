"""Opening a trace: is it one, of which version, and what does it say about itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np

from hil.errors import TraceError
from hil.trace.schema import FORMAT, FORMAT_VERSION

MAJOR: Final = int(FORMAT_VERSION.split(".")[0])
_META_TEXTS: Final = (
    ("scenario_yaml", "scenario_yaml"), ("schema_json", "schema_json"), ("argv", "argv"),
    ("resolved", "resolved_json"), ("host", "host_json"), ("software", "software_json"),
    ("git", "git_json"), ("seeds", "seeds_json"), ("requested", "backend/requested_json"),
    ("executed", "backend/executed_json"), ("fingerprint", "backend/fingerprint_json"),
    ("circuit_stim", "model/circuit_stim"), ("circuit_sha256", "model/circuit_sha256"),
    ("layout", "model/layout_json"),
)  # fmt: skip
_PLAIN: Final = frozenset({"scenario_yaml", "schema_json", "circuit_stim", "circuit_sha256"})


def root_attributes(file: h5py.File, path: Path) -> dict[str, Any]:
    """Root attributes, after a check of format and version.

    Raises:
        TraceError: not a trace, or of an unknown major version.
    """
    attributes = {name: plain(file.attrs[name]) for name in file.attrs}
    if attributes.get("format") != FORMAT:
        raise TraceError(
            "not a trace", where=f"{path}: attribute format",
            got=repr(attributes.get("format")), allowed=FORMAT,
        )  # fmt: skip
    version = str(attributes.get("format_version"))
    major = version.split(".", maxsplit=1)[0]
    if not major.isdigit() or int(major) != MAJOR:
        raise TraceError(
            "unknown major version of the format", where=f"{path}: attribute format_version",
            got=version, allowed=f"{MAJOR}.x.y", fix="read it with the version that wrote it",
        )  # fmt: skip
    return attributes


def plain(value: object) -> object:
    """Attribute value as a plain Python value."""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, np.generic):
        return value.item()
    return value


def read_meta(file: h5py.File) -> dict[str, Any]:
    """Contents of ``/meta`` but for the epochs: texts, decoded JSON, tables."""
    group = file["meta"]
    out: dict[str, Any] = {}
    for name, path in _META_TEXTS:
        text = group[path].asstr()[()]
        out[name] = text if name in _PLAIN else json.loads(text)
    model = group["model"]
    for name in ("n_detectors", "n_observables"):
        out[name] = int(model[name][()])
    for name in ("detector_coords", "detector_round", "detector_slot"):
        out[name] = model[name][:]
    out["more_models"] = [
        {
            "circuit_stim": group[name]["circuit_stim"].asstr()[()],
            "dem": group[name]["dem"].asstr()[()],
        }
        for name in sorted(n for n in group if n.startswith("model_"))
    ]
    for name in ("links", "boards"):
        out[name] = [json.loads(t) for t in group[name]["properties_json"].asstr()[:]]
    return out
