"""The stage before the matcher: detectors in, a flip of the observable and fewer detectors out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

from gpu_decoder.ising.onnx_model import ModelInfo, ModelMismatchError, check_info
from gpu_decoder.ising.tensors import Layout
from gpu_decoder.protocol import Backend, Precision, Reason, U8Array, check_rows
from gpu_decoder.runtime.protocol import EngineError, Runtime

_CELLS_PER_CALL: Final = 1 << 16
"""Grid cells in one call of a runtime, so that its memory has a bound: a layer of 128 channels
holds 34 MB. Larger calls were not faster."""


@dataclass(frozen=True, slots=True)
class Predecoded:
    """Answers for n shots.

    Attributes:
        pre_l: uint8 [n], 1 where the observable was flipped.
        residual_b8: uint8 [n, ceil(N/8)], detectors that are left for the matcher (LSB first).
    """

    pre_l: U8Array
    residual_b8: U8Array


class Predecoder(Protocol):
    """Lowers the number of fired detectors; the matcher finishes.

    The final flip of the observable is ``pre_l`` XOR the matcher's answer to the residual.
    """

    @property
    def backend(self) -> Backend:
        """The runtime that really executes (``NONE``: a rule without a network)."""

    @property
    def precision(self) -> Precision:
        """The number format that really executes (``NA``: no network)."""

    @property
    def n_detectors(self) -> int:
        """N, detectors of one shot."""

    def predecode(self, detectors_b8: U8Array) -> Predecoded:
        """Treat uint8 [n, ceil(N/8)] shots, n >= 1 (LSB first); row by row independent.

        Raises:
            ValueError: the rows have another length.
            EngineError: the runtime failed or its output cannot be right.
        """

    def fingerprint(self) -> dict[str, str]:
        """What answers."""


class NetworkPredecoder:
    """A network in a runtime.

    Args:
        runtime: executes the model.
        info: what the model was built for.
        layout: of the circuit.

    Raises:
        ModelMismatchError: the model or the runtime does not suit the circuit.
    """

    def __init__(self, runtime: Runtime, info: ModelInfo, layout: Layout) -> None:
        check_info(info, layout)
        if runtime.n_inputs != layout.n_detectors:
            raise ModelMismatchError(
                f"the runtime takes {runtime.n_inputs} detectors, the circuit has "
                f"{layout.n_detectors}"
            )
        self._runtime = runtime
        self._info = info
        self._n = layout.n_detectors
        self._boundary = self._n - layout.geometry.half
        self._rows = max(1, _CELLS_PER_CALL // (layout.rounds * layout.geometry.n_data))

    @property
    def backend(self) -> Backend:
        """The runtime that really executes."""
        return self._runtime.backend

    @property
    def precision(self) -> Precision:
        """The number format that really executes."""
        return self._runtime.precision

    @property
    def n_detectors(self) -> int:
        """N, detectors of one shot."""
        return self._n

    def predecode(self, detectors_b8: U8Array) -> Predecoded:
        """Treat uint8 [n, ceil(N/8)] shots; see ``Predecoder.predecode``.

        A fired detector of the data readout is refused: no error of the circuit fires it, it is a
        corrupted input, and no matcher accepts it.
        """
        check_rows(detectors_b8, self.n_detectors)
        pre_l = np.empty(len(detectors_b8), dtype=np.uint8)
        residual_b8 = np.empty_like(detectors_b8)
        for begin in range(0, len(detectors_b8), self._rows):
            rows = slice(begin, begin + self._rows)
            dets = np.unpackbits(detectors_b8[rows], axis=1, bitorder="little", count=self._n)
            fired = dets[:, self._boundary :].any(axis=1)
            if fired.any():
                raise ValueError(
                    f"row {begin + int(np.argmax(fired))} has a fired detector of the data readout "
                    f"({self._boundary} to {self._n - 1}), allowed: none fires in this family"
                )
            out = self._runtime.run(dets)
            self._check(out, len(dets))
            pre_l[rows] = out[:, 0]
            residual_b8[rows] = np.packbits(out[:, 1:], axis=1, bitorder="little")
        return Predecoded(pre_l, residual_b8)

    def _check(self, out: U8Array, shots: int) -> None:
        """Refuse an output that cannot be right.

        Raises:
            EngineError: ``OUTPUT_INVALID``.
        """
        if out.shape != (shots, 1 + self._n) or out.dtype != np.uint8:
            problem = f"it is {out.dtype} {list(out.shape)}, not uint8 [{shots}, {1 + self._n}]"
        elif out.max() > 1:
            problem = f"it holds the value {int(out.max())}, allowed: 0, 1"
        elif out[:, 1 + self._boundary :].any():
            problem = "it fires detectors of the data readout, which no error can"
        else:
            return
        name = self.backend.name.lower()
        raise EngineError(f"output of {name} is invalid: {problem}", Reason.OUTPUT_INVALID)

    def fingerprint(self) -> dict[str, str]:
        """Model and runtime."""
        return {
            "predecoder": self._info.model_id,
            "weights_sha256": self._info.weights_sha256,
            "threshold_data": repr(self._info.threshold_data),
            "threshold_syndrome": repr(self._info.threshold_syndrome),
            "residual": "keep_last" if self._info.keep_last else "compatible",
            **self._runtime.fingerprint(),
        }
