"""Classic TensorRT (A100, H100, B200, ...): engines are built on the GPU that runs them."""

from __future__ import annotations

from functools import partial
from typing import Final

from gpu_decoder.protocol import Backend
from gpu_decoder.runtime.engine import EngineRuntime
from gpu_decoder.runtime.tensorrt_api import Product

TENSORRT: Final = Product(
    backend=Backend.TENSORRT,
    title="TensorRT",
    modules=("tensorrt",),
    install="on a machine with an NVIDIA GPU install the package tensorrt (pip install tensorrt), "
    "and the extra gpu (pip install 'hil[gpu]')",
    aims=False,
)
TensorRtRuntime = partial(EngineRuntime, TENSORRT)
"""``EngineRuntime`` on classic TensorRT."""
