"""Exchange formats: recorded bytes, layouts, and everything that must be refused."""

from __future__ import annotations

import json
import logging
import struct
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpu_decoder.edges import edge_matrices
from gpu_decoder.ising.geometry import geometry
from gpu_decoder.ising.noise import Ising25, IsingScalar
from hil.errors import HilError, TraceError, UsageError
from hil.trace.exchange.ising_binary import open_binary, write_binary
from hil.trace.exchange.ising_samples import STRICT_NOISE, Experiment, open_samples, write_samples
from hil.trace.exchange.shots import Shots, pack

EXPERIMENT = Experiment(geometry(3, "XV"), 2, "X", Ising25.from_p(0.003))
N = EXPERIMENT.n_detectors
MODEL = "error(0.1) D0 D1\nerror(0.1) D1 D2 L0\n"


def three_shots() -> Shots:
    bits = np.zeros((3, N), np.uint8)
    bits[0, [0, 3]] = bits[2, 15] = 1
    return Shots(pack(bits), np.array([[0], [0], [1]], np.uint8))


# -- samples ------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "samples"
    assert write_samples(place, EXPERIMENT, [three_shots()]) == 3
    return place


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "metadata_X.json"
    document = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in document.items() if v is not ...}))


def test_what_samples_look_like(folder: Path) -> None:
    assert (folder / "samples_X.dets").read_text() == "shot D0 D3\nshot\nshot D15 L0\n"
    document = json.loads((folder / "metadata_X.json").read_text())
    assert document.pop("noise_model_params") == Ising25.from_p(0.003).document()
    assert document == {
        "schema_version": 2, "artifact": "stim_detector_samples", "format": "dets",
        "append_observables": True, "distance": 3, "n_rounds": 2, "basis": "X",
        "code_rotation": "XV", "num_detectors": 16, "num_observables": 1, "num_shots": 3,
        "noise_model": "25-param",
        "noise_model_sha256": "94753bfb8ff82aaccfb9a4bab40f1c8e1f565d05cb9c78bff8acab3389b27d7a",
    }  # fmt: skip


@pytest.mark.parametrize(
    "layout", [("X/samples.dets", "X/metadata.json"), ("samples.dets", "metadata.json")]
)
def test_other_layouts(folder: Path, layout: tuple[str, str]) -> None:
    (folder / "X").mkdir()
    (folder / "samples_X.dets").rename(folder / layout[0])
    (folder / "metadata_X.json").rename(folder / layout[1])
    assert sum(map(len, open_samples(folder, EXPERIMENT).batches())) == 3


def test_both_bases_in_one_folder_and_nothing_overwritten(folder: Path) -> None:
    other = Experiment(geometry(3, "XV"), 2, "Z")
    write_samples(folder, other, [three_shots()])
    assert open_samples(folder, other).noise_checked is False
    with pytest.raises(UsageError, match="exists already"):
        write_samples(folder, other, [three_shots()])


def test_names_of_orientations_and_old_schemas(folder: Path) -> None:
    edit(folder, code_rotation="O1", schema_version=..., artifact=..., unknown_key=[1])
    assert open_samples(folder, EXPERIMENT).noise_checked


STRUCTURE: list[tuple[str, Any]] = [
    ("schema_version", 3), ("schema_version", "2"), ("schema_version", True),
    ("artifact", "shots"), ("artifact", ...), ("format", "b8"), ("append_observables", False),
    ("distance", 5), ("distance", True), ("n_rounds", 3), ("n_rounds", 2.0), ("basis", "Z"),
    ("code_rotation", "XH"), ("code_rotation", "O2"), ("code_rotation", ...), ("code_rotation", []),
    ("num_detectors", 24), ("num_observables", 2), ("num_shots", -1), ("num_shots", ...),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), STRUCTURE)
def test_another_structure_is_refused(folder: Path, key: str, value: Any) -> None:
    edit(folder, **{key: value})
    with pytest.raises(TraceError, match=f"do not fit the circuit: {key}") as refused:
        open_samples(folder, EXPERIMENT, strict_noise=False)
    assert refused.value.where.endswith("metadata_X.json")
    assert refused.value.got
    assert refused.value.allowed


OTHER_NOISE: list[dict[str, Any]] = [
    {"noise_model": "simple"}, {"noise_model": 3}, {"noise_model_sha256": "00"},
    {"noise_model_params": Ising25.from_p(0.006).document()},
    {"noise_model_params": Ising25.from_p(0.006).document(), "noise_model_sha256": ...},
    {"noise_model_params": {"p": 1}}, {"noise_model_params": "x"},
    {"noise_model_params": ..., "noise_model_sha256": ..., "p_error": 0.006},
    {"noise_model_params": ..., "noise_model_sha256": ..., "p_error": "much"},
]  # fmt: skip


@pytest.mark.parametrize("changes", OTHER_NOISE)
def test_other_noise(
    folder: Path,
    changes: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    edit(folder, **changes)
    with pytest.raises(TraceError, match=r"do not fit the circuit: (noise_model|p_error)"):
        open_samples(folder, EXPERIMENT)
    monkeypatch.setenv(STRICT_NOISE, "0")
    with caplog.at_level(logging.WARNING, "hil.exchange"):
        assert open_samples(folder, EXPERIMENT).noise_checked is False
    assert "noise is not strict" in caplog.text
    with pytest.raises(TraceError):
        open_samples(folder, EXPERIMENT, strict_noise=True)


def test_noise_named_by_its_strength_or_not_at_all(folder: Path, tmp_path: Path) -> None:
    edit(folder, noise_model_params=..., noise_model_sha256=..., p_error=0.003)
    assert open_samples(folder, EXPERIMENT).noise_checked
    edit(folder, p_error=..., noise_model=...)
    assert not open_samples(folder, EXPERIMENT).noise_checked
    scalar = Experiment(geometry(3, "XV"), 2, "X", IsingScalar(0.003))
    write_samples(tmp_path / "scalar", scalar, [three_shots()])
    assert open_samples(tmp_path / "scalar", scalar).noise_checked
    with pytest.raises(TraceError, match="noise_model"):
        open_samples(tmp_path / "scalar", EXPERIMENT)


BAD_LINES = [
    b"shot D0\nshot D16\nshot\n", b"shot\nshot L1\nshot\n", b"shot\nshot D1 D1\nshot\n",
    b"shot\nD1\nshot\n", b"shot\nshot M1\nshot\n", b"shot\nshot  D1\nshot\n",
    b"shot\nshot D01\nshot\n", b"shot\nshot D99999999999999999999\nshot\n",
    b"shot\n\nshot\n", b"shot\nshot" + b" D1" * 1_000_000 + b"\n",
    b"shot\nshot D1", b"shot\nshot D-1\n",
    b"shot\n\xff\n",
]  # fmt: skip


@pytest.mark.parametrize("text", BAD_LINES)
def test_bad_lines_are_named(folder: Path, text: bytes) -> None:
    (folder / "samples_X.dets").write_bytes(text)
    with pytest.raises(TraceError) as refused:
        list(open_samples(folder, EXPERIMENT).batches())
    assert refused.value.where.endswith("samples_X.dets:2")
    assert len(refused.value.got) < 100


@pytest.mark.parametrize(("text", "got"), [("shot\n" * 2, "2"), ("shot\n" * 4, "more than 3")])
def test_another_number_of_shots(folder: Path, text: str, got: str) -> None:
    (folder / "samples_X.dets").write_text(text)
    with pytest.raises(TraceError, match="another number of shots") as refused:
        list(open_samples(folder, EXPERIMENT).batches())
    assert (refused.value.got, refused.value.allowed) == (got, "3")


def test_missing_and_damaged_samples(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="no samples of basis Z"):
        open_samples(folder, Experiment(geometry(3, "XV"), 2, "Z"))
    for text in ("{", "[]", "[" * 100_000, "\x00"):
        (folder / "metadata_X.json").write_text(text)
        with pytest.raises(TraceError, match=r"JSON|no metadata"):
            open_samples(folder, EXPERIMENT)
    (folder / "metadata_X.json").unlink()
    with pytest.raises(TraceError, match="half of a set"):
        open_samples(folder, EXPERIMENT)
    with pytest.raises(TraceError, match="no samples"):
        open_samples(tmp_path / "nowhere", EXPERIMENT)


def broken() -> Iterator[Shots]:
    yield three_shots()
    raise RuntimeError("the source broke")


def wrong_width() -> Iterator[Shots]:
    yield three_shots()
    yield Shots(np.zeros((1, 9), np.uint8), np.zeros((1, 1), np.uint8))


@pytest.mark.parametrize("source", [broken, wrong_width])
def test_nothing_is_left_of_a_failed_write(
    tmp_path: Path, source: Callable[[], Iterator[Shots]]
) -> None:
    for write in (
        lambda: write_samples(tmp_path / "a", EXPERIMENT, source()),
        lambda: write_binary(tmp_path / "a", source(), n_detectors=N, n_observables=1),
    ):
        with pytest.raises((RuntimeError, UsageError)):
            write()
        assert list(tmp_path.iterdir()) == []


# -- binary set ---------------------------------------------------------------------------------


@pytest.fixture
def binary(tmp_path: Path) -> Path:
    place = tmp_path / "binary"
    bits = np.array([[1, 0, 0], [0, 1, 1]], np.uint8)
    observables = np.array([[0], [1]], np.uint8)
    outputs = np.hstack([observables, bits])
    batch = Shots(pack(bits), observables, observables, outputs)
    write_binary(
        place, [batch], n_detectors=3, n_observables=1, edges=edge_matrices(MODEL),
        metadata={"basis": "X"},
    )  # fmt: skip
    return place


def test_bytes_of_the_binary_set(binary: Path) -> None:
    """Byte by byte as the format's description has it."""
    expected = {
        "detectors.bin": "0200000003000000 010000000000000000000000 000000000100000001000000",
        "observables.bin": "0200000001000000 00000000 01000000",
        "pymatching_predictions.bin": "0200000001000000 00000000 01000000",
        "predecoder_outputs.bin": "0200000004000000 00010000 01000101",
        "H_csr.bin": "03000000 02000000 04000000 00000000 01000000 03000000 04000000"
        "00000000 00000000 01000000 01000000",
        "O_csr.bin": "01000000 02000000 01000000 00000000 01000000 01000000",
        "priors.bin": "02000000" + struct.pack("<2d", 0.1, 0.1).hex(),
        "metadata.txt": b"basis=X\nnum_shots=2\nnum_detectors=3\nnum_observables=1\n".hex(),
    }
    assert {p.name: p.read_bytes() for p in binary.iterdir()} == {
        name: bytes.fromhex(text) for name, text in expected.items()
    }


def test_the_smallest_set(binary: Path) -> None:
    for name in ("pymatching_predictions", "predecoder_outputs", "H_csr", "O_csr", "priors"):
        (binary / f"{name}.bin").unlink()
    opened = open_binary(binary)
    (shots,) = opened.batches()
    assert (shots.predictions_b8, shots.predecoded, opened.edges) == (None, None, None)


def word(index: int, value: int) -> Callable[[bytes], bytes]:
    return lambda raw: raw[: 4 * index] + struct.pack("<I", value) + raw[4 * index + 4 :]


def cut(raw: bytes) -> bytes:
    return raw[:-1]


def more(raw: bytes) -> bytes:
    return raw + b"\0"


DAMAGE: list[tuple[str, Callable[[bytes], bytes], str]] = [
    *((f"{name}.bin", change, what)
      for name in ("detectors", "observables", "pymatching_predictions", "predecoder_outputs",
                   "H_csr", "O_csr", "priors")
      for change, what in ((cut, "truncated"), (more, "trailing bytes"),
                           (lambda raw: raw[:3], "truncated header"),
                           (word(0, 0xFFFFFFFF), "truncated"))),
    ("detectors.bin", word(1, 0xFFFFFFFF), "truncated"),
    ("detectors.bin", lambda raw: word(0, 3)(word(1, 2)(raw)), "disagrees"),
    ("observables.bin", lambda raw: word(0, 1)(word(1, 2)(raw)), "disagrees"),
    ("pymatching_predictions.bin", lambda raw: word(0, 1)(word(1, 2)(raw)), "disagrees"),
    ("predecoder_outputs.bin", lambda raw: word(0, 4)(word(1, 2)(raw)), "disagrees"),
    ("detectors.bin", word(2, 2), "not a bit"),
    ("observables.bin", word(3, 0xFFFFFFFF), "not a bit"),
    ("predecoder_outputs.bin", lambda raw: raw[:-1] + b"\x02", "not a bit"),
    ("H_csr.bin", word(1, 3), "disagrees"),
    ("O_csr.bin", word(1, 3), "disagrees"),
    ("H_csr.bin", word(3, 1), "indptr"),
    ("H_csr.bin", word(4, 9), "indptr"),
    ("H_csr.bin", word(7, 2), "beyond the columns"),
    ("H_csr.bin", word(7, 0xFFFFFFFF), "beyond the columns"),
    ("H_csr.bin", word(9, 0), "named twice"),
    ("priors.bin", lambda raw: raw[:4] + struct.pack("<2d", 0.1, 1.5), "not a probability"),
    ("priors.bin", lambda raw: raw[:4] + struct.pack("<2d", 0.1, float("nan")), "not a prob"),
    ("metadata.txt", lambda raw: raw + b"no equals sign\n", "key=value"),
    ("metadata.txt", lambda raw: raw + b"basis=Z\n", "key=value"),
    ("metadata.txt", lambda raw: raw + b"\xff\n", "cannot be read"),
    ("metadata.txt", lambda raw: raw.replace(b"num_shots=2", b"num_shots=3"), "disagree"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "change", "what"), DAMAGE)
def test_damage_is_refused(
    binary: Path, name: str, change: Callable[[bytes], bytes], what: str
) -> None:
    path = binary / name
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(TraceError, match=what) as refused:
        list(open_binary(binary).batches())
    assert name in refused.value.where or what == "disagrees"  # names the other file of the two


def test_a_large_set_is_mapped_not_loaded(tmp_path: Path) -> None:
    """10,000 shots of distance 13 in 104 rounds: the size that NVIDIA states, in little memory."""
    columns = 17_472
    for name, width in (("detectors", columns), ("observables", 1)):
        with (tmp_path / f"{name}.bin").open("wb") as handle:
            handle.write(struct.pack("<2I", 10_000, width))
            handle.truncate(8 + 4 * 10_000 * width)
    (tmp_path / "metadata.txt").touch()
    assert (tmp_path / "detectors.bin").stat().st_size == 698_880_008
    tracemalloc.start()
    batches = open_binary(tmp_path).batches()
    assert [next(batches).detectors_b8.shape[1] for _ in range(2)] == [columns // 8] * 2
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6


@pytest.mark.parametrize(
    "name", ["detectors.bin", "observables.bin", "priors.bin", "O_csr.bin", "metadata.txt"]
)
def test_missing_files(binary: Path, name: str) -> None:
    (binary / name).unlink()
    with pytest.raises(TraceError, match="cannot be read"):
        open_binary(binary)


def test_what_cannot_be_written(tmp_path: Path) -> None:
    shots = three_shots()
    mixed = [Shots(shots.detectors_b8, shots.observables_b8, shots.observables_b8), shots]
    cases: list[tuple[Any, dict[str, str], str]] = [
        ([], {}, "no shots"),
        (mixed, {}, "does not fit: pymatching_predictions"),
        ([shots], {"a=b": "c"}, "key=value"),
        ([shots], {"a": "c\nd=e"}, "key=value"),
    ]
    for batches, metadata, what in cases:
        with pytest.raises(HilError, match=what):
            write_binary(tmp_path / "a", batches, n_detectors=N, n_observables=1, metadata=metadata)
        assert list(tmp_path.iterdir()) == []
