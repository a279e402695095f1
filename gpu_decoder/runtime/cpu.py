"""What the runtimes on a CPU have in common."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from typing import Any, ClassVar

from gpu_decoder.protocol import Backend, Precision, Reason, U8Array
from gpu_decoder.runtime.protocol import EngineError, check_input


class CpuRuntime(ABC):
    """A model that was built, and the checks around its call.

    Args:
        onnx_bytes: the model.
        executable: what executes it, freed on ``close``.
        n_inputs: N, detectors of one shot.
        asked: precision that was requested.
        executed: precision of the convolutions that were built.
        facts: version of the package, device and threads, for the fingerprint.

    Raises:
        EngineError: ``ENGINE_MISMATCH``, another precision than asked for would execute.
    """

    _backend: ClassVar[Backend]
    _package: ClassVar[str]

    def __init__(
        self,
        onnx_bytes: bytes,
        executable: Any,  # noqa: ANN401 - of an untyped package
        *,
        n_inputs: int,
        asked: Precision,
        executed: Precision,
        facts: dict[str, str],
    ) -> None:
        if executed != asked:
            raise EngineError(
                f"{asked.name} was asked for, but {self._package} would execute this model in "
                f"{executed.name}",
                Reason.ENGINE_MISMATCH,
            )
        self._executable: Any = executable
        self._n_inputs = n_inputs
        self._precision = executed
        self._facts = facts
        self._sha256 = hashlib.sha256(onnx_bytes).hexdigest()

    @property
    def backend(self) -> Backend:
        """The runtime that executes."""
        return self._backend

    @property
    def precision(self) -> Precision:
        """Number format of the convolutions that were built."""
        return self._precision

    @property
    def n_inputs(self) -> int:
        """N, detectors of one shot."""
        return self._n_inputs

    def run(self, dets: U8Array) -> U8Array:
        """Execute; see ``Runtime.run``."""
        check_input(dets, self._n_inputs)
        if self._executable is None:
            raise EngineError("the runtime is closed", Reason.PREDECODER_ERROR)
        try:
            return self._call(dets)
        except Exception as error:  # each package raises what it likes; the shot must be settled
            raise EngineError(
                f"{self._package} failed: {error}", Reason.PREDECODER_ERROR
            ) from error

    @abstractmethod
    def _call(self, dets: U8Array) -> U8Array:
        """Execute, uint8 [n, N] -> uint8 [n, 1 + N], newly allocated."""

    def fingerprint(self) -> dict[str, str]:
        """What executes."""
        return {
            "runtime": self._package.lower(),
            **self._facts,
            "precision": self._precision.name.lower(),
            "model_sha256": self._sha256,
        }

    def close(self) -> None:
        """Free what executes."""
        self._executable = None
