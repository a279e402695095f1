"""Weights files of the pre-decoder: SafeTensors with a description in their metadata.

Keys ``net.{3 i}.weight`` and ``net.{3 i}.bias`` for layer i (the step of 3 counts convolution,
dropout and activation, as the reference does). Metadata, all texts: ``model_id``, ``quant_format``
("fp16" or "fp32", the type of the tensors), ``model_version``, ``receptive_field``,
``num_filters`` and ``kernel_size`` (JSON lists). Ours add ``threshold_data``,
``threshold_syndrome`` and ``trained_noise``. Whatever the file holds, we compute with float32.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gpu_decoder.files import write_whole
from gpu_decoder.ising.network import MODEL_VERSION, Architecture, F32Array, architecture

QuantFormat: TypeAlias = Literal["fp16", "fp32"]
Tensors: TypeAlias = Mapping[str, NDArray[np.generic]]

SHIPPED: Final = Path(__file__).parent / "models"
"""Folder of the weights that come with the package."""

_REQUIRED: Final = (
    "model_id", "quant_format", "model_version", "receptive_field", "num_filters", "kernel_size",
)  # fmt: skip
_DTYPES: Final[dict[str, np.dtype[np.generic]]] = {
    "fp16": np.dtype(np.float16),
    "fp32": np.dtype(np.float32),
}


class WeightsError(ValueError):
    """A weights file cannot be used; the message names what it holds and what is expected."""


@dataclass(frozen=True)
class Weights:
    """A trained network.

    Attributes:
        architecture: what the tensors form.
        layers: per layer float32 weight [out, in, kT, kRow, kCol] and bias [out].
        quant_format: type of the tensors in the file.
        metadata: all metadata of the file.
        sha256: of the file, hexadecimal; empty if the weights come from none.
    """

    architecture: Architecture
    layers: tuple[tuple[F32Array, F32Array], ...]
    quant_format: QuantFormat
    metadata: dict[str, str] = field(default_factory=dict)
    sha256: str = ""

    @property
    def threshold_data(self) -> float:
        """Threshold of the data channels that was chosen for these weights; 0 if none was."""
        return self._threshold("threshold_data")

    @property
    def threshold_syndrome(self) -> float:
        """Threshold of the measurement channels that was chosen for these weights."""
        return self._threshold("threshold_syndrome")

    def _threshold(self, key: str) -> float:
        text = self.metadata.get(key, "0")
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not np.isfinite(value):
            raise WeightsError(f"metadata {key} is {text!r}, allowed: a finite number")
        return value


def find_weights(name_or_path: str | Path) -> Path:
    """The file of that path, or the shipped one of that name (without ``.safetensors``).

    Raises:
        WeightsError: there is neither.
    """
    path = Path(name_or_path)
    if path.is_file():
        return path
    shipped = SHIPPED / f"{name_or_path}.safetensors"
    if path.name == str(name_or_path) and shipped.is_file():
        return shipped
    names = sorted(p.stem for p in SHIPPED.glob("*.safetensors"))
    raise WeightsError(
        f"no weights {str(name_or_path)!r}, allowed: a file, or a shipped name "
        f"({', '.join(names) or 'none shipped'})"
    )


def load_weights(path: str | Path) -> Weights:
    """Read a SafeTensors file, or a ``.pt`` / ``.pth`` checkpoint where torch is installed.

    A checkpoint is a state dict, or a dict holding one as ``model_state_dict`` or ``state_dict``;
    it is read with ``weights_only=True``, so that no code in it runs.

    Raises:
        WeightsError: the file cannot be read, is no such file, or does not match its own metadata.
    """
    path = Path(path)
    try:
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        if path.suffix in (".pt", ".pth"):
            return _from_tensors(*_read_checkpoint(path), sha256)
        return _from_tensors(*_read_safetensors(path), sha256)
    except ValueError as error:
        raise WeightsError(f"{path}: {error}") from error


def save_weights(path: str | Path, weights: Weights) -> str:
    """Write a SafeTensors file, whole or not at all; equal weights give equal bytes.

    Returns:
        SHA-256 of the file.

    Raises:
        WeightsError: a value is not finite in the type of the file.
        OSError: the file cannot be written.
    """
    path, dtype = Path(path), _DTYPES[weights.quant_format]
    tensors: dict[str, NDArray[np.generic]] = {}
    with np.errstate(over="ignore"):
        for k, (weight, bias) in enumerate(weights.layers):
            tensors[f"net.{3 * k}.weight"] = np.ascontiguousarray(weight, dtype=dtype)
            tensors[f"net.{3 * k}.bias"] = np.ascontiguousarray(bias, dtype=dtype)
    metadata = {**weights.metadata, **describe(weights.architecture, weights.quant_format)}
    _from_tensors(tensors, metadata, "")  # what we could not read, we do not write
    data = _pack(tensors, metadata)
    write_whole(path, data)
    return hashlib.sha256(data).hexdigest()


def _pack(tensors: Tensors, metadata: Mapping[str, str]) -> bytes:
    """SafeTensors bytes; the package's own writer orders the metadata at random."""
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    begin = 0
    for key, value in tensors.items():
        header[key] = {
            "dtype": "F16" if value.dtype == np.float16 else "F32",
            "shape": list(value.shape),
            "data_offsets": [begin, begin + value.nbytes],
        }
        begin += value.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    body = b"".join(
        value.astype(value.dtype.newbyteorder("<")).tobytes() for value in tensors.values()
    )
    return len(text).to_bytes(8, "little") + text + body


def describe(net: Architecture, quant_format: QuantFormat) -> dict[str, str]:
    """The metadata that every weights file must hold."""
    return {
        "model_id": net.model_id,
        "quant_format": quant_format,
        "model_version": MODEL_VERSION,
        "receptive_field": str(net.receptive_field),
        "num_filters": json.dumps(list(net.filters)),
        "kernel_size": json.dumps(list(net.kernels)),
    }


def _read_safetensors(path: Path) -> tuple[Tensors, dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118 - not a mapping
    except (SafetensorError, TypeError, AttributeError) as error:
        raise WeightsError(f"not a whole SafeTensors file: {error}") from error


def _read_checkpoint(path: Path) -> tuple[Tensors, dict[str, str]]:
    """A torch checkpoint has no metadata: the shapes of its tensors stand in."""
    try:
        import torch
    except ImportError as error:
        raise WeightsError(
            "a torch checkpoint, and torch is not installed: install the extra 'train' "
            "(pip install 'hil[train]') or convert it to SafeTensors"
        ) from error
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises what it likes for a bad or hostile file
        said = str(error).partition("\n")[0].partition(". ")[0]  # then torch advises unsafe loading
        raise WeightsError(
            f"not a checkpoint that loads as plain weights: {said or type(error).__name__}"
        ) from error
    for key in ("model_state_dict", "state_dict"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not all(
        isinstance(v, torch.Tensor) for v in loaded.values()
    ):
        raise WeightsError("holds no state dict, allowed: a dict of tensors")
    if any(not v.is_floating_point() for v in loaded.values()):
        raise WeightsError("holds tensors that are not floating point")
    half = all(v.dtype == torch.float16 for v in loaded.values())
    tensors = {
        str(k): (v if half else v.to(torch.float32)).detach().numpy() for k, v in loaded.items()
    }
    shapes = [v.shape for k, v in tensors.items() if k.endswith("weight") and v.ndim == 5]
    filters, kernels = [s[0] for s in shapes], [s[2] for s in shapes]
    if not shapes:
        raise WeightsError(f"holds no convolutions, but the keys {sorted(tensors)[:4]}")
    return tensors, describe(architecture("custom", filters, kernels), "fp16" if half else "fp32")


def _from_tensors(tensors: Tensors, metadata: dict[str, str], sha256: str) -> Weights:
    """Check the tensors against the metadata, both named in every message."""
    missing = [key for key in _REQUIRED if key not in metadata]
    if missing:
        raise WeightsError(
            f"metadata without {', '.join(missing)}; "
            f"it holds {', '.join(sorted(metadata)) or 'none'}"
        )
    if metadata["model_version"] != MODEL_VERSION:
        raise WeightsError(
            f"model_version {metadata['model_version']!r}, allowed: {MODEL_VERSION!r}"
        )
    net = architecture(
        metadata["model_id"], _numbers(metadata, "num_filters"), _numbers(metadata, "kernel_size")
    )
    if metadata["receptive_field"] != str(net.receptive_field):
        raise WeightsError(
            f"receptive_field {metadata['receptive_field']!r}, but kernel_size "
            f"{list(net.kernels)} gives {net.receptive_field}"
        )
    quant_format = metadata["quant_format"]
    if quant_format not in ("fp16", "fp32"):
        raise WeightsError(f"quant_format {quant_format!r}, allowed: 'fp16', 'fp32'")
    plain = {key.removeprefix("module."): value for key, value in tensors.items()}
    expected: dict[str, tuple[int, ...]] = {}
    for k, whole in enumerate(net.shapes):
        expected |= {f"net.{3 * k}.weight": whole, f"net.{3 * k}.bias": whole[:1]}
    if set(plain) != set(expected):
        raise WeightsError(
            f"missing tensors: {', '.join(sorted(set(expected) - set(plain))) or 'none'}; "
            f"unexpected tensors: {', '.join(sorted(set(plain) - set(expected))) or 'none'} "
            f"(num_filters {list(net.filters)})"
        )
    for key, shape in expected.items():
        value = plain[key]
        if value.shape != shape:
            raise WeightsError(
                f"{key} has shape {list(value.shape)}, but num_filters and kernel_size give "
                f"{list(shape)}"
            )
        if value.dtype != _DTYPES[quant_format]:
            raise WeightsError(f"{key} is {value.dtype}, but quant_format is {quant_format!r}")
        if not np.isfinite(value.astype(np.float32)).all():
            raise WeightsError(f"{key} holds values that are not finite")
    layers = tuple(
        (
            plain[f"net.{3 * k}.weight"].astype(np.float32),
            plain[f"net.{3 * k}.bias"].astype(np.float32),
        )
        for k in range(net.layers)
    )
    return Weights(net, layers, quant_format, dict(metadata), sha256)  # type: ignore[arg-type]


def _numbers(metadata: Mapping[str, str], key: str) -> list[int]:
    try:
        found = json.loads(metadata[key])
    except json.JSONDecodeError:
        found = None
    if not isinstance(found, list) or not all(type(n) is int for n in found):
        raise WeightsError(f"metadata {key} is {metadata[key]!r}, allowed: a JSON list of integers")
    return found
