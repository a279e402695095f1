"""From a name to a decoder: the only place that knows all names."""

from __future__ import annotations

from typing import Final

from gpu_decoder.protocol import Decoder, GlobalDecoder

NAMES: Final[dict[str, GlobalDecoder]] = {
    "pymatching": GlobalDecoder.PYMATCHING,
    "pymatching_corr": GlobalDecoder.PYMATCHING_CORR,
}
"""Decoder names of scenario files and the code each executes."""


def build_decoder(kind: str, dem_text: str, *, sliding: tuple[int, int] | None = None) -> Decoder:
    """Build the decoder called ``kind`` for a detector error model.

    Args:
        kind: a name of ``NAMES``.
        dem_text: stim detector error model.
        sliding: rounds that a window commits and rounds that it looks ahead; ``None`` decodes a
            shot as a whole.

    Raises:
        ValueError: ``kind`` is not in ``NAMES``, or the model does not suit it.
    """
    if kind not in NAMES:
        raise ValueError(f"unknown decoder {kind!r}, allowed: {', '.join(sorted(NAMES))}")
    if sliding is not None:
        if kind != "pymatching":
            raise ValueError(f"{kind} does not decode sliding windows, allowed: pymatching")
        from gpu_decoder.windowed import SlidingMatching

        return SlidingMatching(dem_text, commit=sliding[0], buffer=sliding[1])
    from gpu_decoder.matching import MatchingDecoder

    return MatchingDecoder(dem_text, correlated=kind == "pymatching_corr")
