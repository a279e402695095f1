"""What is written is read back, for any bits."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
import stim
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_decoder.edges import edge_matrices
from gpu_decoder.ising.geometry import geometry
from gpu_decoder.ising.noise import Ising25, IsingScalar
from gpu_decoder.protocol import U8Array
from hil.errors import TraceError
from hil.seeds import generator
from hil.trace.exchange import shots as shots_module
from hil.trace.exchange import stim_dets
from hil.trace.exchange.ising_binary import open_binary, write_binary
from hil.trace.exchange.ising_samples import Experiment, open_samples, write_samples
from hil.trace.exchange.shots import Shots, pack

EXPERIMENTS = [
    Experiment(geometry(3, "XV"), 2, "X", Ising25.from_p(0.003)),
    Experiment(geometry(3, "ZH"), 3, "Z", IsingScalar(0.006)),
    Experiment(geometry(5, "XH"), 2, "X"),
]


def random_bits(seed: int, rows: int, columns: int, density: float) -> U8Array:
    return (generator(seed, "exchange").random((rows, columns)) < density).astype(np.uint8)


def joined(batches: list[Shots], name: str) -> U8Array:
    return np.concatenate([getattr(batch, name) for batch in batches])


@given(
    st.integers(0, 2**32), st.integers(0, 40), st.floats(0, 1),
    st.sampled_from(EXPERIMENTS), st.integers(1, 2_000),
)  # fmt: skip
@settings(max_examples=50, deadline=None)
def test_samples(seed: int, n: int, density: float, experiment: Experiment, batch: int) -> None:
    bits = random_bits(seed, n, experiment.n_detectors + 1, density)
    written = Shots(pack(bits[:, :-1]), pack(bits[:, -1:]))
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(shots_module, "BATCH_BYTES", batch)
        assert write_samples(Path(folder), experiment, [written] if n else []) == n
        samples = open_samples(Path(folder), experiment)
        assert samples.n_shots == n
        assert samples.noise_checked == (experiment.noise is not None)
        read = list(samples.batches())
    if n:
        np.testing.assert_array_equal(joined(read, "detectors_b8"), written.detectors_b8)
        np.testing.assert_array_equal(joined(read, "observables_b8"), written.observables_b8)
        assert max(map(len, read)) <= max(1, batch // (experiment.n_detectors + 1))


@given(st.integers(0, 2**32), st.integers(1, 30), st.integers(1, 40), st.integers(0, 9))
@settings(max_examples=30, deadline=None)
def test_dets_are_those_of_stim(seed: int, n: int, n_detectors: int, n_observables: int) -> None:
    bits = random_bits(seed, n, n_detectors + n_observables, 0.3)
    batch = Shots(pack(bits[:, :n_detectors]), pack(bits[:, n_detectors:]))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "a.dets")
        stim.write_shot_data_file(
            data=bits.astype(np.bool_), path=file, format="dets",
            num_detectors=n_detectors, num_observables=n_observables,
        )  # fmt: skip
        assert stim_dets.encode(batch, n_detectors, n_observables) == file.read_bytes()
        (read,) = stim_dets.read(file, n_detectors, n_observables)
    np.testing.assert_array_equal(read.detectors_b8, batch.detectors_b8)
    np.testing.assert_array_equal(read.observables_b8, batch.observables_b8)


@given(
    st.integers(0, 2**32), st.integers(1, 40), st.integers(1, 30), st.integers(1, 9),
    st.booleans(), st.booleans(), st.integers(1, 300), st.integers(1, 41),
)  # fmt: skip
@settings(max_examples=30, deadline=None)
def test_binary(
    seed: int, n: int, d: int, o: int, predicted: bool, predecoded: bool, batch: int, chunk: int
) -> None:
    def random(columns: int) -> U8Array:
        return random_bits(seed + columns, n, columns, 0.3)

    written = Shots(
        pack(random(d)), pack(random(o)),
        pack(random(o)) if predicted else None, random(d + 1) if predecoded else None,
    )  # fmt: skip
    parts = [
        Shots(*(None if a is None else a[k : k + chunk] for a in columns(written)))  # type: ignore[arg-type]
        for k in range(0, n, chunk)
    ]
    model = f"error(0.1) D0\nerror(0.2) D{d - 1} L{o - 1}\nerror(0.05) D0 D{d - 1}\n"
    edges = edge_matrices(model) if d > 1 else None
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(shots_module, "BATCH_BYTES", batch)
        place = Path(folder, "set")
        given_metadata = {"basis": "X", "note": "a=b"}
        count = write_binary(
            place, parts, n_detectors=d, n_observables=o, edges=edges, metadata=given_metadata
        )
        assert count == n
        opened = open_binary(place)
        read = list(opened.batches())
        assert (opened.n_shots, opened.n_detectors, opened.n_observables) == (n, d, o)
        assert opened.metadata.items() >= given_metadata.items()
        assert [p.name for p in Path(folder).iterdir()] == ["set"]
        assert not [p for p in place.iterdir() if p.name.startswith(".")]
    for name, column in zip(
        ("detectors_b8", "observables_b8", "predictions_b8", "predecoded"), columns(written),
        strict=True,
    ):  # fmt: skip
        if column is None:
            assert all(getattr(part, name) is None for part in read)
        else:
            np.testing.assert_array_equal(joined(read, name), column)
    if edges is None:
        assert opened.edges is None
    else:
        assert opened.edges is not None
        assert (opened.edges.checks != edges.checks).nnz == 0
        assert (opened.edges.observables != edges.observables).nnz == 0
        np.testing.assert_array_equal(opened.edges.priors, edges.priors)


def columns(shots: Shots) -> tuple[U8Array | None, ...]:
    return shots.detectors_b8, shots.observables_b8, shots.predictions_b8, shots.predecoded


@given(st.data())
@settings(max_examples=120, deadline=None)
def test_mutated_dets_are_read_or_refused(data: st.DataObject) -> None:
    """Whatever is not refused is what the lines say, by a reader of one line at a time."""
    text = bytearray(b"shot D0 D3\nshot D8 L0\nshot\n")
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text) - 1))
        text[at : at + data.draw(st.integers(0, 1))] = data.draw(
            st.sampled_from([b"", b" ", b"\n", b"\r\n", b"D", b"L", b"1", b"0", b"s", b"shot"])
        )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "a.dets")
        file.write_bytes(text)
        try:
            read = list(stim_dets.read(file, 9, 1))
        except TraceError:
            return
    lines = text.decode().splitlines()
    assert sum(map(len, read)) == len(lines)
    for line, row in zip(lines, (row for batch in read for row in rows(batch)), strict=True):
        word, *tokens = line.split()
        assert word == "shot"
        assert {f"{'D' if i < 9 else 'L'}{i % 9}" for i in np.flatnonzero(row)} == set(tokens)
        assert len(tokens) == row.sum()


def rows(shots: Shots) -> U8Array:
    return np.hstack(
        [
            np.unpackbits(shots.detectors_b8, axis=1, count=9, bitorder="little"),
            np.unpackbits(shots.observables_b8, axis=1, count=1, bitorder="little"),
        ]
    )
