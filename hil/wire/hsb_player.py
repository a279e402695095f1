"""Memories of NVIDIA's sensor bridge: what its player sends, what its logic analyser recorded.

Player: 512 beats of 64 bytes; the 32-bit little-endian word ``i`` of beat ``s`` lies at
``i * 2048 + 4 * s``. Analyser: up to 8192 samples of 585 bits in 19 banks of 32-bit words, least
significant word in bank 0: data [511:0], valid 512, last 513, index of the last valid byte
[520:514], PTP {seconds, nanoseconds} [584:521]. Facts: HSB ``data_gen/ram_player.sv`` and a
recorded sample (revision 1a1febe).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hil.errors import WireError
from hil.wire.ecb import Pair

BEAT_BYTES: Final = 64
RAM_BEATS: Final = 512
WORDS_PER_BEAT: Final = 16
WORD_STRIDE: Final = 2048
ILA_BANKS: Final = 19
ILA_SAMPLES: Final = 8192
ILA_BANK_STRIDE: Final = 0x8000


def player_words(frames: NDArray[np.uint8]) -> list[Pair]:
    """Offset and value of every word that the player's memory must hold.

    Args:
        frames: uint8 [n, L], windows of one length, a multiple of 64.

    Raises:
        WireError: they do not fill whole beats, or more than there are.
    """
    n, length = frames.shape
    beats = n * length // BEAT_BYTES
    if not n or length % BEAT_BYTES or not 0 < beats <= RAM_BEATS:
        raise WireError(
            "windows do not fit the player",
            got=f"{n} windows of {length} bytes",
            allowed=f"whole beats of {BEAT_BYTES} bytes, at most {RAM_BEATS}",
            fix="play fewer shots at a time",
        )
    words = np.ascontiguousarray(frames).view("<u4").reshape(beats, WORDS_PER_BEAT)
    return [
        (i * WORD_STRIDE + 4 * s, int(words[s, i]))
        for i in range(WORDS_PER_BEAT)
        for s in range(beats)
    ]


@dataclass(frozen=True)
class Samples:
    """What the analyser saw, one row per beat.

    Attributes:
        data: uint8 [n, 64].
        valid, last: bool [n].
        n_bytes: int64 [n], valid bytes of the beat.
        ptp_ns: int64 [n], time of the beat.
    """

    data: NDArray[np.uint8]
    valid: NDArray[np.bool_]
    last: NDArray[np.bool_]
    n_bytes: NDArray[np.int64]
    ptp_ns: NDArray[np.int64]

    def frames(self) -> list[tuple[int, bytes]]:
        """Time of the first beat and bytes of every frame that is there as a whole."""
        out: list[tuple[int, bytes]] = []
        begin, parts = 0, bytearray()
        for k in np.flatnonzero(self.valid).tolist():
            if not parts:
                begin = int(self.ptp_ns[k])
            parts += self.data[k, : self.n_bytes[k]].tobytes()
            if self.last[k]:
                out.append((begin, bytes(parts)))
                parts = bytearray()
        return out


def parse_samples(words: NDArray[np.uint32]) -> Samples:
    """Decode u4[19, n], bank by bank."""
    if words.ndim != 2 or words.shape[0] != ILA_BANKS:
        raise WireError("not the banks of the analyser", got=str(words.shape), allowed="(19, n)")
    data = np.ascontiguousarray(words[:16].T).astype("<u4").view(np.uint8)
    flags = words[16].astype(np.uint64) | words[17].astype(np.uint64) << np.uint64(32)
    stamp = flags >> np.uint64(9) | words[18].astype(np.uint64) << np.uint64(55)
    seconds, nanoseconds = (stamp >> np.uint64(32)), stamp & np.uint64(0xFFFFFFFF)
    return Samples(
        data,
        (flags & np.uint64(1)) != 0,
        (flags & np.uint64(2)) != 0,
        ((flags >> np.uint64(2)) & np.uint64(0x7F)).astype(np.int64) + 1,
        (seconds * np.uint64(10**9) + nanoseconds).astype(np.int64),
    )
