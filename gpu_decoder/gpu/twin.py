"""Numpy twins of the kernels in ``kernels.cu``: the same names, arguments and bits."""

from __future__ import annotations

import numpy as np

from gpu_decoder.gpu.slots import DetectorTable, U64Array
from gpu_decoder.protocol import U8Array


def form_detectors(memory: U8Array, message_at: U64Array, table: DetectorTable) -> U8Array:
    """Detection events of a batch of shots from the messages in receive memory.

    Args:
        memory: uint8 [bytes], receive memory.
        message_at: uint64 [n, pieces], byte offset of each message in it.
        table: bits of each detector.

    Returns:
        uint8 [n, N], 0 or 1.
    """
    at = message_at[:, table.row_piece] + (table.row_bit >> 3)
    bits = memory[at] >> (table.row_bit & 7).astype(np.uint8) & 1
    sums = np.zeros((len(message_at), bits.shape[1] + 1), dtype=np.uint8)
    np.cumsum(bits, axis=1, dtype=np.uint8, out=sums[:, 1:])  # modulo 256 keeps the parity
    parity: U8Array = sums[:, table.row_start[1:]] - sums[:, table.row_start[:-1]]
    return parity & np.uint8(1)


def pack_output(output: U8Array) -> tuple[U8Array, U8Array, U8Array]:
    """Output of the engine, packed for the matcher.

    Args:
        output: uint8 [n, 1 + N]: flip of the observable, residual detectors.

    Returns:
        uint8 [n, ceil(N/8)] residual, LSB first; uint8 [n] flips of the observable; uint8 [n] 1
        where a value of the shot is neither 0 nor 1.
    """
    residual = np.packbits(output[:, 1:] & np.uint8(1), axis=1, bitorder="little")
    invalid: U8Array = (output.max(axis=1) > 1).astype(np.uint8)
    return residual, output[:, 0].copy(), invalid
