"""Architectures of the pre-decoder: plain stacks of three-dimensional convolutions.

The family ``predecoder_memory_v1`` of the public reference (NVIDIA/Ising-Decoding, commit
33acb15), restated: stride 1, zero padding k // 2, bias; GELU in its tanh form after every layer but
the last; no normalisation, no skips. Fully convolutional in (round, row, col): one set of weights
serves every distance and number of rounds. :func:`forward` is that arithmetic in numpy, the twin of
all runtimes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

F32Array: TypeAlias = NDArray[np.float32]
Layers: TypeAlias = Sequence[tuple[F32Array, F32Array]]
"""Per layer the weight float32 [out, in, kT, kRow, kCol] and the bias float32 [out]."""

MODEL_VERSION: Final = "predecoder_memory_v1"
CHANNELS: Final = 4
"""Channels of the input, and channels of the output that are used."""


@dataclass(frozen=True)
class Architecture:
    """One network.

    Attributes:
        model_id: its id in weights files.
        name: what people call it.
        filters: output channels of each layer; the last has at least 4, of which 4 are used.
        kernels: kernel size of each layer, odd, the same along all three axes.
    """

    model_id: str
    name: str
    filters: tuple[int, ...]
    kernels: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.filters or len(self.filters) != len(self.kernels):
            raise ValueError(
                f"filters {list(self.filters)} and kernels {list(self.kernels)}, "
                "allowed: one of each per layer, at least one layer"
            )
        if min(self.filters) < 1 or self.filters[-1] < CHANNELS:
            raise ValueError(
                f"filters {list(self.filters)}, allowed: positive, the last at least {CHANNELS}"
            )
        if any(k < 1 or k % 2 == 0 for k in self.kernels):
            raise ValueError(f"kernels {list(self.kernels)}, allowed: odd numbers")

    @property
    def layers(self) -> int:
        """Number of convolutions."""
        return len(self.filters)

    @property
    def receptive_field(self) -> int:
        """Cells along one axis that one output sees, R = 1 + sum(k - 1)."""
        return 1 + sum(k - 1 for k in self.kernels)

    @property
    def shapes(self) -> tuple[tuple[int, int, int, int, int], ...]:
        """Shape of each layer's weight."""
        inputs = (CHANNELS, *self.filters[:-1])
        return tuple(
            (out, n, k, k, k) for out, n, k in zip(self.filters, inputs, self.kernels, strict=True)
        )

    @property
    def parameters(self) -> int:
        """Number of trained values."""
        return sum(int(np.prod(shape)) + shape[0] for shape in self.shapes)


def _stack(model_id: str, name: str, width: int, layers: int, kernel: int = 3) -> Architecture:
    return Architecture(model_id, name, (width,) * (layers - 1) + (CHANNELS,), (kernel,) * layers)


REGISTRY: Final[dict[str, Architecture]] = {
    entry.model_id: entry
    for entry in (
        _stack("1", "Surface-1-Fast", 128, 4),
        _stack("2", "256x4", 256, 4),
        _stack("3", "128x4, kernel 5", 128, 4, 5),
        _stack("4", "Surface-1-Accurate", 128, 6),
        _stack("5", "256x6", 256, 6),
        *(
            _stack(f"hil-{w}x{n}", f"hil {w}x{n}", w, n)
            for w, n in ((32, 4), (32, 6), (48, 4), (48, 6), (64, 6))
        ),
    )
}
"""Ids "1" to "5" as published; the small ones are ours."""


def architecture(
    model_id: str, filters: Sequence[int] | None = None, kernels: Sequence[int] | None = None
) -> Architecture:
    """The architecture of an id, or the one that ``filters`` and ``kernels`` describe.

    A registered id fixes the kernels and all filters but the last, whose extra channels are unused.

    Raises:
        ValueError: the id is unknown and nothing describes it, or both are given and differ.
    """
    known = REGISTRY.get(model_id)
    if filters is None or kernels is None:
        if known is None:
            raise ValueError(
                f"model id {model_id!r} without filters and kernels, "
                f"allowed: {', '.join(REGISTRY)}, or any id with both"
            )
        return known
    name = known.name if known else model_id
    found = Architecture(model_id, name, tuple(filters), tuple(kernels))
    if known and (found.filters[:-1], found.kernels) != (known.filters[:-1], known.kernels):
        raise ValueError(
            f"model id {model_id!r} with filters {list(found.filters)} and kernels "
            f"{list(found.kernels)}, but {known.name} has filters {list(known.filters)} and "
            f"kernels {list(known.kernels)}"
        )
    return found


def forward(layers: Layers, grid: F32Array) -> F32Array:
    """Logits, in numpy (slow; the twin of every runtime).

    Args:
        layers: weights and biases.
        grid: float32 [n, 4, T, d, d], see ``Layout.network_input``.

    Returns:
        float32 [n, 4, T, d, d].
    """
    x = grid
    for k, (weight, bias) in enumerate(layers):
        pad = weight.shape[2] // 2
        padded = np.pad(x, ((0, 0), (0, 0), *((pad, pad),) * 3))
        windows = np.lib.stride_tricks.sliding_window_view(padded, weight.shape[2:], axis=(2, 3, 4))
        x = np.tensordot(windows, weight, axes=((1, 5, 6, 7), (1, 2, 3, 4)))
        x = np.moveaxis(x + bias, -1, 1)
        if k < len(layers) - 1:
            x = gelu(x)
    return np.ascontiguousarray(x[:, :CHANNELS])


def gelu(x: F32Array) -> F32Array:
    """GELU in its tanh form, 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))."""
    scale = np.float32(np.sqrt(2 / np.pi))
    inner = scale * (x + np.float32(0.044715) * x**3)
    half = np.float32(0.5) * x
    return half + half * np.tanh(inner)
