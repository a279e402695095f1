"""From a name to a decoder: the only place that knows all names."""

from __future__ import annotations

from typing import Final

from gpu_decoder.protocol import Decoder, GlobalDecoder

NAMES: Final[dict[str, GlobalDecoder]] = {
    "pymatching": GlobalDecoder.PYMATCHING,
    "pymatching_corr": GlobalDecoder.PYMATCHING_CORR,
}
"""Decoder names of scenario files and the code each executes."""


def build_decoder(kind: str, dem_text: str) -> Decoder:
    """Build the decoder called ``kind`` for a detector error model.

    Raises:
        ValueError: ``kind`` is not in ``NAMES``, or the model does not suit it.
    """
    if kind not in NAMES:
        raise ValueError(f"unknown decoder {kind!r}, allowed: {', '.join(sorted(NAMES))}")
    from gpu_decoder.matching import MatchingDecoder

    return MatchingDecoder(dem_text, correlated=kind == "pymatching_corr")
