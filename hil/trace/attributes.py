"""Attributes through h5py's low-level interface: a trace has about 500, and each one counts.

The high-level form costs twice as much per attribute (it makes a temporary name and looks the
object up again); the result in the file is the same: texts are variable-length UTF-8 strings.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import h5py
import numpy as np
from h5py import h5a, h5s, h5t

_TEXT: Final = h5py.string_dtype()
_SCALE_ATTRIBUTES: Final = frozenset(
    {b"CLASS", b"NAME", b"DIMENSION_LIST", b"REFERENCE_LIST", b"DIMENSION_LABELS"}
)


def write_attributes(target: h5py.HLObject, values: Mapping[str, Any]) -> None:
    """Create attributes (texts, numpy scalars and arrays) that do not exist yet."""
    for name, value in values.items():
        array = np.array(value, dtype=_TEXT) if isinstance(value, str) else np.asarray(value)
        _create(target, name.encode(), array)


def copy_attributes(source: h5py.HLObject, target: h5py.HLObject) -> None:
    """Copy all attributes but those that tie scales together."""
    for index in range(h5a.get_num_attrs(source.id)):
        attribute = h5a.open(source.id, index=index)
        if attribute.name in _SCALE_ATTRIBUTES:
            continue
        array = np.empty(attribute.shape, dtype=attribute.dtype)
        attribute.read(array)
        _create(target, attribute.name, array)


def _create(target: h5py.HLObject, name: bytes, array: np.ndarray[Any, Any]) -> None:
    kind = h5t.py_create(array.dtype, logical=True)
    space = h5s.create_simple(array.shape) if array.shape else h5s.create(h5s.SCALAR)
    h5a.create(target.id, name, kind, space).write(array)
