"""From a name to a decoder: the only place that knows all names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from gpu_decoder.protocol import Decoder, GlobalDecoder

if TYPE_CHECKING:
    from gpu_decoder.ising.config import PredecoderConfig

NAMES: Final[dict[str, GlobalDecoder]] = {
    "pymatching": GlobalDecoder.PYMATCHING,
    "pymatching_corr": GlobalDecoder.PYMATCHING_CORR,
}
"""Decoder names of scenario files and the code each executes."""


def build_decoder(
    kind: str,
    dem_text: str,
    *,
    sliding: tuple[int, int] | None = None,
    predecoder: PredecoderConfig | None = None,
) -> Decoder:
    """Build the decoder called ``kind`` for a detector error model.

    Args:
        kind: a name of ``NAMES``.
        dem_text: stim detector error model.
        sliding: rounds that a window commits and rounds that it looks ahead; ``None`` decodes a
            shot as a whole.
        predecoder: what runs before the matcher ``kind``; ``None``: nothing does.

    Raises:
        ValueError: ``kind`` is not in ``NAMES``, or the model does not suit it, or the pre-decoder
            does not suit the circuit (``WeightsError``, ``ModelMismatchError``).
        RuntimeUnavailable: the pre-decoder's package, driver or device is missing.
        EngineError: the pre-decoder's runtime cannot execute as requested.
    """
    if kind not in NAMES:
        raise ValueError(f"unknown decoder {kind!r}, allowed: {', '.join(sorted(NAMES))}")
    if predecoder is not None:
        if sliding is not None:
            raise ValueError("a pre-decoder with sliding windows, allowed: whole shots")
        from gpu_decoder.ising.config import build_predecoder
        from gpu_decoder.ising.pipeline import IsingDecoder

        return IsingDecoder(
            dem_text,
            build_predecoder(predecoder, dem_text),
            correlated=kind == "pymatching_corr",
            requested=(predecoder.backend, predecoder.precision),
        )
    if sliding is not None:
        if kind != "pymatching":
            raise ValueError(f"{kind} does not decode sliding windows, allowed: pymatching")
        from gpu_decoder.windowed import SlidingMatching

        return SlidingMatching(dem_text, commit=sliding[0], buffer=sliding[1])
    from gpu_decoder.matching import MatchingDecoder

    return MatchingDecoder(dem_text, correlated=kind == "pymatching_corr")
