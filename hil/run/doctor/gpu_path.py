"""Probes of the GPU path of the pre-decoder: its parts, and whether it has ever run here."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib import metadata
from typing import Final

from gpu_decoder.gpu.compile import CompileError, kernels_cubin, nvrtc_version
from gpu_decoder.runtime.protocol import RuntimeUnavailable
from gpu_decoder.runtime.tensorrt import TENSORRT
from hil.run import executed
from hil.run.doctor.check import Check

_RUNTIMES: Final = frozenset(("tensorrt", "tensorrt_rtx"))
_COMPILE_FOR: Final = (9, 0)


def checks() -> list[Check]:
    """All of them, in order of the page."""
    return [tensorrt(), kernels(), path(executed.summary())]


def tensorrt(package: str = "tensorrt") -> Check:
    """Classic TensorRT, which no extra brings (TensorRT-RTX is part of the extra ``gpu``)."""
    try:
        version = metadata.version(package)
    except metadata.PackageNotFoundError:
        return Check("GPU path", "tensorrt", "absent", f"no package {package}", TENSORRT.install)
    return Check("GPU path", "tensorrt", "ok", f"{package} {version} is installed")


def kernels(compile_kernels: Callable[[tuple[int, int]], bytes] = kernels_cubin) -> Check:
    """Compile our kernels for one kind of GPU; needs NVRTC, no GPU."""
    try:
        size, version = len(compile_kernels(_COMPILE_FOR)), nvrtc_version()
    except RuntimeUnavailable as error:
        return Check("GPU path", "kernels", "absent", str(error))
    except CompileError as error:
        return Check("GPU path", "kernels", "broken", str(error))
    detail = f"kernels.cu compiles for sm_90 with NVRTC {version} ({size} bytes); not executed"
    return Check("GPU path", "kernels", "ok", detail)


def path(runs: Iterable[executed.Summary]) -> Check:
    """Whether a run with a TensorRT pre-decoder is on record."""
    there = [entry for entry in runs if _on_gpu(entry.last.predecoder)]
    if not there:
        return Check(
            "GPU path",
            "executed",
            "absent",
            "the GPU path has never run on this machine: no run with tensorrt or tensorrt_rtx is "
            "on record; without a GPU it is checked, not executed (docs/predecoder.md)",
        )
    last = there[-1].last
    count = sum(entry.runs for entry in there)
    detail = f"{count} runs, last {last.date[:10]} {last.verdict}: {last.predecoder}"
    return Check("GPU path", "executed", "ok", detail)


def _on_gpu(predecoder: str) -> bool:
    words = (part.split(" ")[0] for part in predecoder.split(", "))
    return not _RUNTIMES.isdisjoint(words)
