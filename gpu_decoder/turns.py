"""Decoders of one role when shots of several models take turns: shot s is one of model s % n."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from gpu_decoder.build import build_decoder
from gpu_decoder.protocol import (
    DecodedBatch,
    Decoder,
    GlobalDecoder,
    I64Array,
    PredecodeRecord,
    U8Array,
)

if TYPE_CHECKING:
    from gpu_decoder.ising.config import PredecoderConfig

Number = TypeVar("Number", np.uint8, np.int64)


@dataclass(frozen=True)
class TurnDecoders:
    """One decoder per model, all of one kind.

    Attributes:
        decoders: shot ``s`` is decoded by ``decoders[s % len(decoders)]``.
        sliding: a shot is decoded window by window.
        predecoded: a pre-decoder runs before the matching.
    """

    decoders: tuple[Decoder, ...]
    sliding: bool = False
    predecoded: bool = False

    @property
    def kind(self) -> GlobalDecoder:
        """The decoder that runs."""
        return self.decoders[0].kind

    @property
    def n_detectors(self) -> int:
        """D of every model."""
        return self.decoders[0].n_detectors

    @property
    def n_observables(self) -> int:
        """O of every model."""
        return self.decoders[0].n_observables

    def of(self, shot: int) -> Decoder:
        """The decoder of one shot."""
        return self.decoders[shot % len(self.decoders)]

    def decode_batch(self, detectors_b8: U8Array, shots: I64Array) -> DecodedBatch:
        """Decode uint8 [n, ceil(D/8)], rows of the shots int64 [n], one call per model."""
        if len(self.decoders) == 1:
            return self.decoders[0].decode_batch(detectors_b8)
        parts = []
        for k, decoder in enumerate(self.decoders):
            rows = np.flatnonzero(shots % len(self.decoders) == k)
            parts.append((rows, decoder.decode_batch(np.ascontiguousarray(detectors_b8[rows]))))
        events = [(r, p.window_events) for r, p in parts if p.window_events is not None]
        commits = [(r, p.commits_b8) for r, p in parts if p.commits_b8 is not None]
        records = [(r, p.predecoded) for r, p in parts if p.predecoded is not None]
        return DecodedBatch(
            _in_place([(r, p.predictions_b8) for r, p in parts]),
            None,
            None,
            self.kind,
            _in_place(events) if events else None,
            _in_place(commits) if commits else None,
            _record_of(records) if records else None,
        )

    def fingerprint(self) -> dict[str, str]:
        """What answers: that of the first model, and the SHA-256 of the further ones' texts."""
        first, *others = (decoder.fingerprint() for decoder in self.decoders)
        return first | {f"dem_sha256_{k}": f["dem_sha256"] for k, f in enumerate(others, 1)}


def _record_of(parts: Sequence[tuple[I64Array, PredecodeRecord]]) -> PredecodeRecord:
    """Records of several models in one; all have the same runtime and precision."""
    left = _in_place([(rows, record.residual_events) for rows, record in parts])
    return replace(parts[0][1], residual_events=left)


def _in_place(parts: Sequence[tuple[I64Array, NDArray[Number]]]) -> NDArray[Number]:
    """Rows of several arrays in one, each at its own place."""
    order = np.argsort(np.concatenate([rows for rows, _ in parts]))
    return np.concatenate([values for _, values in parts])[order]


def build_turns(
    kind: str,
    dem_texts: Sequence[str],
    *,
    sliding: tuple[int, int] | None = None,
    predecoders: Sequence[PredecoderConfig] = (),
) -> TurnDecoders:
    """Build the decoder called ``kind`` once per detector error model; see ``build_decoder``.

    Args:
        kind: the matcher.
        dem_texts: one per model.
        sliding: commit and buffer rounds of sliding windows.
        predecoders: one per model, or none.

    Raises:
        ValueError: ``kind`` is unknown, a model does not suit it, or the models differ in shape.
        RuntimeUnavailable, EngineError: see ``build_decoder``.
    """
    before: Sequence[PredecoderConfig | None] = predecoders or [None] * len(dem_texts)
    decoders = tuple(
        build_decoder(kind, text, sliding=sliding, predecoder=config)
        for text, config in zip(dem_texts, before, strict=True)
    )
    shapes = sorted({(d.n_detectors, d.n_observables) for d in decoders})
    if len(shapes) != 1:
        raise ValueError(f"models of (detectors, observables) {shapes}, allowed: all alike")
    return TurnDecoders(decoders, sliding is not None, bool(predecoders))
