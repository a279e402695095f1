"""TensorRT-RTX (GeForce and RTX GPUs): engines are built for a named GPU, on any machine.

Another product than classic TensorRT: it knows no data-centre GPU, and its kernels are finished by
a compiler on the target.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from gpu_decoder.protocol import Backend
from gpu_decoder.runtime.engine import EngineRuntime
from gpu_decoder.runtime.tensorrt_api import Product

TENSORRT_RTX: Final = Product(
    backend=Backend.TENSORRT_RTX,
    title="TensorRT-RTX",
    modules=("tensorrt_rtx", "tensorrt_rtx_bindings"),
    install="install the packages tensorrt-rtx-cu13-bindings and -libs (extra gpu: pip install "
    "'hil[gpu]')",
    aims=True,
)
TensorRtRtxRuntime = partial(EngineRuntime, TENSORRT_RTX)
"""``EngineRuntime`` on TensorRT-RTX."""
