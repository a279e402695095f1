"""Datasets and attributes through h5py's low-level interface.

A trace has about 175 datasets and 500 attributes, made twice (live and final file); the high-level
forms cost two to four times as much for the same bytes in the file. Texts are variable-length
UTF-8 strings.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import h5py
import numpy as np
from h5py import h5a, h5d, h5ds, h5p, h5s, h5t

from hil.trace.column import Array

_TEXT: Final = h5py.string_dtype()
_SCALE_ATTRIBUTES: Final = frozenset(
    {b"CLASS", b"NAME", b"DIMENSION_LIST", b"REFERENCE_LIST", b"DIMENSION_LABELS"}
)


def create_column(
    group: h5py.Group,
    name: str,
    dtype: np.dtype[Any],
    *,
    rows: int,
    tail: tuple[int, ...],
    chunk: int,
    shuffle: bool,
    extensible: bool,
) -> h5py.Dataset:
    """Create a chunked, compressed dataset of shape [rows, *tail].

    Columns of the final file are not extensible: netCDF readers work out the size of an
    unlimited dimension from all its columns, for each of them again. An empty column of fixed
    size has no chunks.
    """
    settings = h5p.create(h5p.DATASET_CREATE)
    settings.set_obj_track_times(False)
    if rows or extensible:
        settings.set_chunk((chunk, *tail))
        if shuffle:
            settings.set_shuffle()
        settings.set_deflate(1)
    space = h5s.create_simple((rows, *tail), (h5s.UNLIMITED if extensible else rows, *tail))
    kind = h5t.py_create(dtype, logical=True)
    return h5py.Dataset(h5d.create(group.id, name.encode(), kind, space, settings))


def open_dataset(group: h5py.Group, path: str) -> h5py.Dataset:
    """Open a dataset below a group or file.

    Raises:
        KeyError: there is no such dataset.
    """
    return h5py.Dataset(h5d.open(group.id, path.encode()))


def attach_scale(dataset: h5py.Dataset, axis: int, scale: h5py.Dataset) -> None:
    """Make ``scale`` a dimension scale of one axis."""
    h5ds.attach_scale(dataset.id, scale.id, axis)


def write_attributes(target: h5py.HLObject, values: Mapping[str, Any]) -> None:
    """Create attributes (texts, numpy scalars and arrays) that do not exist yet."""
    for name, value in values.items():
        array = np.array(value, dtype=_TEXT) if isinstance(value, str) else np.asarray(value)
        _create(target, name.encode(), array)


def read_attributes(source: h5py.HLObject) -> dict[str, Array]:
    """All attributes but those that tie scales together, as arrays (texts: arrays of bytes)."""
    out: dict[str, Array] = {}
    for index in range(h5a.get_num_attrs(source.id)):
        attribute = h5a.open(source.id, index=index)
        if attribute.name not in _SCALE_ATTRIBUTES:
            array = np.empty(attribute.shape, dtype=attribute.dtype)
            attribute.read(array)
            out[attribute.name.decode()] = array
    return out


def copy_attributes(source: h5py.HLObject, target: h5py.HLObject) -> dict[str, Array]:
    """Copy all attributes but those that tie scales together; returns what was copied."""
    attributes = read_attributes(source)
    for name, array in attributes.items():
        _create(target, name.encode(), array)
    return attributes


def _create(target: h5py.HLObject, name: bytes, array: Array) -> None:
    kind = h5t.py_create(array.dtype, logical=True)
    space = h5s.create_simple(array.shape) if array.shape else h5s.create(h5s.SCALAR)
    h5a.create(target.id, name, kind, space).write(array)
