"""The primary decoder on a batch of a virtual run, shot by shot where its pre-decoder fails.

A pre-decoder that fails on a batch says only that some shot of it cannot be done. The batch is
halved until each failure belongs to one shot; that shot is given up for the reason that the error
carries and goes to the fallback, the others are answered as usual. Nothing is guessed: input that
the matching itself refuses ends the run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from gpu_decoder.protocol import DecodedBatch, PredecodeRecord, Reason
from gpu_decoder.runtime.protocol import EngineError
from gpu_decoder.turns import TurnDecoders
from hil.device.sampler import ShotBatch, event_counts
from hil.errors import DecoderError
from hil.rack.timeline import U8

Decode: TypeAlias = Callable[[ShotBatch], DecodedBatch]

Part: TypeAlias = tuple[ShotBatch, DecodedBatch | None, Reason]
"""Consecutive shots: their answers, or ``None`` and why there are none."""


@dataclass(frozen=True, slots=True)
class Tried:
    """What became of a batch.

    Attributes:
        decoded: answers; of shots that were given up 0, and their raw events as those left.
        failed: uint8 [n] ``Reason`` codes, 0 where the primary answered; ``None``: it always did.
    """

    decoded: DecodedBatch
    failed: U8 | None = None


def try_primary(decoders: TurnDecoders, batch: ShotBatch, decode: Decode) -> Tried:
    """Decode a batch, and tell which shots the primary gives up.

    Args:
        decoders: the primary.
        batch: the shots.
        decode: answers a batch or a part of it.

    Raises:
        DecoderError: the decoder refuses its input.
    """
    parts = _parts(batch, decode)
    if len(parts) == 1 and parts[0][1] is not None:
        return Tried(parts[0][1])
    failed = np.concatenate([np.full(b.n_shots, reason, np.uint8) for b, _, reason in parts])
    return Tried(_joined(decoders, parts), failed)


def _parts(batch: ShotBatch, decode: Decode) -> list[Part]:
    """Answers of the batch in as few parts as failures allow."""
    try:
        return [(batch, decode(batch), Reason.NONE)]
    except EngineError as error:
        if batch.n_shots == 1:
            return [(batch, None, error.reason)]
        half = batch.n_shots // 2
        first, second = batch.part(0, half), batch.part(half, batch.n_shots)
        return [*_parts(first, decode), *_parts(second, decode)]
    except ValueError as error:
        raise DecoderError(
            "the decoder refused a batch",
            where=f"shots {batch.first_shot} to {batch.first_shot + batch.n_shots - 1}",
            got=str(error),
        ) from error


def _joined(decoders: TurnDecoders, parts: list[Part]) -> DecodedBatch:
    """All parts as one batch."""
    width = -(-decoders.n_observables // 8)
    predictions = [
        np.zeros((b.n_shots, width), np.uint8) if decoded is None else decoded.predictions_b8
        for b, decoded, _ in parts
    ]
    records = [None if decoded is None else decoded.predecoded for _, decoded, _ in parts]
    known = next((record for record in records if record is not None), None)
    return DecodedBatch(
        np.concatenate(predictions),
        None,
        None,
        decoders.kind,
        predecoded=None if known is None else replace(known, residual_events=_left(parts, records)),
    )


def _left(parts: list[Part], records: list[PredecodeRecord | None]) -> np.ndarray:
    """int64 [n]: events left to the matching; of shots that were given up all of them."""
    return np.concatenate(
        [
            event_counts(part[0].detectors_b8) if record is None else record.residual_events
            for part, record in zip(parts, records, strict=True)
        ]
    )
