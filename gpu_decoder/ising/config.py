"""A pre-decoder as plain data: what a worker needs to build its own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gpu_decoder.ising.geometry import Basis, geometry
from gpu_decoder.ising.onnx_model import build_onnx, check_info, read_info
from gpu_decoder.ising.predecoder import NetworkPredecoder, Predecoder
from gpu_decoder.ising.tensors import Layout
from gpu_decoder.ising.weights import find_weights, load_weights
from gpu_decoder.protocol import Backend, Precision, U8Array
from gpu_decoder.runtime.build import build_runtime


@dataclass(frozen=True)
class PredecoderConfig:
    """Which pre-decoder, for which circuit, on which runtime. Picklable.

    Exactly one of ``weights``, ``model`` and ``rule`` is given.

    Attributes:
        distance: d of the circuit.
        rounds: T of the circuit.
        basis: memory basis of the circuit.
        orientation: of the circuit, XV .. ZH or O1 .. O4.
        weights: a weights file, or the name of shipped weights.
        model: an exported ONNX file.
        rule: ``isolated_pair``.
        keep_last: see ``Layout``.
        threshold_data: threshold of the data channels; ``None``: as stored in the file.
        threshold_syndrome: threshold of the measurement channels; ``None``: as stored.
        backend: requested runtime; ``NONE`` for a rule.
        precision: requested number format; ``NA`` for a rule.
        threads: of a CPU runtime.
        calibration_shots: shots that int8 quantisation of ``weights`` looks at.
        calibration_seed: their seed.
    """

    distance: int
    rounds: int
    basis: Basis
    orientation: str
    weights: str = ""
    model: str = ""
    rule: str = ""
    keep_last: bool = False
    threshold_data: float | None = None
    threshold_syndrome: float | None = None
    backend: Backend = Backend.ORT_CPU
    precision: Precision = Precision.FP32
    threads: int = 1
    calibration_shots: int = 256
    calibration_seed: int = 0

    def __post_init__(self) -> None:
        given = {"weights": self.weights, "model": self.model, "rule": self.rule}
        if sum(map(bool, given.values())) != 1:
            raise ValueError(f"got {given}, allowed: exactly one of weights, model, rule")
        nothing = (Backend.NONE, Precision.NA)
        if self.rule and (self.backend, self.precision) != nothing:
            raise ValueError(
                f"rule {self.rule} with {self.backend.name} {self.precision.name}, allowed: "
                "a rule runs without a network (NONE, NA)"
            )

    @property
    def layout(self) -> Layout:
        """Of the circuit."""
        code = geometry(self.distance, self.orientation)
        return Layout(code, self.rounds, self.basis, self.keep_last)


def model_bytes(config: PredecoderConfig, dem_text: str) -> bytes:
    """The ONNX model of a configuration, checked against its circuit.

    Args:
        config: with ``weights`` or ``model``.
        dem_text: of the circuit; int8 quantisation samples its calibration shots from it.

    Raises:
        WeightsError: the weights cannot be used.
        ModelMismatchError: the model was built for another circuit or threshold.
    """
    layout = config.layout
    if config.model:
        data = Path(config.model).read_bytes()
        check_info(read_info(data), layout, config.threshold_data, config.threshold_syndrome)
        return data
    weights = load_weights(find_weights(config.weights))
    data_limit, syndrome_limit = config.threshold_data, config.threshold_syndrome
    data = build_onnx(
        weights,
        layout,
        weights.threshold_data if data_limit is None else data_limit,
        weights.threshold_syndrome if syndrome_limit is None else syndrome_limit,
        "fp16" if config.precision == Precision.FP16 else "fp32",
    )
    if config.precision == Precision.INT8:
        from gpu_decoder.ising.quantize import quantize_int8

        shots = _sample(dem_text, config.calibration_shots, config.calibration_seed)
        return quantize_int8(data, shots)
    return data


def build_predecoder(config: PredecoderConfig, dem_text: str) -> Predecoder:
    """Build what a configuration describes.

    Raises:
        WeightsError: the weights cannot be used.
        ModelMismatchError: the model was built for another circuit or threshold.
        RuntimeUnavailable: the runtime's package, driver or device is missing.
        EngineError: the runtime cannot execute the model as requested.
        ValueError: unknown rule or runtime.
    """
    if config.rule:
        if config.rule != "isolated_pair":
            raise ValueError(f"rule {config.rule!r}, allowed: isolated_pair")
        from gpu_decoder.ising.pair_rule import PairRule

        return PairRule(dem_text)
    data = model_bytes(config, dem_text)
    runtime = build_runtime(config.backend, data, config.precision, threads=config.threads)
    return NetworkPredecoder(runtime, read_info(data), config.layout)


def _sample(dem_text: str, shots: int, seed: int) -> U8Array:
    """Detectors uint8 [shots, N] drawn from a detector error model."""
    import stim

    sampler = stim.DetectorErrorModel(dem_text).compile_sampler(seed=seed)
    detectors: U8Array = sampler.sample(shots)[0].astype("uint8")
    return detectors
