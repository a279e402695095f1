"""Pre-decoder, matcher, XOR: the whole Ising decoder behind the window protocol."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from gpu_decoder.ising.predecoder import Predecoder
from gpu_decoder.matching import MatchingDecoder
from gpu_decoder.protocol import (
    Backend,
    DecodedBatch,
    GlobalDecoder,
    Precision,
    PredecodeRecord,
    U8Array,
    WindowSpec,
)


class IsingDecoder:
    """Decodes whole shots of one memory circuit of the Ising family.

    Args:
        dem_text: stim detector error model of the circuit, decomposed.
        predecoder: built for the same circuit.
        correlated: the matcher uses two-pass correlated matching.
        requested: backend and precision that were asked for; by default what executes.

    Raises:
        ValueError: the model is not graphlike or has other than one observable.
    """

    def __init__(
        self,
        dem_text: str,
        predecoder: Predecoder,
        *,
        correlated: bool = False,
        requested: tuple[Backend, Precision] | None = None,
    ) -> None:
        self._predecoder = predecoder
        self._matching = MatchingDecoder(dem_text, correlated=correlated)
        if self._matching.n_observables != 1:
            raise ValueError(
                f"{self._matching.n_observables} observables in the detector error model, "
                "allowed: 1 (a memory experiment)"
            )
        self._requested = requested or (predecoder.backend, predecoder.precision)

    @property
    def kind(self) -> GlobalDecoder:
        """The matcher that finishes."""
        return self._matching.kind

    @property
    def backend(self) -> Backend:
        """The runtime that really executes the pre-decoder."""
        return self._predecoder.backend

    @property
    def precision(self) -> Precision:
        """The number format in which the pre-decoder really executes."""
        return self._predecoder.precision

    @property
    def n_detectors(self) -> int:
        """N, number of detectors of the whole shot."""
        return self._matching.n_detectors

    @property
    def n_observables(self) -> int:
        """1."""
        return 1

    @property
    def window(self) -> WindowSpec:
        """The whole shot: all rounds in, all committed, nothing carried."""
        return self._matching.window

    def decode_batch(self, detectors_b8: U8Array) -> DecodedBatch:
        """Decode uint8 [n, ceil(N/8)] shots in one call.

        Raises:
            ValueError: the rows have another length, or a detector of the data readout fired.
            EngineError: the pre-decoder failed; nothing was decoded.
        """
        first = self._predecoder.predecode(detectors_b8)
        matched = self._matching.decode_batch(first.residual_b8)
        events = np.bitwise_count(first.residual_b8).sum(axis=1, dtype=np.int64)
        return replace(
            matched,
            predictions_b8=matched.predictions_b8 ^ first.pre_l[:, None],
            predecoded=PredecodeRecord(
                backend_requested=self._requested[0],
                backend_executed=self.backend,
                precision_requested=self._requested[1],
                precision_executed=self.precision,
                residual_events=events,
            ),
        )

    def decode_one(self, detectors_b8: U8Array) -> U8Array:
        """Decode one shot, uint8 [ceil(N/8)] -> uint8 [1]: a batch of one row."""
        answer: U8Array = self.decode_batch(detectors_b8.reshape(1, -1)).predictions_b8[0]
        return answer

    def fingerprint(self) -> dict[str, str]:
        """Matcher and pre-decoder."""
        return {**self._matching.fingerprint(), **self._predecoder.fingerprint()}
