"""The kernels of ``gpu_decoder/gpu/kernels.cu`` on a CPU, compiled with g++: no GPU is involved."""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

import numpy as np

from gpu_decoder.gpu.compile import SOURCE
from gpu_decoder.gpu.kernels import BLOCK_THREADS
from gpu_decoder.gpu.slots import DetectorTable, U64Array
from gpu_decoder.protocol import U8Array


@lru_cache(maxsize=4)
def build(source: Path = SOURCE) -> ctypes.CDLL:
    """Compile a kernel source and load it."""
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "kernels.so"
        shim = Path(__file__).with_name("kernel_shim.cpp")
        flags = ["-std=c++17", "-O1", "-shared", "-fPIC", "-Wall", "-Werror"]
        subprocess.run(
            ["g++", *flags, f'-DKERNELS="{source}"', str(shim), "-o", str(library)], check=True
        )
        return ctypes.CDLL(str(library))


def launch(library: ctypes.CDLL, name: str, threads: int, *arguments: object) -> None:
    """Run a kernel as ``gpu_decoder.gpu.kernels`` launches it."""
    pointers = (ctypes.c_void_p * len(arguments))(*(ctypes.addressof(a) for a in arguments))
    blocks = -(-threads // BLOCK_THREADS)
    assert library.shim_launch(name.encode(), blocks, BLOCK_THREADS, pointers) == 0


def form_detectors(
    library: ctypes.CDLL, memory: U8Array, message_at: U64Array, table: DetectorTable
) -> U8Array:
    """Same arguments as the twin; cells that the kernel does not write stay 255."""
    dets = np.full((len(message_at), table.n_detectors), 255, dtype=np.uint8)
    arrays = [table.row_start, table.row_piece, table.row_bit]
    u32, u64 = ctypes.c_uint, ctypes.c_uint64
    launch(
        library, "form_detectors", dets.size,
        u64(memory.ctypes.data), u64(message_at.ctypes.data), u32(len(table.pieces)),
        *(u64(array.ctypes.data) for array in arrays),
        u32(table.n_detectors), u32(len(message_at)), u64(dets.ctypes.data),
    )  # fmt: skip
    return dets


def pack_output(library: ctypes.CDLL, output: U8Array) -> tuple[U8Array, U8Array, U8Array]:
    """Same arguments and results as the twin."""
    shots, n = len(output), output.shape[1] - 1
    residual = np.full((shots, (n + 7) // 8), 255, dtype=np.uint8)
    pre_l, invalid = np.full(shots, 255, dtype=np.uint8), np.zeros(shots, dtype=np.uint8)
    u32, u64 = ctypes.c_uint, ctypes.c_uint64
    launch(
        library, "pack_output", residual.size,
        u64(output.ctypes.data), u32(n), u32(shots),
        u64(residual.ctypes.data), u64(pre_l.ctypes.data), u64(invalid.ctypes.data),
    )  # fmt: skip
    return residual, pre_l, invalid
