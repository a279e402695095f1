"""Types of the decode library: windows in, corrections and carried defects out.

A *window* is a run of consecutive rounds. A whole shot is the degenerate window that starts at
round 0, ends with the final data readout, commits everything and carries nothing. Bits are packed
as in stim's b8 format: bit ``i`` is bit ``i % 8`` of byte ``i // 8`` (LSB first), unused bits 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

U8Array: TypeAlias = NDArray[np.uint8]
I64Array: TypeAlias = NDArray[np.int64]


class Reason(IntEnum):
    """Why a shot was not answered by the requested chain (trace column ``fallback``)."""

    NONE = 0
    DEADLINE = 1
    PREDECODER_ERROR = 2
    OUTPUT_INVALID = 3
    QUEUE_FULL = 4
    ENGINE_MISSING = 5
    ENGINE_MISMATCH = 6
    EPOCH_MISMATCH = 7
    TRANSPORT_LOSS = 8
    DEVICE_LOST = 9
    FORCED = 10


class Backend(IntEnum):
    """Runtime of the pre-decoder, as requested and as executed."""

    NONE = 0
    TORCH_CPU = 1
    TORCH_CUDA = 2
    ORT_CPU = 3
    ORT_CUDA = 4
    OPENVINO = 5
    TENSORRT = 6
    TENSORRT_RTX = 7
    CUDAQ_QEC = 8


class Precision(IntEnum):
    """Number format of the pre-decoder, as requested and as executed."""

    NA = 0
    FP32 = 1
    TF32 = 2
    FP16 = 3
    BF16 = 4
    FP8 = 5
    INT8 = 6


class GlobalDecoder(IntEnum):
    """Decoder that finishes the job, as requested and as executed."""

    NONE = 0
    PYMATCHING = 1
    PYMATCHING_CORR = 2
    OTHER = 3


@dataclass(frozen=True, slots=True)
class WindowSpec:
    """Which rounds a window covers and which it commits (rounds count from 0, half open)."""

    first_round: int
    end_round: int
    commit_end_round: int


@dataclass(frozen=True, slots=True)
class PredecodeRecord:
    """What a pre-decoder did to ``n`` shots before the matcher saw them.

    Attributes:
        backend_requested: runtime that was asked for.
        backend_executed: runtime that really ran.
        precision_requested: number format that was asked for.
        precision_executed: number format that really ran.
        residual_events: int64 [n], detection events left for the matcher.
    """

    backend_requested: Backend
    backend_executed: Backend
    precision_requested: Precision
    precision_executed: Precision
    residual_events: I64Array


@dataclass(frozen=True, slots=True)
class DecodedBatch:
    """Answers for ``n`` windows of one kind.

    Attributes:
        predictions_b8: uint8 [n, ceil(O/8)], observable flips to apply, newly allocated.
        carried_b8: uint8 [n, ceil(c/8)], which of the c detectors that committed edges can reach
            beyond the commit region are flipped (to be XORed into the next window); ``None`` for
            whole shots.
        weight: float32 [n], matching weight, or ``None`` where the batch form does not give it.
        executed: the decoder that really answered.
        window_events: int64 [n, w], detection events that each of the shot's w windows saw, defects
            carried into it included; ``None`` where the shot is one window.
        commits_b8: uint8 [n, w, ceil(O/8)], flips that each window committed (their XOR is the
            prediction); ``None`` where the shot is one window.
        predecoded: what ran before the matcher; ``None`` where nothing did.
    """

    predictions_b8: U8Array
    carried_b8: U8Array | None
    weight: NDArray[np.float32] | None
    executed: GlobalDecoder
    window_events: I64Array | None = None
    commits_b8: U8Array | None = None
    predecoded: PredecodeRecord | None = None


def check_rows(detectors_b8: U8Array, n_detectors: int) -> None:
    """Refuse rows of another length than ceil(D/8) bytes, before anything is computed.

    Raises:
        ValueError: not of shape [n, ceil(D/8)].
    """
    row_bytes = -(-n_detectors // 8)
    if detectors_b8.ndim != 2 or detectors_b8.shape[1] != row_bytes:
        raise ValueError(f"detectors_b8 has shape {detectors_b8.shape}, allowed [n, {row_bytes}]")


class Decoder(Protocol):
    """Decodes windows of one detector error model.

    All forms take ``detectors_b8`` uint8 [n, ceil(D/8)], C-contiguous, LSB first, owned by the
    caller and unchanged. They raise ``DecoderError``-like exceptions; they never return a guess.
    ``decode_batch`` must equal ``decode_one`` row by row.
    """

    @property
    def kind(self) -> GlobalDecoder:
        """The decoder that runs."""

    @property
    def n_detectors(self) -> int:
        """D, number of detectors of the whole shot."""

    @property
    def n_observables(self) -> int:
        """O, number of logical observables."""

    @property
    def window(self) -> WindowSpec:
        """The window that one call decodes."""

    def decode_batch(self, detectors_b8: U8Array) -> DecodedBatch:
        """Decode many windows in one call (the fast form)."""

    def decode_one(self, detectors_b8: U8Array) -> U8Array:
        """Decode one window, uint8 [ceil(D/8)] -> uint8 [ceil(O/8)] (the low-latency form)."""

    def fingerprint(self) -> dict[str, str]:
        """What answers: package, version, options, SHA-256 of the detector error model."""
