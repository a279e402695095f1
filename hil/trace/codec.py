"""Chunks as bytes: shuffle and deflate done here, so that whole chunks enter a file ready made.

The bytes are what the HDF5 filters ``shuffle`` and ``deflate`` (gzip) read: a zlib stream over the
byte planes of the values. Doing it outside of HDF5 buys three things: the global HDF5 lock is not
held while compressing, a column of one value costs nothing after its first chunk, and the deflate
strategy suits the column (figures in ``docs/trace.md``).
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from hil.trace.column import Array, Column

SHUFFLE_BIT: Final = 1
"""Bit of the chunk's filter mask that says: the shuffle (first filter) was skipped."""


@dataclass(frozen=True, slots=True)
class Encoding:
    """How chunks of a column are compressed (all forms are read by any zlib).

    Attributes:
        shuffle: byte planes instead of values.
        strategy: zlib strategy: default for counters and grids (long repeats), RLE for measured
            times (runs in the high planes, noise in the low ones), Huffman only for detection
            events (sparse independent bits, no repeats to find).
    """

    shuffle: bool
    strategy: int


def encoding_of(column: Column) -> Encoding:
    """Encoding that suits the column."""
    dtype = column.numpy_dtype
    if column.width in ("shot_detectors", "round_detectors"):
        return Encoding(shuffle=False, strategy=zlib.Z_HUFFMAN_ONLY)
    if dtype.kind == "S":
        return Encoding(shuffle=False, strategy=zlib.Z_DEFAULT_STRATEGY)
    noisy = column.volatile != "no" or dtype.itemsize == 1 or dtype.kind == "f"
    return Encoding(
        shuffle=dtype.itemsize > 1,
        strategy=zlib.Z_RLE if noisy else zlib.Z_DEFAULT_STRATEGY,
    )


def encode(array: Array, encoding: Encoding) -> bytes:
    """Compressed chunk of a C-contiguous array, deflate level 1."""
    if encoding.shuffle:
        planes = array.reshape(-1).view(np.uint8).reshape(-1, array.itemsize)
        raw: Any = np.ascontiguousarray(planes.T)
    else:
        raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    deflate = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS, 9, encoding.strategy)
    return deflate.compress(raw) + deflate.flush()


def decode(data: bytes, dtype: np.dtype[Any], shape: tuple[int, ...], *, shuffle: bool) -> Array:
    """Array of a compressed chunk.

    Args:
        data: bytes of the chunk as stored.
        dtype: little-endian dtype of one value.
        shape: shape of the whole chunk.
        shuffle: whether the bytes are byte planes.

    Returns:
        Array of ``shape``, read-only where no reordering was needed.

    Raises:
        zlib.error, ValueError: the bytes are damaged.
    """
    raw = np.frombuffer(zlib.decompress(data), np.uint8)
    if shuffle:
        raw = np.ascontiguousarray(raw.reshape(dtype.itemsize, -1).T)
    return raw.reshape(-1).view(dtype).reshape(shape)


def constant(array: Array) -> bool:
    """Whether all rows are equal (looks at stride 0 first, then at the values)."""
    if len(array) < 2 or array.strides[0] == 0:
        return True
    first = array[0]
    if np.any(array[-1] != first) or np.any(array[len(array) // 2] != first):
        return False
    return bool(np.all(array == first))
