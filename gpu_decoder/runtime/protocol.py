"""What every runtime of the pre-decoder does, and the ways in which it refuses."""

from __future__ import annotations

from typing import Final, Protocol

from gpu_decoder.protocol import Backend, Precision, Reason, U8Array

_MAY_EXECUTE: Final = {
    "fp32": (Precision.FP32, Precision.TF32, Precision.BF16), "fp16": (Precision.FP16,),
    "int8": (Precision.INT8,), "fp8": (Precision.FP8,),
}  # fmt: skip
"""Number format of a model file -> what a runtime may be asked to execute it in."""


class RuntimeUnavailable(RuntimeError):  # noqa: N818 - a state of the machine, not a fault
    """A package, library, driver or device is missing; the message says which and what to do."""


class EngineError(RuntimeError):
    """A runtime cannot give the answer that it was asked for.

    Args:
        message: what happened, both sides named.
        reason: ``ENGINE_MISSING``, ``ENGINE_MISMATCH``, ``PREDECODER_ERROR`` or
            ``OUTPUT_INVALID``.
    """

    def __init__(self, message: str, reason: Reason) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle with the reason, so that the error crosses process borders whole."""
        return type(self), (str(self), self.reason)


class Runtime(Protocol):
    """Executes one model. Not shared between threads or processes: each worker builds its own."""

    @property
    def backend(self) -> Backend:
        """The backend that really executes."""

    @property
    def precision(self) -> Precision:
        """The number format in which the convolutions really execute."""

    @property
    def n_inputs(self) -> int:
        """N, detectors of one shot."""

    def run(self, dets: U8Array) -> U8Array:
        """Execute.

        Args:
            dets: uint8 [n, N], C-contiguous, 0 or 1, n >= 1; owned by the caller and unchanged.

        Returns:
            uint8 [n, 1 + N], newly allocated: flip of the observable, residual detectors.

        Raises:
            ValueError: ``dets`` has another shape, dtype or memory order.
            EngineError: the runtime failed (``PREDECODER_ERROR``).
        """

    def fingerprint(self) -> dict[str, str]:
        """What executes: runtime, version, precision, SHA-256 of the model, device."""

    def close(self) -> None:
        """Free what is held; ``run`` is not called afterwards. May be called twice."""


def check_input(dets: U8Array, n_inputs: int) -> None:
    """Refuse what is not uint8 [n, N], C-contiguous, n >= 1.

    Raises:
        ValueError: names both sides.
    """
    shaped = dets.ndim == 2 and dets.shape[0] > 0 and dets.shape[1] == n_inputs
    if not shaped or dets.dtype.name != "uint8" or not dets.flags.c_contiguous:
        order = "C-contiguous" if dets.flags.c_contiguous else "not C-contiguous"
        raise ValueError(
            f"dets is {dets.dtype} {list(dets.shape)}, {order}; "
            f"allowed: uint8 [n, {n_inputs}], n >= 1, C-contiguous"
        )


def check_held(held: str, asked: Precision) -> None:
    """Refuse a model file of another number format than was asked for.

    Its numbers are rounded already: a runtime that computes them in float32 would report FP32 and
    answer otherwise than an fp32 model.

    Args:
        held: precision that the file states, such as "fp16".
        asked: requested precision.

    Raises:
        EngineError: ``ENGINE_MISMATCH``, names both sides.
    """
    if asked not in _MAY_EXECUTE[held]:
        raise EngineError(
            f"{asked.name} was asked for, but the model holds {held.upper()}",
            Reason.ENGINE_MISMATCH,
        )
