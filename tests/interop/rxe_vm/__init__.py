"""A Debian guest with Linux rdma_rxe and pyverbs in QEMU, and its Ethernet link; see README.md."""

from __future__ import annotations

from .build import Image, ensure
from .commands import Unavailable
from .guest import GUEST_MAC, Guest, GuestTimeout, Result

__all__ = ["GUEST_MAC", "Guest", "GuestTimeout", "Image", "Result", "Unavailable", "ensure"]
