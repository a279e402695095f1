"""The kernels: compiled for GPUs with NVRTC; executed on a CPU against their numpy twins.

Executed on a CPU: g++ compiles the same source with a loop for the thread index. The comparison on
a device is here as well and runs where there is one.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import stim
from hypothesis import given, settings
from hypothesis import strategies as st
from stand_ins import kernel_shim
from stand_ins.fake_cuda import PARAMETERS, FakeCuda

from gpu_decoder.gpu import twin
from gpu_decoder.gpu.compile import KERNELS, SOURCE, CompileError, compile_cubin, kernels_cubin
from gpu_decoder.gpu.driver import Driver
from gpu_decoder.gpu.graph import Stream
from gpu_decoder.gpu.kernels import DeviceTable, Kernels
from gpu_decoder.gpu.memory import DeviceBuffer
from gpu_decoder.gpu.slots import DetectorTable, Piece, detector_table, measurement_rows
from gpu_decoder.ising.circuit import memory_circuit
from gpu_decoder.ising.geometry import geometry
from gpu_decoder.ising.noise import IsingScalar
from hil.wire import rpc

PAYLOAD_AT = rpc.HEADER_BYTES + rpc.ENQUEUE_FIXED_BYTES


@st.composite
def tables(draw: st.DrawFn) -> DetectorTable:
    """Any record layout, any rows (empty and repeated bits too), any order."""
    pieces = draw(
        st.lists(st.builds(Piece, st.integers(0, 40), st.integers(0, 70)), min_size=1, max_size=6)
    )
    bits = sum(piece.bits for piece in pieces)
    entry = st.integers(0, max(bits - 1, 0))
    row = st.lists(entry, max_size=6 if bits else 0)
    rows = draw(st.one_of(st.none(), st.lists(row, min_size=1, max_size=40)))
    order = draw(st.permutations(range(bits if rows is None else len(rows))))
    return detector_table(pieces, rows, order)


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, DetectorTable]:
    table = draw(tables())
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    size = 200 + draw(st.integers(0, 500))
    shots = draw(st.integers(1, 5))
    memory = rng.integers(0, 256, size=size, dtype=np.uint8)
    last = [size - piece.end for piece in table.pieces]
    message_at = rng.integers(0, np.array(last) + 1, size=(shots, len(last))).astype(np.uint64)
    table.check_messages(message_at, size)
    return memory, message_at, table


def _slowly(memory: np.ndarray, message_at: np.ndarray, table: DetectorTable) -> np.ndarray:
    """The definition, bit by bit."""
    out = np.zeros((len(message_at), table.n_detectors), dtype=np.uint8)
    for shot, at in enumerate(message_at):
        for j in range(table.n_detectors):
            for k in range(table.row_start[j], table.row_start[j + 1]):
                bit = int(table.row_bit[k])
                byte = memory[int(at[table.row_piece[k]]) + bit // 8]
                out[shot, j] ^= byte >> (bit % 8) & 1
    return out


@settings(max_examples=50, deadline=None)
@given(cases())
def test_the_twin_follows_the_definition(
    case: tuple[np.ndarray, np.ndarray, DetectorTable],
) -> None:
    assert np.array_equal(twin.form_detectors(*case), _slowly(*case))


@pytest.mark.needs("gxx")
@settings(max_examples=100, deadline=None)
@given(cases())
def test_form_detectors_on_a_cpu_equals_its_twin(
    case: tuple[np.ndarray, np.ndarray, DetectorTable],
) -> None:
    got = kernel_shim.form_detectors(kernel_shim.build(), *case)
    assert np.array_equal(got, twin.form_detectors(*case))


OUTPUTS = st.tuples(st.integers(1, 5), st.integers(1, 70)).flatmap(
    lambda shape: hnp.arrays(
        np.uint8, (shape[0], 1 + shape[1]),
        elements=st.sampled_from([0, 0, 0, 1, 1, 1, 2, 255]),
    )
)  # fmt: skip


@pytest.mark.needs("gxx")
@settings(max_examples=100, deadline=None)
@given(OUTPUTS)
def test_pack_output_on_a_cpu_equals_its_twin(output: np.ndarray) -> None:
    got = kernel_shim.pack_output(kernel_shim.build(), output)
    for mine, its in zip(got, twin.pack_output(output), strict=True):
        assert np.array_equal(mine, its)


@pytest.mark.needs("gxx")
@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("bit & 7", "7 - (bit & 7)"),
        ("(bit >> 3)", "(bit >> 4)"),
        ("row_start[detector + 1]", "row_start[detector + 1] - 1"),
        ("(value & 1) << i", "(value & 1) << (7 - i)"),
        ("if (seen > 1)", "if (seen > 2)"),
        ("(1 + (u64)n_detectors)", "(u64)n_detectors"),
    ],
)
def test_a_kernel_that_is_wrong_is_found(tmp_path: Path, right: str, wrong: str) -> None:
    text = SOURCE.read_text()
    assert right in text
    broken = tmp_path / "broken.cu"
    broken.write_text(text.replace(right, wrong))
    library = kernel_shim.build(broken)
    rng = np.random.default_rng(7)
    memory = rng.integers(0, 256, size=400, dtype=np.uint8)
    table = detector_table([Piece(60, 8)], [[0, 9], [17], [33, 40, 59], [58]])
    at = np.array([[5], [90]], dtype=np.uint64)
    output = rng.integers(0, 2, size=(3, 20), dtype=np.uint8)
    output[1] = 0
    output[1, 4] = 2
    formed = np.array_equal(
        kernel_shim.form_detectors(library, memory, at, table),
        twin.form_detectors(memory, at, table),
    )
    packed = all(
        np.array_equal(a, b)
        for a, b in zip(
            kernel_shim.pack_output(library, output), twin.pack_output(output), strict=True
        )
    )
    assert not (formed and packed)


@pytest.mark.needs("gxx")
def test_parameter_sizes_are_those_of_the_source() -> None:
    for name in KERNELS:
        out = (ctypes.c_int * 16)()
        count = kernel_shim.build().shim_sizes(name.encode(), out)
        assert tuple(out[:count]) == PARAMETERS[name]


@pytest.mark.parametrize("envelope", [None, rpc.Envelope(3, 1, 99)])
@pytest.mark.parametrize("payload", ["measurements", "detectors"])
def test_messages_of_a_circuit_become_its_detectors(
    payload: str, envelope: rpc.Envelope | None
) -> None:
    """Raw measurements, or detectors, of each round in RPC messages in slots of two rings."""
    circuit = memory_circuit(geometry(3, "ZH"), 4, "Z", IsingScalar(0.02))
    measured = circuit.compile_sampler(seed=5).sample(20)
    wanted = circuit.compile_m2d_converter().convert(
        measurements=measured, append_observables=False
    )
    record = measured if payload == "measurements" else wanted
    sizes = [8, 8, 8, record.shape[1] - 24]
    rows = measurement_rows(circuit) if payload == "measurements" else None
    order = np.random.default_rng(1).permutation(circuit.num_detectors)
    table = detector_table([Piece(n, PAYLOAD_AT) for n in sizes], rows, order.tolist())
    memory = np.full(64 * 1024, 0xA5, dtype=np.uint8)
    message_at = np.zeros((20, 4), dtype=np.uint64)
    for shot in range(20):
        for piece, first in enumerate(np.cumsum([0, *sizes[:-1]])):
            part = record[shot, first : first + sizes[piece]]
            bits = np.packbits(part, bitorder="little").tobytes()
            message = rpc.build_request(
                rpc.EnqueueSyndromes(shot, 0, 0, piece, len(part), bits, envelope)
            )
            stride, base = ((128, 0), (192, 32 * 1024))[piece % 2]  # two boards, two rings
            at = base + (2 * shot + piece // 2) * stride
            memory[at : at + len(message)] = np.frombuffer(message, dtype=np.uint8)
            message_at[shot, piece] = at
    table.check_messages(message_at, memory.size)
    dets = twin.form_detectors(memory, message_at, table)
    assert wanted.any()
    assert np.array_equal(dets, wanted[:, order])


def test_rows_of_a_circuit_name_measurements_across_repeats() -> None:
    circuit = stim.Circuit("M 0\nREPEAT 3 {\n M 0 1\n DETECTOR rec[-1] rec[-1] rec[-2] rec[-3]\n}")
    assert measurement_rows(circuit) == [(0, 1), (2, 3), (4, 5)]


def test_tables_and_offsets_that_cannot_be_are_refused() -> None:
    one = [Piece(4, 0)]
    for rows, order, text in (
        ([[4]], None, "allowed: 0..3"),
        ([[-1]], None, "allowed: 0..3"),
        (None, [0, 1, 2, 2], "no permutation"),
        (None, [0, 1, 2], "no permutation"),
    ):
        with pytest.raises(ValueError, match=text):
            detector_table(one, rows, order)
    table = detector_table([Piece(9, 100), Piece(1, 0)])
    table.check_messages(np.array([[398, 499]], dtype=np.uint64), 500)
    for at in ([[399, 0]], [[0, 500]], [[2**64 - 1, 0]]):
        with pytest.raises(ValueError, match=r"of shot 0 .* the receive memory has 500"):
            table.check_messages(np.array(at, dtype=np.uint64), 500)
    with pytest.raises(ValueError, match=r"allowed: \(shots, 2\)"):
        table.check_messages(np.zeros((1, 3), dtype=np.uint64), 500)


def _on_device(
    driver: Driver, memory: np.ndarray, at: np.ndarray, table: DetectorTable, output: np.ndarray
) -> list[np.ndarray]:
    """Both kernels on a device: what they wrote."""
    shots, n = len(output), output.shape[1] - 1
    stream, kernels = Stream(driver), Kernels(driver)
    on_device = DeviceTable(driver, stream, table)

    def put(array: np.ndarray) -> DeviceBuffer:
        buffer = DeviceBuffer(driver, array.nbytes)
        driver.call("cuMemcpyHtoDAsync_v2", buffer.address, array.ctypes.data, array.nbytes,
                    stream.handle)  # fmt: skip
        return buffer

    shapes = [(len(at), table.n_detectors), (shots, (n + 7) // 8), (shots,), (shots,)]
    results = [np.full(shape, 255, dtype=np.uint8) for shape in shapes]
    sources = [put(array) for array in (memory, at, output)]
    sinks = [put(array) for array in results]
    kernels.form_detectors(
        stream, sources[0].address, sources[1].address, on_device, len(at), sinks[0].address
    )
    kernels.pack_output(stream, sources[2].address, n, shots, *(sink.address for sink in sinks[1:]))
    for array, sink in zip(results, sinks, strict=True):
        driver.call("cuMemcpyDtoHAsync_v2", array.ctypes.data, sink.address, array.nbytes,
                    stream.handle)  # fmt: skip
    stream.synchronize()
    for part in (*sources, *sinks, on_device, kernels, stream):
        part.close()
    return results


@pytest.mark.needs("nvrtc")
@pytest.mark.parametrize(
    "device",
    [
        pytest.param("cuda", marks=pytest.mark.needs("cuda")),
        pytest.param("stand-in", marks=pytest.mark.needs("gxx")),
    ],
)
@pytest.mark.parametrize(("shots", "n"), [(1, 1), (3, 24), (65, 601)])
def test_the_kernels_as_launched_equal_their_twins(device: str, shots: int, n: int) -> None:
    """On a GPU where there is one; always through the driver's stand-in, which uses a CPU."""
    rng = np.random.default_rng(n)
    rows = [rng.integers(0, 900, size=rng.integers(0, 6)).tolist() for _ in range(n)]
    table = detector_table([Piece(500, 56), Piece(400, 57)], rows, rng.permutation(n).tolist())
    memory = rng.integers(0, 256, size=1 << 16, dtype=np.uint8)
    at = rng.integers(0, 65000, size=(shots, 2)).astype(np.uint64)
    output = rng.integers(0, 2, size=(shots, 1 + n), dtype=np.uint8)
    output[shots // 2, -1] = 255
    library = None if device == "cuda" else FakeCuda(kernel_shim.build())
    with Driver(library=library) as driver:
        got = _on_device(driver, memory, at, table, output)
    wanted = [twin.form_detectors(memory, at, table), *twin.pack_output(output)]
    for mine, its in zip(got, wanted, strict=True):
        assert np.array_equal(mine, its)


@pytest.mark.needs("nvrtc")
@pytest.mark.parametrize("capability", [(9, 0), (10, 0)])
def test_the_kernels_compile_for_data_centre_gpus(capability: tuple[int, int]) -> None:
    image = kernels_cubin(capability)
    assert image[:4] == b"\x7fELF"
    assert all(name.encode() in image for name in KERNELS)
    assert kernels_cubin(capability) == image, "the compiler is deterministic"


@pytest.mark.needs("nvrtc")
def test_errors_of_the_compiler_name_file_and_line() -> None:
    text = SOURCE.read_text().replace("return;", "return nope;", 1)
    line = text[: text.index("nope")].count("\n") + 1
    with pytest.raises(CompileError, match=rf'kernels.cu\({line}\): error: .*"nope" is undefined'):
        compile_cubin(text, SOURCE.name, "sm_90")
    with pytest.raises(CompileError, match="invalid value for --gpu-architecture"):
        compile_cubin(text, SOURCE.name, "sm_1")
