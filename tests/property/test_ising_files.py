"""Damaged weights files and models are refused by name, or harmless; nothing else happens."""

from __future__ import annotations

import tempfile
from functools import lru_cache
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_decoder.ising.geometry import ORIENTATIONS, geometry
from gpu_decoder.ising.network import CHANNELS
from gpu_decoder.ising.onnx_model import (
    ModelInfo,
    ModelMismatchError,
    build_onnx,
    parity_terms,
    read_info,
)
from gpu_decoder.ising.tensors import Layout
from gpu_decoder.ising.weights import WeightsError, load_weights

FILE = Path(__file__).parents[1] / "data" / "ising_e2e" / "custom16_random_fp16.safetensors"
HEADER = 1500
"""Bytes of the file that hold its header, and a little more."""
EDITS = st.lists(st.tuples(st.integers(0, HEADER), st.integers(0, 255)), min_size=1, max_size=4)


def damaged(data: bytes, edits: list[tuple[int, int]], end: int | None) -> bytes:
    spoiled = bytearray(data)
    for at, value in edits:
        spoiled[at] = value
    return bytes(spoiled[:end])


@settings(max_examples=200, deadline=None)
@given(EDITS, st.none() | st.integers(0, 35_000))
def test_damaged_weights(edits: list[tuple[int, int]], end: int | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        _load(Path(folder) / "w.safetensors", edits, end)


def _load(path: Path, edits: list[tuple[int, int]], end: int | None) -> None:
    path.write_bytes(damaged(FILE.read_bytes(), edits, end))
    refused, found = None, None
    try:
        found = load_weights(path)
    except WeightsError as error:
        refused = str(error)
    if found is None:
        assert refused is not None
        assert refused.startswith(f"{path}: ")
    else:
        assert all(np.isfinite(w).all() and np.isfinite(b).all() for w, b in found.layers)


@lru_cache(maxsize=1)
def _model() -> bytes:
    return build_onnx(load_weights(FILE), Layout(geometry(3, "XV"), 2, "X"))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damaged_models(data: st.DataObject) -> None:
    whole = _model()
    place = st.integers(-HEADER, HEADER)  # names and metadata lie at both ends
    edits = data.draw(st.lists(st.tuples(place, st.integers(0, 255)), min_size=1, max_size=4))
    end = data.draw(st.none() | st.integers(0, len(whole)))
    try:
        found = read_info(damaged(whole, edits, end))
    except ModelMismatchError:
        return
    assert isinstance(found, ModelInfo)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(ORIENTATIONS), st.sampled_from(["X", "Z"]), st.sampled_from([3, 5]),
    st.integers(2, 6), st.booleans(), st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_parity_terms_are_the_residual(
    orientation: str, basis: str, d: int, rounds: int, keep_last: bool, seed: int
) -> None:
    """The gather of the ONNX graph says what the numpy form says, whatever the network fires."""
    layout = Layout(geometry(d, orientation), rounds, "X" if basis == "X" else "Z", keep_last)
    rng = np.random.default_rng(seed)
    dets = rng.integers(0, 2, (8, layout.n_detectors), dtype=np.uint8)
    bits = rng.integers(0, 2, (8, *layout.shape), dtype=np.uint8)
    terms, frame = parity_terms(layout)
    assert terms.shape == (7, layout.n_detectors)
    flat = bits.reshape(8, -1)
    assert flat.shape[1] == CHANNELS * rounds * d * d
    pool = np.concatenate([dets, flat, np.zeros((8, 1), np.uint8)], axis=1)
    residual = pool[:, terms].sum(axis=1) & 1
    flip = flat[:, frame].sum(axis=1) & 1
    expected = layout.residual(dets, bits)
    np.testing.assert_array_equal(np.column_stack([flip, residual]), expected)
