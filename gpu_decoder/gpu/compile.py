"""CUDA C to machine code with NVRTC, through ctypes: needs the library, no driver and no GPU."""

from __future__ import annotations

import ctypes
import sys
from functools import lru_cache
from pathlib import Path
from typing import Final

from gpu_decoder.runtime.protocol import RuntimeUnavailable

SOURCE: Final = Path(__file__).with_name("kernels.cu")
KERNELS: Final = ("form_detectors", "pack_output")
"""Names of the kernels in ``SOURCE``."""

_PACKAGED: Final = "nvidia/cu*/lib/libnvrtc.so.*"
_NAMES: Final = ("libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so")


class CompileError(RuntimeError):
    """CUDA C was refused; the message is the compiler's log, with file and line."""


def compile_cubin(source: str, name: str, arch: str) -> bytes:
    """Compile CUDA C for one architecture.

    Args:
        source: CUDA C.
        name: file name for messages.
        arch: ``sm_90``, ``sm_100``, ...

    Returns:
        ELF image for ``cuModuleLoadData``; equal calls give equal bytes.

    Raises:
        CompileError: the source or the architecture is refused.
        RuntimeUnavailable: NVRTC is not installed.
    """
    nvrtc = _library()
    program = ctypes.c_void_p()
    _check(nvrtc, "nvrtcCreateProgram", ctypes.byref(program), source.encode(), name.encode(),
           0, None, None)  # fmt: skip
    try:
        options = (ctypes.c_char_p * 2)(f"--gpu-architecture={arch}".encode(), b"--std=c++17")
        if nvrtc.nvrtcCompileProgram(program, len(options), options):
            raise CompileError(f"{name} for {arch}: {_log(nvrtc, program)}")
        return _fetch(nvrtc, program, "nvrtcGetCUBINSize", "nvrtcGetCUBIN")
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def kernels_cubin(capability: tuple[int, int]) -> bytes:
    """Our kernels for a compute capability, such as (9, 0); raises as :func:`compile_cubin`."""
    major, minor = capability
    return compile_cubin(SOURCE.read_text(encoding="utf-8"), SOURCE.name, f"sm_{major}{minor}")


def nvrtc_version() -> str:
    """Version of NVRTC, such as 13.5.

    Raises:
        RuntimeUnavailable: NVRTC is not installed.
    """
    nvrtc, major, minor = _library(), ctypes.c_int(), ctypes.c_int()
    _check(nvrtc, "nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
    return f"{major.value}.{minor.value}"


@lru_cache(maxsize=1)
def _library() -> ctypes.CDLL:
    packaged = [str(file) for root in sys.path for file in sorted(Path(root).glob(_PACKAGED))]
    for name in (*packaged, *_NAMES):
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        library.nvrtcGetErrorString.restype = ctypes.c_char_p
        return library
    raise RuntimeUnavailable(
        "NVRTC is not installed: no libnvrtc.so in the packages or the system; "
        "install the package nvidia-cuda-nvrtc (extra gpu: pip install 'hil[gpu]')"
    )


def _check(nvrtc: ctypes.CDLL, call: str, *arguments: object) -> None:
    code = getattr(nvrtc, call)(*arguments)
    if code:
        text = nvrtc.nvrtcGetErrorString(code).decode()
        raise CompileError(f"{call} failed: {text} ({code})")


def _fetch(nvrtc: ctypes.CDLL, program: ctypes.c_void_p, sizes: str, content: str) -> bytes:
    size = ctypes.c_size_t()
    _check(nvrtc, sizes, program, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(size.value)
    _check(nvrtc, content, program, buffer)
    return buffer.raw


def _log(nvrtc: ctypes.CDLL, program: ctypes.c_void_p) -> str:
    log = _fetch(nvrtc, program, "nvrtcGetProgramLogSize", "nvrtcGetProgramLog")
    return log.rstrip(b"\0").decode(errors="replace").strip()
