"""Files of the pre-decoder: export a model for one circuit, tell what a file holds."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import numpy as np

from gpu_decoder.files import write_whole
from gpu_decoder.ising.circuit import memory_circuit
from gpu_decoder.ising.geometry import Basis, geometry
from gpu_decoder.ising.noise import Ising25
from gpu_decoder.ising.onnx_model import ModelInfo, ModelMismatchError, build_onnx, read_info
from gpu_decoder.ising.tensors import Layout
from gpu_decoder.ising.weights import Weights, WeightsError, find_weights, load_weights
from hil.errors import HilError, UsageError

CALIBRATION_SHOTS = 256
CALIBRATION_P = 0.006


def export_onnx(
    weights: str,
    out: Path,
    *,
    distance: int,
    rounds: int,
    basis: Basis,
    orientation: str,
    threshold: float | None = None,
    threshold_syndrome: float | None = None,
    keep_last: bool = False,
    precision: Literal["fp32", "fp16", "int8"] = "fp32",
    force: bool = False,
) -> ModelInfo:
    """Write the ONNX model of one circuit, whole or not at all.

    Args:
        weights: file or shipped name.
        out: the file to write.
        distance: d, odd.
        rounds: T, at least 2.
        basis: memory basis.
        orientation: XV .. ZH or O1 .. O4.
        threshold: of all channels; ``None``: as stored with the weights.
        threshold_syndrome: of the measurement channels, where it differs.
        keep_last: see ``Layout``.
        precision: int8 is calibrated on ``CALIBRATION_SHOTS`` shots of ising25 noise.
        force: replace a file that is there.

    Raises:
        UsageError: ``out`` exists, the weights cannot be used, or a number is out of range.
        HilError: ``out`` cannot be written.
    """
    if out.exists() and not force:
        raise UsageError(
            "the file exists", where=str(out), fix="choose another name or add --force"
        )
    if threshold_syndrome is None:
        threshold_syndrome = threshold
    try:
        layout = Layout(geometry(distance, orientation), rounds, basis, keep_last)
        network = load_weights(find_weights(weights))
        data = build_onnx(
            network,
            layout,
            network.threshold_data if threshold is None else threshold,
            network.threshold_syndrome if threshold_syndrome is None else threshold_syndrome,
            "fp16" if precision == "fp16" else "fp32",
        )
    except ValueError as error:
        raise UsageError(str(error)) from error
    if precision == "int8":
        from gpu_decoder.ising.quantize import quantize_int8

        circuit = memory_circuit(layout.geometry, rounds, basis, Ising25.from_p(CALIBRATION_P))
        sampler = circuit.compile_detector_sampler(seed=0)
        data = quantize_int8(data, sampler.sample(CALIBRATION_SHOTS).astype(np.uint8))
    try:
        write_whole(out, data)
    except OSError as error:
        raise HilError("cannot be written", where=str(out), got=str(error.strerror)) from error
    return read_info(data)


def file_facts(name_or_path: str) -> dict[str, object]:
    """What a weights file or an exported model holds.

    Raises:
        UsageError: it is neither, or it contradicts itself.
    """
    try:
        path = find_weights(name_or_path)
        if path.suffix == ".onnx":
            return {"file": str(path), **_model_facts(path)}
        return {"file": str(path), **_weights_facts(load_weights(path))}
    except (WeightsError, ModelMismatchError) as error:
        raise UsageError(str(error)) from error


def _weights_facts(weights: Weights) -> dict[str, object]:
    net = weights.architecture
    return {
        "kind": "weights",
        "sha256": weights.sha256,
        "model": net.name,
        "model_id": net.model_id,
        "filters": list(net.filters),
        "kernels": list(net.kernels),
        "receptive_field": net.receptive_field,
        "parameters": net.parameters,
        "quant_format": weights.quant_format,
        "threshold_data": weights.threshold_data,
        "threshold_syndrome": weights.threshold_syndrome,
        "metadata": weights.metadata,
    }


def _model_facts(path: Path) -> dict[str, object]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError("cannot be read", where=str(path), got=str(error.strerror)) from error
    try:
        info = read_info(data)
    except ModelMismatchError as error:
        raise ModelMismatchError(f"{path}: {error}") from error
    facts: dict[str, object] = {"kind": "model", "sha256": hashlib.sha256(data).hexdigest()}
    return facts | {"detectors": info.n_detectors, **asdict(info)}
